//! The join over real SSH between two network namespaces: who gets a token, who does not, and that
//! the service does nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use orch_contract::{ClusterKeys, JoinGrant, JoinResponse, RefusalReason};
use orch_ssh::client::{Join, JoinError, request_join};
use orch_ssh::keys::{ensure_cluster_keys, read_private_key, read_public_key};
use support::Cluster;

/// Asks as a node: with the key of one node and the name of another, if so told.
fn ask(
    cluster: &Cluster,
    keys: &ClusterKeys,
    key_of: &str,
    name: &str,
) -> Result<JoinGrant, JoinError> {
    let join = Join {
        address: cluster.socket(),
        server_key: read_public_key(&cluster.keys.host_public_key()).unwrap(),
        client_key: Arc::new(read_private_key(&keys.client_key(&key_of.parse().unwrap())).unwrap()),
        node: name.parse().unwrap(),
    };
    ask_with(cluster, join)
}

fn ask_with(cluster: &Cluster, join: Join) -> Result<JoinGrant, JoinError> {
    cluster.in_agent(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(request_join(&join))
    })
}

#[test]
fn a_nodes_key_gets_a_token_of_its_own_that_appears_nowhere_else() {
    let cluster = Cluster::start();
    let first = ask(&cluster, &cluster.keys, "agent", "agent").unwrap();
    let second = ask(&cluster, &cluster.keys, "agent", "agent").unwrap();
    assert_eq!(first.node.as_str(), "agent");
    assert_eq!(first.server_url, "https://10.231.7.1:6443");
    assert_eq!(
        cluster.minted(),
        [first.token.expose(), second.token.expose()],
        "each join has a token of its own"
    );

    let calls = cluster.calls();
    assert!(
        calls.contains("token create --ttl 600s --description orch: join of node agent\n"),
        "{calls}"
    );
    assert!(
        calls.contains("delete secret agent.node-password.k3s"),
        "{calls}"
    );
    let log = cluster.log();
    assert_eq!(log.matches(r#""audit":"granted""#).count(), 2, "{log}");
    assert!(
        log.contains(r#""node":"agent""#) && log.contains("10.231.7.2:"),
        "{log}"
    );
    let command_line = fs::read(format!("/proc/{}/cmdline", cluster.service_id())).unwrap();
    for token in cluster.minted() {
        let (_, secret) = token.rsplit_once('.').unwrap();
        assert!(!log.contains(secret), "{log}");
        assert!(!calls.contains(secret), "{calls}");
        assert!(!String::from_utf8_lossy(&command_line).contains(secret));
        assert!(!format!("{first:?} {second:?}").contains(secret));
    }
}

#[test]
fn an_unknown_key_is_refused() {
    let cluster = Cluster::start();
    let strangers = ClusterKeys::new(cluster.path("strangers"));
    ensure_cluster_keys(&strangers, &["agent".parse().unwrap()]).unwrap();
    let error = ask(&cluster, &strangers, "agent", "agent").unwrap_err();
    assert!(matches!(error, JoinError::KeyRejected { .. }), "{error:?}");
    assert!(!error.is_transient());
    assert!(
        cluster.log().contains(r#""audit":"key_rejected""#),
        "{}",
        cluster.log()
    );
    assert_eq!(cluster.calls(), "");
}

#[test]
fn a_server_with_another_key_is_not_told_anything() {
    let cluster = Cluster::start();
    let impostor = ClusterKeys::new(cluster.path("impostor"));
    ensure_cluster_keys(&impostor, &[]).unwrap();
    let node = "agent".parse().unwrap();
    let join = Join {
        address: cluster.socket(),
        server_key: read_public_key(&impostor.host_public_key()).unwrap(),
        client_key: Arc::new(read_private_key(&cluster.keys.client_key(&node)).unwrap()),
        node,
    };
    let error = ask_with(&cluster, join).unwrap_err();
    assert!(matches!(error, JoinError::HostKey { .. }), "{error:?}");
    assert_eq!(error.to_string().matches("SHA256:").count(), 2, "{error}");
    assert!(!error.is_transient());
    assert_eq!(cluster.calls(), "");
    assert_eq!(cluster.log(), "");
}

#[test]
fn the_key_decides_which_node_it_is() {
    let cluster = Cluster::start();
    let error = ask(&cluster, &cluster.keys, "other", "agent").unwrap_err();
    assert!(
        matches!(
            &error,
            JoinError::Refused {
                reason: RefusalReason::WrongNode,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(cluster.calls(), "");
}

#[test]
fn a_node_that_is_taken_off_the_list_is_refused_without_a_restart() {
    let cluster = Cluster::start();
    ask(&cluster, &cluster.keys, "other", "other").unwrap();
    ensure_cluster_keys(&cluster.keys, &["agent".parse().unwrap()]).unwrap();
    let error = ask(&cluster, &cluster.keys, "other", "other").unwrap_err();
    assert!(matches!(error, JoinError::KeyRejected { .. }), "{error:?}");
    ask(&cluster, &cluster.keys, "agent", "agent").unwrap();
    // A list that cannot be read lets nobody in.
    fs::write(cluster.keys.authorized_keys(), "nonsense\n").unwrap();
    assert!(ask(&cluster, &cluster.keys, "agent", "agent").is_err());
    assert!(
        cluster.log().contains("authorized_keys_unusable"),
        "{}",
        cluster.log()
    );
}

#[test]
fn a_k3s_that_is_not_up_is_worth_another_try() {
    let cluster = Cluster::start();
    fs::remove_file(cluster.path("etc/rancher/k3s/k3s.yaml")).unwrap();
    let error = ask(&cluster, &cluster.keys, "agent", "agent").unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(cluster.calls(), "");
}

#[test]
fn openssh_can_join_and_do_nothing_else() {
    let cluster = Cluster::start();
    let request = "{\"schema\":1,\"node\":\"agent\"}\n";
    let joined = cluster.ssh("agent", &[], &["orch-join"], request);
    assert!(joined.status.success(), "{joined:?}");
    let response = JoinResponse::parse(&joined.stdout).unwrap();
    assert!(matches!(response, JoinResponse::Granted(_)));
    let calls = cluster.calls();

    let refused: [(&str, &[&str], &[&str]); 8] = [
        ("a shell", &[], &[]),
        ("a terminal", &["-tt"], &[]),
        ("a command", &[], &["id"]),
        ("a command behind the join", &[], &["orch-join; id"]),
        ("a path to the join", &[], &["/usr/local/bin/orch-join"]),
        ("a subsystem", &["-s"], &["sftp"]),
        ("forwarding to a port", &["-W", "127.0.0.1:6222"], &[]),
        (
            "forwarding from a port",
            &[
                "-N",
                "-R",
                "7777:127.0.0.1:22",
                "-o",
                "ExitOnForwardFailure=yes",
            ],
            &[],
        ),
    ];
    for (what, options, command) in refused {
        let output = cluster.ssh("agent", options, command, request);
        // 124 is `timeout`'s: a refusal is an answer, not silence.
        let status = output.status.code();
        assert!(
            status != Some(0) && status != Some(124),
            "{what}: {output:?}"
        );
        assert_eq!(output.stdout, b"", "{what}");
    }
    assert_eq!(cluster.calls(), calls, "nothing was minted for any of them");

    for methods in ["password,keyboard-interactive", "none", "hostbased"] {
        let option = format!("PreferredAuthentications={methods}");
        let output = cluster.ssh("agent", &["-o", &option], &["orch-join"], request);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            message.contains("Permission denied (publickey)"),
            "{message}"
        );
    }
    let log = cluster.log();
    for what in [
        "a shell",
        "the command",
        "the subsystem sftp",
        "forwarding to",
        "forwarding from",
    ] {
        assert!(log.contains(what), "{what} is not in the audit: {log}");
    }
}

#[test]
fn requests_that_are_none_are_refused() {
    let cluster = Cluster::start();
    let oversized = "x".repeat(10_000);
    for request in [
        "",
        "\n",
        "nonsense\n",
        "{\"schema\":9,\"node\":\"agent\"}\n",
        &oversized,
    ] {
        let output = cluster.ssh("agent", &[], &["orch-join"], request);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let response = JoinResponse::parse(&output.stdout).unwrap();
        assert!(
            matches!(&response, JoinResponse::Refused(refusal) if refusal.reason == RefusalReason::BadRequest),
            "{response:?}"
        );
    }
    assert_eq!(cluster.calls(), "");
}

#[test]
fn idle_and_greedy_peers_do_not_keep_others_out() {
    let cluster = Cluster::start();
    let mut idle: Vec<_> = (0..20).map(|_| cluster.connect().unwrap()).collect();
    let mut closed = 0;
    for stream in &mut idle {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        // The service's greeting, then the end: at once past the limit, else at the handshake's end.
        let mut greeting = Vec::new();
        let _ = stream.read_to_end(&mut greeting);
        closed += usize::from(greeting.is_empty());
    }
    assert!(closed > 0, "no connection was refused");
    assert!(
        cluster.log().contains(r#""audit":"busy""#),
        "{}",
        cluster.log()
    );
    ask(&cluster, &cluster.keys, "agent", "agent").unwrap();
}
