//! A cluster's keys on the host: made once, replaced only by a rotation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use orch_contract::{ClusterKeys, NodeName, Role};
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use super::rotate::{Rotation, Stage, read_rotation};
use super::store::{Disk, Store};
use super::{KeyError, read_private_key, read_public_key};
use crate::AuthorizedKeys;
use crate::authorized::{Member, OPERATOR_COMMENT, Principal};

/// What [`ensure_cluster_keys`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnsuredKeys {
    /// Files that were created, rewritten or removed; empty on a re-run.
    pub changed: Vec<PathBuf>,
}

/// The nodes of a cluster, and which of them join as servers; an agent is what is not named there.
#[derive(Debug, Clone, Copy)]
pub struct Roster<'a> {
    pub nodes: &'a [NodeName],
    pub servers: &'a [NodeName],
}

impl Roster<'_> {
    fn member(&self, node: &NodeName) -> Member {
        Member {
            name: node.clone(),
            role: if self.servers.contains(node) {
                Role::Server
            } else {
                Role::Agent
            },
        }
    }
}

impl<'a> From<&'a [NodeName]> for Roster<'a> {
    fn from(nodes: &'a [NodeName]) -> Self {
        Self {
            nodes,
            servers: &[],
        }
    }
}

impl<'a, const N: usize> From<&'a [NodeName; N]> for Roster<'a> {
    fn from(nodes: &'a [NodeName; N]) -> Self {
        nodes.as_slice().into()
    }
}

impl<'a> From<&'a Vec<NodeName>> for Roster<'a> {
    fn from(nodes: &'a Vec<NodeName>) -> Self {
        nodes.as_slice().into()
    }
}

/// Makes the files what they must be: creates the keys that are missing, lists exactly the roster's nodes and the
/// operator in `authorized_keys` and the server's keys in `join_known_host`, and finishes what an interrupted
/// stage of a rotation left undone.
///
/// A key that exists is replaced only by a rotation: running nodes have its other half. A public key
/// file that does not belong to its private key is written again. Every file appears whole or not at
/// all.
pub fn ensure_cluster_keys<'a>(
    layout: &ClusterKeys,
    nodes: impl Into<Roster<'a>>,
) -> Result<EnsuredKeys, KeyError> {
    settle(layout, nodes, &Disk)
}

pub(super) fn settle<'a>(
    layout: &ClusterKeys,
    nodes: impl Into<Roster<'a>>,
    store: &dyn Store,
) -> Result<EnsuredKeys, KeyError> {
    let roster: Roster<'_> = nodes.into();
    store.make_directory(layout.directory())?;
    let mut settling = Settling {
        rotation: read_rotation(layout)?,
        store,
        changed: Vec::new(),
    };
    let turns = |rotation: &Rotation| rotation.host;
    let host = settling.key(&layout.host_key(), "orch-join", turns)?;
    let operator = settling.key(&layout.operator_key(), OPERATOR_COMMENT, turns)?;
    let mut authorized = String::new();
    let principal = Principal::Operator;
    for key in operator.accepted() {
        authorized.push_str(&AuthorizedKeys::line(key, &principal));
    }
    for node in roster.nodes {
        let private = layout.client_key(node);
        if let Some(directory) = private.parent() {
            store.make_directory(directory)?;
        }
        let turns = |rotation: &Rotation| rotation.nodes.contains(node);
        let principal = Principal::Node(roster.member(node));
        for key in settling.key(&private, node.as_str(), turns)?.accepted() {
            authorized.push_str(&AuthorizedKeys::line(key, &principal));
        }
    }
    let known_host = host
        .accepted()
        .map(public_line)
        .collect::<Result<String, _>>()?;
    settling.write(&layout.known_host(), known_host.as_bytes())?;
    settling.write(&layout.authorized_keys(), authorized.as_bytes())?;
    settling.drop_old(layout, roster.nodes)?;
    Ok(EnsuredKeys {
        changed: settling.changed,
    })
}

/// Where the successor of a private key waits.
pub(super) fn next_of(private: &Path) -> PathBuf {
    private.with_extension("next")
}

/// Where the public half of a private key's predecessor stays until nobody has the other half.
fn old_of(private: &Path) -> PathBuf {
    private.with_extension("old.pub")
}

/// A key and what is accepted beside it.
struct Key {
    current: PublicKey,
    beside: Option<PublicKey>,
}

impl Key {
    fn accepted(&self) -> impl Iterator<Item = &PublicKey> {
        std::iter::once(&self.current).chain(&self.beside)
    }
}

struct Settling<'a> {
    rotation: Option<Rotation>,
    store: &'a dyn Store,
    changed: Vec<PathBuf>,
}

