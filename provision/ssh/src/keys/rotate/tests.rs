use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use russh::keys::PublicKey;

use super::*;
use crate::AuthorizedKeys;
use crate::keys::cluster::next_of;
use crate::keys::{ensure_cluster_keys, read_known_host, read_private_key, read_public_key};

fn names(list: &[&str]) -> Vec<NodeName> {
    list.iter().map(|name| name.parse().unwrap()).collect()
}

/// The files that nodes are brought, as they were at one moment.
#[derive(Clone)]
struct Snapshot {
    host_key: PublicKey,
    authorized: AuthorizedKeys,
    known_host: Vec<PublicKey>,
    clients: BTreeMap<NodeName, PublicKey>,
    operator: PublicKey,
}

impl Snapshot {
    fn take(layout: &ClusterKeys, nodes: &[NodeName]) -> Self {
        let public = |path: &Path| read_private_key(path).unwrap().public_key().clone();
        let text = fs::read_to_string(layout.authorized_keys()).unwrap();
        Self {
            host_key: public(&layout.host_key()),
            authorized: AuthorizedKeys::parse(&text).unwrap(),
            known_host: read_known_host(&layout.known_host()).unwrap(),
            clients: nodes
                .iter()
                .map(|node| (node.clone(), public(&layout.client_key(node))))
                .collect(),
            operator: public(&layout.operator_key()),
        }
    }

    /// Every file of a node may have arrived, or not yet: whoever has which, everybody can join.
    fn assert_all_join(old: &Self, new: &Self) {
        for server_key in [&old.host_key, &new.host_key] {
            for known in [&old.known_host, &new.known_host] {
                assert!(
                    known
                        .iter()
                        .any(|known| known.key_data() == server_key.key_data()),
                    "an agent does not know the server's key"
                );
            }
        }
        for authorized in [&old.authorized, &new.authorized] {
            assert!(authorized.principal_of(&new.operator).is_some());
        }
        for (node, client) in old.clients.iter().chain(&new.clients) {
            for authorized in [&old.authorized, &new.authorized] {
                assert_eq!(authorized.node_of(client), Some(node));
            }
        }
    }
}

/// All that was brought to nodes, one after the other.
struct Fleet {
    nodes: Vec<NodeName>,
    brought: Vec<Snapshot>,
}

impl Fleet {
    fn new(layout: &ClusterKeys, nodes: &[NodeName]) -> Self {
        settle(layout, nodes, &Hasty).unwrap();
        Self {
            nodes: nodes.to_vec(),
            brought: vec![Snapshot::take(layout, nodes)],
        }
    }

    fn bring(&mut self, layout: &ClusterKeys) {
        let new = Snapshot::take(layout, &self.nodes);
        Snapshot::assert_all_join(self.brought.last().unwrap(), &new);
        self.brought.push(new);
    }
}

/// A rotation as a command makes it: it begins or resumes, and brings the files between two stages.
fn rotate(
    layout: &ClusterKeys,
    fleet: &mut Fleet,
    host: bool,
    of: &[NodeName],
    store: &dyn Store,
) -> Result<(), KeyError> {
    let nodes = fleet.nodes.clone();
    begin(layout, &nodes, host, of, store)?;
    loop {
        fleet.bring(layout);
        if advance(layout, &nodes, store)?.is_none() {
            return Ok(());
        }
    }
}

/// The disk without waiting for it: nobody cuts the power here.
struct Hasty;

impl Store for Hasty {
    fn make_directory(&self, path: &Path) -> Result<(), KeyError> {
        Disk.make_directory(path)
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), KeyError> {
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), KeyError> {
        fs::rename(from, to).unwrap();
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), KeyError> {
        fs::remove_file(path).unwrap();
        Ok(())
    }
}

/// Ends after so many changes, before or after the last of them.
struct Cut {
    left: Cell<usize>,
    after: bool,
}

impl Cut {
    fn change(&self, change: impl FnOnce() -> Result<(), KeyError>) -> Result<(), KeyError> {
        let cut = || KeyError::Write {
            path: "cut off".into(),
            source: io::ErrorKind::Interrupted.into(),
        };
        let Some(left) = self.left.get().checked_sub(1) else {
            if self.after {
                change()?;
            }
            return Err(cut());
        };
        self.left.set(left);
        change()
    }
}

impl Store for Cut {
    fn make_directory(&self, path: &Path) -> Result<(), KeyError> {
        Disk.make_directory(path)
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), KeyError> {
        self.change(|| Hasty.write(path, content))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), KeyError> {
        self.change(|| Hasty.rename(from, to))
    }

    fn remove(&self, path: &Path) -> Result<(), KeyError> {
        self.change(|| Hasty.remove(path))
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push(path);
        }
    }
    all.sort();
    all
}

