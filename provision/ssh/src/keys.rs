//! Key files: the cluster's, made on the host; a node's, read on the node.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use orch_contract::{ClusterKeys, NodeName};
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::AuthorizedKeys;

/// Private keys are this long at most; anything longer is not one.
const MAX_KEY_FILE_BYTES: u64 = 16 * 1024;
/// The server's key and its successor.
const MAX_KNOWN_HOST_KEYS: usize = 2;

/// What went wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot create the directory {}", path.display())]
    CreateDirectory { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} can be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display()
    )]
    TooOpen { path: PathBuf, mode: u32 },
    #[error("{} is too large to be a key", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not an unencrypted OpenSSH ed25519 private key", path.display())]
    PrivateKey {
        path: PathBuf,
        source: russh::keys::ssh_key::Error,
    },
    #[error("{} is not an OpenSSH ed25519 public key", path.display())]
    PublicKey {
        path: PathBuf,
        source: russh::keys::ssh_key::Error,
    },
    #[error("{} names {count} keys of the server; it has one, or two while it gets a new one", path.display())]
    KnownHost { path: PathBuf, count: usize },
    #[error("{} is a {algorithm} key; the join uses ed25519", path.display())]
    Algorithm { path: PathBuf, algorithm: String },
    #[error("cannot make an ed25519 key")]
    Generate(#[source] russh::keys::ssh_key::Error),
}

/// What [`ensure_cluster_keys`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnsuredKeys {
    /// Files that were created or rewritten; empty on a re-run.
    pub created: Vec<PathBuf>,
}

/// Creates the keys that are missing and lists exactly `nodes` in `authorized_keys`.
///
/// A key that exists is never replaced: running nodes have its other half. A public key file that
/// does not belong to its private key is written again. Every file appears whole or not at all.
pub fn ensure_cluster_keys(
    layout: &ClusterKeys,
    nodes: &[NodeName],
) -> Result<EnsuredKeys, KeyError> {
    let mut ensured = EnsuredKeys::default();
    create_private_directory(layout.directory())?;
    ensure_pair(
        &layout.host_key(),
        &layout.host_public_key(),
        "orch-join",
        &mut ensured,
    )?;
    let mut authorized = String::new();
    for node in nodes {
        let private = layout.client_key(node);
        if let Some(directory) = private.parent() {
            create_private_directory(directory)?;
        }
        let key = ensure_pair(
            &private,
            &layout.client_public_key(node),
            node.as_str(),
            &mut ensured,
        )?;
        authorized.push_str(&AuthorizedKeys::line(&key, node));
    }
    let path = layout.authorized_keys();
    write_if_different(&path, authorized.as_bytes(), &mut ensured)?;
    Ok(ensured)
}

/// Reads a private key, insisting that only its owner can.
pub fn read_private_key(path: &Path) -> Result<PrivateKey, KeyError> {
    let metadata = fs::metadata(path).map_err(|source| KeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyError::TooOpen {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let text = zeroize::Zeroizing::new(read_bounded(path)?);
    let key = PrivateKey::from_openssh(text.as_bytes()).map_err(|source| KeyError::PrivateKey {
        path: path.to_owned(),
        source,
    })?;
    require_ed25519(path, key.algorithm())?;
    Ok(key)
}

/// Reads a public key in OpenSSH's one-line format.
pub fn read_public_key(path: &Path) -> Result<PublicKey, KeyError> {
    parse_public_key(path, read_bounded(path)?.trim())
}

/// Reads the server's public keys, one a line: one, or two while it gets a new one.
pub fn read_known_host(path: &Path) -> Result<Vec<PublicKey>, KeyError> {
    let text = read_bounded(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys = lines
        .map(|line| parse_public_key(path, line))
        .collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() || keys.len() > MAX_KNOWN_HOST_KEYS {
        return Err(KeyError::KnownHost {
            path: path.to_owned(),
            count: keys.len(),
        });
    }
    Ok(keys)
}

fn parse_public_key(path: &Path, line: &str) -> Result<PublicKey, KeyError> {
    let key = PublicKey::from_openssh(line).map_err(|source| KeyError::PublicKey {
        path: path.to_owned(),
        source,
    })?;
    require_ed25519(path, key.algorithm())?;
    Ok(key)
}

fn require_ed25519(path: &Path, algorithm: Algorithm) -> Result<(), KeyError> {
    if algorithm == Algorithm::Ed25519 {
        return Ok(());
    }
    Err(KeyError::Algorithm {
        path: path.to_owned(),
        algorithm: algorithm.to_string(),
    })
}

fn read_bounded(path: &Path) -> Result<String, KeyError> {
    let read = |source| KeyError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(read)?.len() > MAX_KEY_FILE_BYTES {
        return Err(KeyError::TooLarge {
            path: path.to_owned(),
        });
    }
    fs::read_to_string(path).map_err(read)
}

fn create_private_directory(path: &Path) -> Result<(), KeyError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| KeyError::CreateDirectory {
            path: path.to_owned(),
            source,
        })
}

fn ensure_pair(
    private: &Path,
    public: &Path,
    comment: &str,
    ensured: &mut EnsuredKeys,
) -> Result<PublicKey, KeyError> {
    let key = match read_private_key(private) {
        Ok(key) => key,
        Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let mut key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)
                .map_err(KeyError::Generate)?;
            key.set_comment(comment);
            let text = key.to_openssh(LineEnding::LF).map_err(KeyError::Generate)?;
            write_whole(private, text.as_bytes())?;
            ensured.created.push(private.to_owned());
            key
        }
        Err(error) => return Err(error),
    };
    let line = key.public_key().to_openssh().map_err(KeyError::Generate)?;
    write_if_different(public, format!("{line}\n").as_bytes(), ensured)?;
    Ok(key.public_key().clone())
}

fn write_if_different(
    path: &Path,
    content: &[u8],
    ensured: &mut EnsuredKeys,
) -> Result<(), KeyError> {
    if fs::read(path).is_ok_and(|existing| existing == content) {
        return Ok(());
    }
    write_whole(path, content)?;
    ensured.created.push(path.to_owned());
    Ok(())
}

/// Temporary file, fsync, rename, fsync of the directory; mode 0600 from the start.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), KeyError> {
    let write = || -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| KeyError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
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
        // Three pairs and authorized_keys.
        assert_eq!(first.created.len(), 7);
        for path in [layout.host_key(), layout.client_key(&nodes[1])] {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(
            fs::metadata(layout.directory()).unwrap().mode() & 0o777,
            0o700
        );
        let before = fs::read(layout.client_key(&nodes[1])).unwrap();
        let second = ensure_cluster_keys(&layout, &nodes).unwrap();
        assert_eq!(second.created, Vec::<PathBuf>::new());
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
    fn a_key_that_others_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        ensure_cluster_keys(&layout, &[]).unwrap();
        fs::set_permissions(layout.host_key(), fs::Permissions::from_mode(0o644)).unwrap();
        let error = read_private_key(&layout.host_key()).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        write_whole(&layout.host_key(), b"not a key").unwrap();
        assert!(matches!(
            ensure_cluster_keys(&layout, &[]),
            Err(KeyError::PrivateKey { .. })
        ));
        assert_eq!(fs::read(layout.host_key()).unwrap(), b"not a key");
    }
}