impl Settling<'_> {
    /// Brings one key to the rotation's stage, if it is its turn.
    fn key(
        &mut self,
        private: &Path,
        comment: &str,
        turns: impl Fn(&Rotation) -> bool,
    ) -> Result<Key, KeyError> {
        let stage = self.rotation.as_ref().filter(|rotation| turns(rotation));
        let stage = stage.map(|rotation| rotation.stage);
        if stage == Some(Stage::Switch) {
            self.switch(private)?;
        }
        let current = self.private_key(private, comment)?;
        self.write(
            &private.with_extension("pub"),
            public_line(&current)?.as_bytes(),
        )?;
        let beside = match stage {
            Some(Stage::Introduce) => Some(self.private_key(&next_of(private), comment)?),
            Some(Stage::Switch) => present(read_public_key(&old_of(private)))?,
            Some(Stage::Retire) | None => None,
        };
        Ok(Key { current, beside })
    }

    /// The successor takes its predecessor's place, once: afterwards it is where it was not.
    fn switch(&mut self, private: &Path) -> Result<(), KeyError> {
        let next = next_of(private);
        if present(read_private_key(&next))?.is_none() {
            return Ok(());
        }
        if let Some(current) = present(read_private_key(private))? {
            let line = public_line(current.public_key())?;
            self.write(&old_of(private), line.as_bytes())?;
        }
        self.store.rename(&next, private)?;
        self.changed.push(private.to_owned());
        Ok(())
    }

    /// Only after the lists have ceased to name them.
    fn drop_old(&mut self, layout: &ClusterKeys, nodes: &[NodeName]) -> Result<(), KeyError> {
        let retiring = self.rotation.as_ref();
        if !retiring.is_some_and(|rotation| rotation.stage == Stage::Retire) {
            return Ok(());
        }
        let clients = nodes.iter().map(|node| layout.client_key(node));
        for private in [layout.host_key(), layout.operator_key()]
            .into_iter()
            .chain(clients)
        {
            let old = old_of(&private);
            if old.exists() {
                self.store.remove(&old)?;
                self.changed.push(old);
            }
        }
        Ok(())
    }

    fn private_key(&mut self, private: &Path, comment: &str) -> Result<PublicKey, KeyError> {
        if let Some(key) = present(read_private_key(private))? {
            return Ok(key.public_key().clone());
        }
        let mut key =
            PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(KeyError::Generate)?;
        key.set_comment(comment);
        let text = key.to_openssh(LineEnding::LF).map_err(KeyError::Generate)?;
        self.store.write(private, text.as_bytes())?;
        self.changed.push(private.to_owned());
        Ok(key.public_key().clone())
    }

    fn write(&mut self, path: &Path, content: &[u8]) -> Result<(), KeyError> {
        if fs::read(path).is_ok_and(|existing| existing == content) {
            return Ok(());
        }
        self.store.write(path, content)?;
        self.changed.push(path.to_owned());
        Ok(())
    }
}

fn public_line(key: &PublicKey) -> Result<String, KeyError> {
    let line = key.to_openssh().map_err(KeyError::Generate)?;
    Ok(format!("{line}\n"))
}

fn present<T>(read: Result<T, KeyError>) -> Result<Option<T>, KeyError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn names(list: &[&str]) -> Vec<NodeName> {
        list.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn keys_are_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path().join("keys"));
        let nodes = names(&["master", "agent"]);
        let first = ensure_cluster_keys(&layout, &nodes).unwrap();
        // Four pairs and both lists.
        assert_eq!(first.changed.len(), 10);
        for path in [layout.host_key(), layout.client_key(&nodes[1])] {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(
            fs::metadata(layout.directory()).unwrap().mode() & 0o777,
            0o700
        );
        let before = fs::read(layout.client_key(&nodes[1])).unwrap();
        let second = ensure_cluster_keys(&layout, &nodes).unwrap();
        assert_eq!(second.changed, Vec::<PathBuf>::new());
        assert_eq!(fs::read(layout.client_key(&nodes[1])).unwrap(), before);
    }

    #[test]
    fn a_node_that_is_added_gets_a_key_and_one_that_is_removed_loses_access() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        ensure_cluster_keys(&layout, &names(&["a", "b"])).unwrap();
        ensure_cluster_keys(&layout, &names(&["b", "c"])).unwrap();
        let text = fs::read_to_string(layout.authorized_keys()).unwrap();
        let authorized = AuthorizedKeys::parse(&text).unwrap();
        let node_of = |name: &str| {
            let key = read_public_key(&layout.client_public_key(&name.parse().unwrap())).unwrap();
            authorized
                .node_of(&key)
                .map(|node| node.as_str().to_owned())
        };
        assert_eq!(node_of("a"), None);
        assert_eq!(node_of("b").as_deref(), Some("b"));
        assert_eq!(node_of("c").as_deref(), Some("c"));
    }

    #[test]
    fn a_node_that_becomes_a_server_keeps_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        let nodes = names(&["a", "b"]);
        let list = || fs::read_to_string(layout.authorized_keys()).unwrap();
        ensure_cluster_keys(&layout, &nodes).unwrap();
        let agents = list();
        let roster = Roster {
            nodes: &nodes,
            servers: &nodes[..1],
        };
        let ensured = ensure_cluster_keys(&layout, roster).unwrap();
        assert_eq!(ensured.changed, [layout.authorized_keys()]);
        assert_eq!(list(), agents.replace(" a\n", " server:a\n"));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        Disk.write(&layout.host_key(), b"not a key").unwrap();
        assert!(matches!(
            ensure_cluster_keys(&layout, &[]),
            Err(KeyError::PrivateKey { .. })
        ));
        assert_eq!(fs::read(layout.host_key()).unwrap(), b"not a key");
    }
}
