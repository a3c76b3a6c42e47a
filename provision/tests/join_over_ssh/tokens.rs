//! Who gets a token, who does not, and what becomes of the tokens.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};

use crate::support::Cluster;
use orch_contract::{ClusterKeys, JoinResponse, RefusalReason};
use orch_ssh::client::{JoinError, Server};
use orch_ssh::keys::{ensure_cluster_keys, read_public_key};

#[test]
fn a_nodes_key_gets_a_token_of_its_own_that_appears_nowhere_else() {
    let cluster = Cluster::start();
    let first = cluster.ask("agent").unwrap();
    let second = cluster.ask("agent").unwrap();
    assert_eq!(first.node.as_str(), "agent");
    assert_eq!(first.server_url, "https://10.231.7.1:6443");
    assert_eq!(
        cluster.minted(),
        [first.token.expose(), second.token.expose()],
        "each join has a token of its own"
    );

    // The first one died before the second was made.
    let out = cluster.tokens();
    assert_eq!(out.lines().count(), 1, "{out}");
    assert!(out.contains(second.token.id().unwrap()), "{out}");

    let calls = cluster.calls();
    assert!(
        calls.contains("token create --ttl 300s --description orch: join of node agent\n"),
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
    let node = "agent".parse().unwrap();
    ensure_cluster_keys(&strangers, std::slice::from_ref(&node)).unwrap();
    let error = cluster
        .ask_as(cluster.server(&strangers.client_key(&node)), "agent")
        .unwrap_err();
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
    let server = Server {
        server_keys: vec![read_public_key(&impostor.host_public_key()).unwrap()],
        ..cluster.server_for("agent")
    };
    let error = cluster.ask_as(server, "agent").unwrap_err();
    assert!(matches!(error, JoinError::HostKey { .. }), "{error:?}");
    assert_eq!(error.to_string().matches("SHA256:").count(), 2, "{error}");
    assert!(!error.is_transient());
    assert_eq!(cluster.calls(), "");
    let log = cluster.log();
    assert!(!log.contains("agent") && !log.contains("SHA256:"), "{log}");
}

#[test]
fn the_key_decides_which_node_it_is() {
    let cluster = Cluster::start();
    let error = cluster
        .ask_as(cluster.server_for("other"), "agent")
        .unwrap_err();
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
    cluster.ask("other").unwrap();
    ensure_cluster_keys(&cluster.keys, &["agent".parse().unwrap()]).unwrap();
    let error = cluster.ask("other").unwrap_err();
    assert!(matches!(error, JoinError::KeyRejected { .. }), "{error:?}");
    cluster.ask("agent").unwrap();
    // A list that cannot be read lets nobody in.
    fs::write(cluster.keys.authorized_keys(), "nonsense\n").unwrap();
    assert!(cluster.ask("agent").is_err());
    assert!(cluster.log().contains("keys_unusable"), "{}", cluster.log());
}

#[test]
fn a_k3s_that_is_not_up_is_worth_another_try() {
    let cluster = Cluster::start();
    fs::remove_file(cluster.path("etc/rancher/k3s/k3s.yaml")).unwrap();
    let error = cluster.ask("agent").unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert_eq!(cluster.calls(), "");
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
fn a_key_that_is_taken_off_the_list_while_connected_gets_nothing() {
    let cluster = Cluster::start();
    let mut ssh = cluster
        .ssh_command("other", &["-v"], &["orch-join"])
        .spawn()
        .unwrap();
    let mut messages = BufReader::new(ssh.stderr.take().unwrap());
    let mut message = String::new();
    while !message.contains("Authenticated to") {
        message.clear();
        assert!(
            messages.read_line(&mut message).unwrap() > 0,
            "not accepted"
        );
    }
    ensure_cluster_keys(&cluster.keys, &["agent".parse().unwrap()]).unwrap();
    let request = b"{\"schema\":1,\"node\":\"other\"}\n";
    ssh.stdin.take().unwrap().write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut output = ssh.stdout.take().unwrap();
    std::thread::spawn(move || std::io::copy(&mut messages, &mut std::io::sink()));
    output.read_to_end(&mut answer).unwrap();
    ssh.wait().unwrap();
    let response = JoinResponse::parse(&answer).unwrap();
    assert!(
        matches!(&response, JoinResponse::Refused(refusal) if refusal.reason == RefusalReason::Revoked),
        "{response:?}"
    );
    assert_eq!(cluster.calls(), "");
}

#[test]
fn a_token_dies_when_its_node_has_joined_also_if_the_service_was_killed_meanwhile() {
    let mut cluster = Cluster::start();
    for restarted in [false, true] {
        let grant = cluster.ask("agent").unwrap();
        let id = grant.token.id().unwrap().to_owned();
        cluster.ask("other").unwrap();
        if restarted {
            cluster.restart_service();
        }
        let mut renewals = 0;
        cluster.until("revoked", || {
            renewals += 1;
            fs::write(
                cluster.path("record/leases"),
                format!("agent\t{renewals}\n"),
            )
            .unwrap();
            !cluster.tokens().contains(&id)
        });
        cluster.until("audited", || {
            cluster
                .log()
                .contains(&format!("token {id}: the node has joined"))
        });
        // The other node has not joined yet.
        let out = cluster.tokens();
        assert!(out.contains("orch: join of node other"), "{out}");
    }
}

#[test]
fn a_new_host_key_is_shown_without_a_restart_and_either_is_accepted() {
    let cluster = Cluster::start();
    let old = read_public_key(&cluster.keys.host_public_key()).unwrap();
    let service = cluster.service_id();
    let next = ClusterKeys::new(cluster.path("next"));
    ensure_cluster_keys(&next, &[]).unwrap();
    let new = read_public_key(&next.host_public_key()).unwrap();
    let server = || Server {
        server_keys: vec![old.clone(), new.clone()],
        ..cluster.server_for("agent")
    };
    cluster.ask_as(server(), "agent").unwrap();
    fs::rename(next.host_key(), cluster.keys.host_key()).unwrap();
    cluster.ask_as(server(), "agent").unwrap();
    let error = cluster.ask("agent").unwrap_err();
    assert!(matches!(error, JoinError::HostKey { .. }), "{error:?}");
    assert_eq!(cluster.service_id(), service);
}
