//! Who gets the servers' token, and who does not whatever they ask.

use std::fs;

use orch_contract::{JoinResponse, NodeName, RefusalReason, Role};
use orch_ssh::client::JoinError;
use orch_ssh::keys::ensure_cluster_keys;

use crate::support::{Cluster, SERVER_DATA, SERVER_TOKEN};

fn reason(error: &JoinError) -> RefusalReason {
    match error {
        JoinError::Refused { reason, .. } => *reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_s_key_gets_the_servers_token_which_is_told_by_its_own_word_and_nowhere_seen() {
    let cluster = Cluster::start();
    let grant = cluster.ask("second").unwrap();
    assert_eq!(grant.token.expose(), SERVER_TOKEN.trim());
    assert_eq!((grant.role, grant.expires_at), (Role::Server, None));
    let (log, calls) = (cluster.log(), cluster.calls());
    assert!(log.contains(r#""audit":"server_granted""#), "{log}");
    assert!(!log.contains(r#""audit":"granted""#), "{log}");
    assert!(
        calls.contains("delete node second --ignore-not-found"),
        "{calls}"
    );
    assert!(
        calls.contains("delete secret second.node-password.k3s"),
        "{calls}"
    );
    assert!(!calls.contains("token create"), "{calls}");
    assert!(!log.contains("secretofservers") && !calls.contains("secretofservers"));
    cluster.ask_facts(&cluster.keys.operator_key()).unwrap();
}

#[test]
fn an_agent_s_key_never_gets_it_whatever_the_request_says() {
    let cluster = Cluster::start();
    let grant = cluster.ask("agent").unwrap();
    assert_eq!(grant.role, Role::Agent);
    assert!(!grant.token.is_a_servers());
    // A role is nothing that a request may name.
    for request in [
        r#"{"schema":1,"node":"agent","role":"server"}"#,
        r#"{"schema":1,"node":"server:agent"}"#,
        r#"{"schema":1,"node":"server:second"}"#,
    ] {
        let output = cluster.ssh("agent", &[], &["orch-join"], request);
        let JoinResponse::Refused(refusal) = JoinResponse::parse(&output.stdout).unwrap() else {
            panic!("{request} was granted");
        };
        assert_eq!(refusal.reason, RefusalReason::BadRequest, "{request}");
    }
    let as_server = cluster.ask_as(cluster.server_for("agent"), "second");
    assert_eq!(reason(&as_server.unwrap_err()), RefusalReason::WrongNode);
    let log = cluster.log();
    assert!(
        !log.contains("server_granted") && !log.contains("secretofservers"),
        "{log}"
    );
}

#[test]
fn a_server_that_the_host_made_an_agent_gets_an_agent_s_token_from_then_on() {
    let cluster = Cluster::start();
    cluster.ask("second").unwrap();
    let nodes: [NodeName; 2] = ["agent", "second"].map(|name| name.parse().unwrap());
    ensure_cluster_keys(&cluster.keys, &nodes).unwrap();
    let grant = cluster.ask("second").unwrap();
    assert_eq!(grant.role, Role::Agent);
    assert!(!grant.token.is_a_servers());
}

#[test]
fn a_server_without_a_cluster_says_so_and_one_in_sqlite_lets_nobody_in() {
    let cluster = Cluster::start();
    let database = cluster.path(SERVER_DATA).join("db");
    fs::remove_dir_all(database.join("etcd")).unwrap();
    let error = cluster.ask("second").unwrap_err();
    assert!(error.is_no_cluster(), "{error:?}");
    fs::write(database.join("state.db"), "").unwrap();
    let error = cluster.ask("second").unwrap_err();
    assert_eq!(reason(&error), RefusalReason::NotReady);
    // Agents join either.
    cluster.ask("agent").unwrap();
    assert!(!cluster.log().contains("server_granted"));
}
