//! Whom a node asks, what it makes of the answers, and when it asks nobody.

use orch_contract::{ClusterKeys, Event, NodeConfig, NodeName, RefusalReason};
use orch_runner::{Recorder, Runner, error_chain};
use orch_ssh::client::JoinError;
use orch_ssh::keys::ensure_cluster_keys;
use std::time::Instant;

use super::ask::{LONGEST_RETRY_AFTER, Patience};
use super::*;
use crate::testing::grants::Grants;
use crate::testing::{Machine, agent_config};

/// A real join service on the loopback interface, and an agent's configuration for it.
async fn serve(directory: &Path) -> (NodeConfig, Grants) {
    let layout = ClusterKeys::new(directory);
    let node: NodeName = "agent".parse().unwrap();
    ensure_cluster_keys(&layout, std::slice::from_ref(&node)).unwrap();
    let grants = Grants::late(&layout).await;
    let mut config = agent_config();
    config.servers.first.address = "127.0.0.1".parse().unwrap();
    config.servers.first.join_port = grants.port;
    config.join.client_key = layout.client_key(&node);
    config.join.known_host = layout.host_public_key();
    (config, grants)
}

#[tokio::test]
async fn the_token_is_asked_for_until_the_server_is_ready_and_never_reported() {
    let directory = tempfile::tempdir().unwrap();
    let (config, _server) = serve(directory.path()).await;
    let machine = Machine::fit();
    let recorder = Recorder::default();
    let step = RequestJoin {
        context: machine.context(&config),
        is_new_cluster: false,
    };
    let membership = Runner::new(&recorder, false).run(&step).await.unwrap();
    assert!(membership.is_new);
    assert_eq!(membership.place, Place::Joined(config.servers.first.url()));
    assert_eq!(
        machine.files.text(paths::JOIN_TOKEN).unwrap(),
        "K10abc::id.topsecret"
    );
    let mode = machine.files.mode(Path::new(paths::JOIN_TOKEN)).unwrap();
    assert_eq!(mode, Some(0o600));
    let events = recorder.events();
    assert!(events.iter().any(|event| matches!(
        event,
        Event::Waiting { observed, .. } if observed.contains("K3s is starting")
    )));
    assert!(
        !serde_json::to_string(&events)
            .unwrap()
            .contains("topsecret")
    );
}

#[tokio::test]
async fn another_server_key_is_final_and_names_both() {
    let directory = tempfile::tempdir().unwrap();
    let (mut config, _server) = serve(directory.path()).await;
    let other = ClusterKeys::new(directory.path().join("other"));
    ensure_cluster_keys(&other, &[]).unwrap();
    config.join.known_host = other.host_public_key();
    let machine = Machine::fit();
    let recorder = Recorder::default();
    let step = RequestJoin {
        context: machine.context(&config),
        is_new_cluster: false,
    };
    let failure = Runner::new(&recorder, false).run(&step).await.unwrap_err();
    assert_eq!(failure.exit_code, ExitCode::Join);
    let message = error_chain(failure.error()).join(": ");
    assert_eq!(message.matches("SHA256:").count(), 2, "{message}");
    assert_eq!(machine.files.text(paths::JOIN_TOKEN), None);
}

#[test]
fn a_service_that_wants_to_be_left_alone_is() {
    let refused = |reason, seconds| JoinError::Refused {
        reason,
        message: "again later".to_owned(),
        retry_after: Some(Duration::from_secs(seconds)),
    };
    let mut patience = Patience::default();
    let now = Instant::now();
    assert_eq!(patience.hold(now), None);
    let said = patience.judge(&refused(RefusalReason::RateLimited, 7), now);
    assert!(said.unwrap().contains("again later"));
    assert!(patience.hold(now + Duration::from_secs(6)).is_some());
    assert_eq!(patience.hold(now + Duration::from_secs(7)), None);
    // Not for ever, and not for a reason that time does not change.
    patience.judge(&refused(RefusalReason::RateLimited, u64::MAX), now);
    assert_eq!(patience.hold(now + LONGEST_RETRY_AFTER), None);
    assert_eq!(
        patience.judge(&refused(RefusalReason::WrongNode, 7), now),
        None
    );
}

#[tokio::test]
async fn a_node_that_has_joined_does_not_ask_again() {
    let machine = Machine::fit();
    let config = agent_config();
    let step = RequestJoin {
        context: machine.context(&config),
        is_new_cluster: false,
    };
    machine.files.put(paths::JOIN_TOKEN, "t", 0o600);
    machine.files.put(
        paths::KUBELET_KUBECONFIG,
        "users:\n- name: default\n  user:\n    client-certificate: /data/client-kubelet.crt\n",
        0o600,
    );
    // The kubeconfig alone is written before the server has answered.
    assert!(matches!(step.of_agent().unwrap(), Situation::Asks(_)));
    machine.files.put("/data/client-kubelet.crt", "cert", 0o600);
    assert!(matches!(step.of_agent().unwrap(), Situation::Member(_)));
    machine.files.put(paths::JOIN_TOKEN, "t", 0o644);
    let Situation::Asks(reason) = step.of_agent().unwrap() else {
        panic!("others can read it");
    };
    assert!(reason.contains("read by others"), "{reason}");
}