#[test]
fn a_rotation_that_is_cut_off_anywhere_is_finished_by_the_next_and_everybody_can_always_join() {
    let nodes = names(&["a", "b"]);
    let mut cuts = 0;
    for after in [false, true] {
        for left in 0.. {
            let directory = tempfile::tempdir().unwrap();
            let layout = ClusterKeys::new(directory.path());
            let mut fleet = Fleet::new(&layout, &nodes);
            let before = files(directory.path());
            let cut = Cut {
                left: Cell::new(left),
                after,
            };
            let whole = rotate(&layout, &mut fleet, true, &nodes, &cut).is_ok();
            if !whole {
                cuts += 1;
                // Somebody uses the cluster before the rotation is resumed.
                settle(&layout, &nodes, &Hasty).unwrap();
                fleet.bring(&layout);
                rotate(&layout, &mut fleet, true, &nodes, &Hasty).unwrap();
            }
            assert_eq!(read_rotation(&layout).unwrap(), None);
            assert_eq!(files(directory.path()), before, "nothing is left behind");
            let (first, last) = (&fleet.brought[0], Snapshot::take(&layout, &nodes));
            assert_ne!(first.host_key.key_data(), last.host_key.key_data());
            assert_eq!(last.known_host.len(), 1);
            assert_ne!(first.operator.key_data(), last.operator.key_data());
            assert_eq!(last.authorized.principal_of(&first.operator), None);
            assert_eq!(last.authorized.len(), 3);
            for (node, old) in &first.clients {
                assert_eq!(last.authorized.node_of(old), None, "{node}'s old key");
                let public = read_public_key(&layout.client_public_key(node)).unwrap();
                assert_eq!(last.authorized.node_of(&public), Some(node));
            }
            if whole {
                break;
            }
        }
    }
    // Each key is made, kept, moved and forgotten, and each list is written more than once.
    assert!(cuts > 30, "{cuts}");
}

#[test]
fn one_node_s_key_is_rotated_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let layout = ClusterKeys::new(directory.path());
    let nodes = names(&["a", "b"]);
    let mut fleet = Fleet::new(&layout, &nodes);
    rotate(&layout, &mut fleet, false, &nodes[..1], &Disk).unwrap();
    let (first, last) = (&fleet.brought[0], Snapshot::take(&layout, &nodes));
    assert_eq!(first.host_key.key_data(), last.host_key.key_data());
    let changed = |node| first.clients[node].key_data() != last.clients[node].key_data();
    assert!(changed(&nodes[0]) && !changed(&nodes[1]));
}

#[test]
fn nodes_may_come_and_go_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let layout = ClusterKeys::new(directory.path());
    let mut fleet = Fleet::new(&layout, &names(&["a", "b"]));
    begin_rotation(&layout, &fleet.nodes, true, &fleet.nodes).unwrap();
    fleet.bring(&layout);
    fleet.nodes = names(&["b", "c"]);
    ensure_cluster_keys(&layout, &fleet.nodes).unwrap();
    fleet.brought = vec![Snapshot::take(&layout, &fleet.nodes)];
    rotate(&layout, &mut fleet, true, &names(&["b", "c"]), &Disk).unwrap();
    let last = Snapshot::take(&layout, &fleet.nodes);
    let node_a = layout.client_key(&"a".parse().unwrap());
    let gone = read_private_key(&node_a).unwrap();
    assert_eq!(last.authorized.node_of(gone.public_key()), None);
    let waiting = read_private_key(&next_of(&node_a)).unwrap();
    assert_eq!(last.authorized.node_of(waiting.public_key()), None);
}

#[test]
fn a_rotation_that_is_under_way_is_resumed_as_it_was_begun() {
    let directory = tempfile::tempdir().unwrap();
    let layout = ClusterKeys::new(directory.path());
    let nodes = names(&["a", "b"]);
    ensure_cluster_keys(&layout, &nodes).unwrap();
    let begun = begin_rotation(&layout, &nodes, false, &nodes[..1]).unwrap();
    let key = fs::read(next_of(&layout.client_key(&nodes[0]))).unwrap();
    let resumed = begin_rotation(&layout, &nodes, true, &nodes).unwrap();
    assert_eq!(resumed, begun);
    assert_eq!(
        fs::read(next_of(&layout.client_key(&nodes[0]))).unwrap(),
        key
    );
    let stage = |rotation: Option<Rotation>| rotation.map(|rotation| rotation.stage);
    for next in [Some(Stage::Switch), Some(Stage::Retire), None, None] {
        assert_eq!(stage(advance_rotation(&layout, &nodes).unwrap()), next);
        assert_eq!(stage(read_rotation(&layout).unwrap()), next);
    }
}

#[test]
fn a_record_that_cannot_be_read_stops_everything() {
    let directory = tempfile::tempdir().unwrap();
    let layout = ClusterKeys::new(directory.path());
    ensure_cluster_keys(&layout, &[]).unwrap();
    for damaged in [
        "",
        "{}",
        r#"{"schema":2,"stage":"switch","host":true,"nodes":[]}"#,
    ] {
        fs::write(layout.rotation(), damaged).unwrap();
        assert!(ensure_cluster_keys(&layout, &[]).is_err(), "{damaged}");
        assert!(
            begin_rotation(&layout, &[], true, &[]).is_err(),
            "{damaged}"
        );
    }
}
