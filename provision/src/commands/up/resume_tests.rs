//! A run that is killed at any moment is resumed by the next one.
//!
//! Nothing here knows a step: a run that is left alone is counted, then one run is killed at each of its accesses to the
//! machine and run again. A step that is added is covered by that.

use orch_contract::Role;
use orch_runner::Recorder;

use crate::k3s::paths;
use crate::system::{Services, sha256_hex};
use crate::testing::cut::{Cut, until_killed};
use crate::testing::node::{Node, State, lines};

/// How a node is before the run that is killed.
#[derive(Clone, Copy, Debug)]
enum Start {
    Empty,
    /// Provisioned; then these files were changed by hand, and K3s restarted with them.
    Edited(&'static [&'static str]),
    /// Provisioned, and then given another configuration and version.
    Reconfigured,
}

async fn node(role: Role, start: Start) -> Node {
    let mut node = Node::with_storage(role).await;
    if !matches!(start, Start::Empty) {
        if role == Role::Agent {
            node.join();
        }
        node.up(false).await;
    }
    let files = &node.machine.files;
    match start {
        Start::Empty => {}
        Start::Edited(paths) => {
            for path in paths {
                files.put(path, "edited: by hand\n", 0o644);
            }
            node.reload().await.unwrap();
            node.begin_restart(node.unit()).await.unwrap();
        }
        Start::Reconfigured => {
            node.config.k3s.kubelet_args = vec!["max-pods=50".to_owned()];
            files.put("/var/lib/orch/artifacts/k3s", "NEW", 0o644);
            let sum = sha256_hex(b"NEW");
            node.config.artifacts.sha256.insert("k3s".to_owned(), sum);
        }
    }
    node.take_done();
    node
}

fn restarts(done: &[String], unit: &str) -> usize {
    let restart = format!("restart {unit}");
    done.iter().filter(|line| **line == restart).count()
}

/// Kills a run after so many accesses; then lets one run to the end, which must leave nothing for another.
async fn resumed(role: Role, start: Start, accesses: usize) -> Option<(Node, State)> {
    let node = node(role, start).await;
    let killed = {
        let cut = Cut::after(node.system(), accesses);
        let run = node.run(cut.system(), &cut, false);
        until_killed(run).await.is_none()
    };
    if !killed {
        return None;
    }
    let recorder = Recorder::default();
    let whole = Cut::after(node.system(), usize::MAX);
    let outcome = node.run(whole.system(), &recorder, false).await;
    if let Err(failure) = outcome {
        panic!(
            "{role} {start:?} killed after {accesses}: {:?}\n{:#?}",
            orch_runner::error_chain(failure.error()),
            recorder.events()
        );
    }
    let state = node.state_of_all();
    Some((node, state))
}

async fn every_cut_converges(role: Role, start: Start) {
    let left_alone = node(role, start).await;
    let cut = Cut::after(left_alone.system(), usize::MAX);
    left_alone.run(cut.system(), &cut, false).await.unwrap();
    let (total, expected) = (cut.accesses(), left_alone.state_of_all());
    let unit = left_alone.unit();
    assert_eq!(restarts(&left_alone.take_done(), unit), 1);
    let joined = left_alone.granted();
    assert!(total > 50, "{total} accesses are no whole run");
    let mut twice = Vec::new();
    for accesses in 0..total {
        let (node, state) = resumed(role, start, accesses).await.unwrap();
        state.assert_is(
            &expected,
            &format!("{role} {start:?} killed after {accesses}"),
        );
        let [running, wanted] = node.running_and_wanted();
        assert_eq!(running, wanted, "killed after {accesses}");
        assert!(node.granted() <= joined + 1, "killed after {accesses}");
        let again = node.up(true).await;
        assert_eq!(
            lines(&again),
            Vec::<String>::new(),
            "killed after {accesses}"
        );
        match restarts(&node.take_done(), unit) {
            1 => {}
            2 => twice.push(accesses),
            other => panic!("{other} restarts, killed after {accesses}"),
        }
    }
    // Between a restart and its record: reading the record, and writing it in two steps.
    assert!(twice.len() <= 3, "restarted twice after {twice:?} accesses");
}

#[tokio::test]
async fn a_new_server() {
    every_cut_converges(Role::Server, Start::Empty).await;
}

/// One by one: what mends one of them must not depend on another.
#[tokio::test]
async fn a_server_whose_configuration_was_edited() {
    every_cut_converges(Role::Server, Start::Edited(&[paths::CONFIG])).await;
}

#[tokio::test]
async fn a_server_whose_unit_was_edited() {
    let edited = &["/etc/systemd/system/k3s.service"];
    every_cut_converges(Role::Server, Start::Edited(edited)).await;
}

#[tokio::test]
async fn a_server_whose_binary_was_replaced() {
    every_cut_converges(Role::Server, Start::Edited(&[paths::BINARY])).await;
}

#[tokio::test]
async fn a_server_that_is_reconfigured() {
    every_cut_converges(Role::Server, Start::Reconfigured).await;
}

#[tokio::test]
async fn a_new_agent() {
    every_cut_converges(Role::Agent, Start::Empty).await;
}

#[tokio::test]
async fn an_agent_that_was_edited() {
    let edited = &[
        paths::CONFIG,
        paths::REGISTRIES,
        paths::BINARY,
        "/etc/systemd/system/k3s-agent.service",
    ];
    every_cut_converges(Role::Agent, Start::Edited(edited)).await;
}

#[tokio::test]
async fn an_agent_that_is_reconfigured() {
    every_cut_converges(Role::Agent, Start::Reconfigured).await;
}
