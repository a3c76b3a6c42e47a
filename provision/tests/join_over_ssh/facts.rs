//! What the operator may ask, who else may not, and what rotated keys do to all of them.

use std::fs;
use std::path::Path;

use orch_contract::{ClusterKeys, NodeName};
use orch_ssh::client::{JoinError, Server};
use orch_ssh::keys::{advance_rotation, begin_rotation, ensure_cluster_keys, read_known_host};

use crate::support::Cluster;

#[test]
fn the_operator_is_told_what_the_server_is() {
    let cluster = Cluster::start();
    let facts = cluster.ask_facts(&cluster.keys.operator_key()).unwrap();
    assert_eq!(facts.machine.architecture, std::env::consts::ARCH);
    assert!(facts.provisioner.sha256.is_some(), "{facts:?}");
    let log = cluster.log();
    assert!(log.contains(r#""audit":"shown""#), "{log}");
    let output = cluster
        .ssh_command_with(&cluster.keys.operator_key(), &[], &["orch-facts"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
}

#[test]
fn nodes_may_not_ask_what_the_operator_may_nor_the_operator_what_nodes_may() {
    let cluster = Cluster::start();
    let node = cluster.keys.client_key(&"agent".parse().unwrap());
    let error = cluster.ask_facts(&node).unwrap_err();
    assert!(matches!(error, JoinError::NotOffered { .. }), "{error:?}");
    let operator = cluster.server(&cluster.keys.operator_key());
    let error = cluster.ask_as(operator, "agent").unwrap_err();
    assert!(matches!(error, JoinError::NotOffered { .. }), "{error:?}");
    assert_eq!(cluster.calls(), "");
    let strangers = ClusterKeys::new(cluster.path("strangers"));
    ensure_cluster_keys(&strangers, &[]).unwrap();
    let error = cluster.ask_facts(&strangers.operator_key()).unwrap_err();
    assert!(matches!(error, JoinError::KeyRejected { .. }), "{error:?}");
}

#[test]
fn an_operator_that_asks_all_the_time_is_told_to_wait() {
    let cluster = Cluster::start();
    let key = cluster.keys.operator_key();
    let refused = (0..100)
        .find_map(|_| cluster.ask_facts(&key).err())
        .unwrap();
    assert!(refused.to_string().contains("again in"), "{refused}");
    // Nodes join meanwhile.
    cluster.ask("agent").unwrap();
}

/// The service reads the cluster's own key files here, so they are brought to it at once; agents get
/// theirs when they get to it.
#[test]
fn everybody_can_join_throughout_a_rotation_of_all_keys() {
    let cluster = Cluster::start();
    let (keys, service) = (&cluster.keys, cluster.service_id());
    let nodes: [NodeName; 2] = ["agent", "other"].map(|name| name.parse().unwrap());
    let agents_files = |name: &str| {
        let copy = cluster.path(name);
        fs::create_dir(&copy).unwrap();
        fs::copy(keys.known_host(), copy.join("known")).unwrap();
        fs::copy(keys.client_key(&nodes[0]), copy.join("key")).unwrap();
        copy
    };
    let ask = |files: &Path| {
        let server = Server {
            server_keys: read_known_host(&files.join("known")).unwrap(),
            ..cluster.server(&files.join("key"))
        };
        cluster.ask_as(server, "agent")
    };
    let mut before = agents_files("before");
    let first = before.clone();
    begin_rotation(keys, &nodes, true, &nodes).unwrap();
    for stage in ["introduced", "switched", "retired", "over"] {
        let now = agents_files(stage);
        ask(&before).unwrap();
        ask(&now).unwrap();
        before = now;
        advance_rotation(keys, &nodes).unwrap();
    }
    let error = ask(&first).unwrap_err();
    assert!(matches!(error, JoinError::HostKey { .. }), "{error:?}");
    cluster.ask_facts(&keys.operator_key()).unwrap();
    assert_eq!(cluster.service_id(), service);
}
