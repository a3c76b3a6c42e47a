//! What was put on a machine is taken off it again; data and what the host brought stay.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use orch_contract::Role;
use orch_runner::Recorder;

use super::*;
use crate::k3s::paths;
use crate::system::temporary;
use crate::testing::cut::{Cut, until_killed};
use crate::testing::node::{Node, lines};

/// What K3s and its pods leave on a node, apart from what provisioning wrote.
const LEFT_BY_K3S: [&str; 12] = [
    "/etc/rancher/node/password",
    "/etc/rancher/k3s/k3s.yaml",
    "/var/lib/rancher/k3s/server/db/state.db",
    "/var/lib/rancher/k3s/server/token",
    "/var/lib/rancher/k3s/agent/client-kubelet.crt",
    "/var/lib/rancher/k3s/data/abc/bin/k3s",
    "/var/lib/kubelet/pods/a/etc-hosts",
    "/var/lib/cni/networks/cbr0/10.42.0.2",
    "/run/k3s/containerd/containerd.sock",
    "/run/flannel/subnet.env",
    "/var/log/pods/a/0.log",
    "/var/log/containers/a.log",
];
/// What stays: the machine as it is set up, the shared directory, programs of packages.
const STAYS: [&str; 7] = [
    "/data/client-kubelet.crt",
    "/proc",
    "/usr/sbin/exportfs",
    "/usr/sbin/mount.nfs4",
    "/usr/local/bin/orch-provision",
    "/var/lib/orch/exported",
    "/var/lib/orch/volumes",
];

fn inventory(node: &Node) -> BTreeSet<PathBuf> {
    let everything = node.machine.files.everything();
    everything
        .into_keys()
        .filter(|path| !STAYS.iter().any(|kept| path.starts_with(kept)))
        .collect()
}

/// A node that was provisioned, ran pods, and on which a run was killed.
async fn used(role: Role) -> (Node, BTreeSet<PathBuf>) {
    let node = Node::with_storage(role).await;
    let before = inventory(&node);
    node.up(false).await;
    let files = &node.machine.files;
    for path in LEFT_BY_K3S {
        files.put(path, "left", 0o600);
    }
    for path in [
        paths::BINARY,
        "/usr/local/bin/.k3s.orch-new",
        paths::JOIN_TOKEN,
    ] {
        let path = temporary(Path::new(path));
        files.put(&path.display().to_string(), "half", 0o600);
    }
    files.put("/var/lib/orch/volumes/movies/db/row", "data", 0o600);
    (node, before)
}

#[tokio::test]
async fn nothing_is_left_but_data_and_what_the_host_brought() {
    for role in [Role::Server, Role::Agent] {
        let (node, before) = used(role).await;
        let recorder = Recorder::default();
        remove(node.system(), &recorder, false).await.unwrap();
        assert_eq!(inventory(&node), before, "{role}");
        let row = node
            .machine
            .files
            .text("/var/lib/orch/volumes/movies/db/row");
        assert_eq!(row.as_deref(), Some("data"));
        let recorder = Recorder::default();
        let outcome = remove(node.system(), &recorder, true).await.unwrap();
        assert_eq!(lines(&recorder.events()), Vec::<String>::new());
        assert_eq!(outcome, Outcome::Unchanged);
    }
}

#[tokio::test]
async fn a_removal_that_is_killed_anywhere_is_resumed() {
    let (node, before) = used(Role::Server).await;
    let cut = Cut::after(node.system(), usize::MAX);
    remove(cut.system(), &cut, false).await.unwrap();
    for accesses in 0..cut.accesses() {
        let (node, _) = used(Role::Server).await;
        let cut = Cut::after(node.system(), accesses);
        let killed = until_killed(remove(cut.system(), &cut, false)).await;
        assert!(killed.is_none(), "{accesses}");
        let recorder = Recorder::default();
        remove(node.system(), &recorder, false).await.unwrap();
        assert_eq!(inventory(&node), before, "killed after {accesses}");
    }
}

#[tokio::test]
async fn a_plan_of_a_removal_removes_nothing() {
    let (node, _) = used(Role::Server).await;
    node.take_done();
    let before = node.state_of_all();
    let recorder = Recorder::default();
    let outcome = remove(node.system(), &recorder, true).await.unwrap();
    assert_eq!(outcome, Outcome::Planned);
    node.state_of_all().assert_is(&before, "after a plan");
    assert_eq!(node.take_done(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_reset_can_be_provisioned_again() {
    let (node, _) = used(Role::Server).await;
    let expected = node.running_and_wanted();
    let recorder = Recorder::default();
    remove(node.system(), &recorder, false).await.unwrap();
    node.up(false).await;
    assert_eq!(node.running_and_wanted(), expected);
}
