//! What peers can cost the join service: connections, silence, failures, requests; over both families.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::{Cluster, PORT, STRANGER, block_on};
use orch_contract::{NodeName, RefusalReason};
use orch_ssh::client::{JoinError, Server, request_join};
use orch_ssh::keys::ensure_cluster_keys;

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
    cluster.ask("agent").unwrap();
}

#[test]
fn one_address_does_not_take_the_others_places_or_their_credit() {
    let cluster = Cluster::start();
    let held: Vec<_> = (0..20).map(|_| connect_as_stranger(&cluster)).collect();
    cluster.until("busy", || cluster.log().contains(r#""audit":"busy""#));
    cluster.ask("agent").unwrap();
    drop(held);
    // Whoever fails again and again is not even greeted any more.
    cluster.until("throttled", || {
        let mut greeting = [0; 4];
        let read = connect_as_stranger(&cluster).read(&mut greeting);
        !matches!(read, Ok(1..))
    });
    assert!(
        cluster.log().contains(r#""audit":"throttled""#),
        "{}",
        cluster.log()
    );
    cluster.ask("agent").unwrap();
}

#[test]
fn a_peer_that_sends_a_byte_now_and_then_is_cut_off() {
    let cluster = Cluster::start();
    let mut slow = cluster.connect().unwrap();
    let banner = b"SSH-2.0-slow".iter().chain(std::iter::repeat(&b'x'));
    slow.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // A server that never hung up would read all of this, longer than any handshake may take.
    let mut sent = 0;
    for byte in banner.take(120) {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        sent += 1;
        let mut answer = [0; 256];
        if matches!(slow.read(&mut answer), Ok(0)) {
            break;
        }
    }
    assert!(sent < 120, "the service went on listening");
    cluster.until("audited", || {
        cluster.log().contains(r#""audit":"unauthenticated""#)
    });
    cluster.ask("agent").unwrap();
}

/// All behind one address, as agents behind a gateway are: far more than it has places for.
#[test]
fn a_hundred_agents_that_ask_at_once_are_all_served() {
    let cluster = Cluster::start();
    let nodes: Vec<NodeName> = (0..100)
        .map(|number| format!("agent-{number}").parse().unwrap())
        .collect();
    ensure_cluster_keys(&cluster.keys, &nodes).unwrap();
    let agents: Vec<_> = nodes
        .iter()
        .map(|node| (cluster.server_for(node.as_str()), node.clone()))
        .collect();
    let granted = cluster.in_agent(move || {
        block_on(async {
            let mut asking = tokio::task::JoinSet::new();
            for (server, node) in agents {
                asking.spawn(async move {
                    loop {
                        match request_join(&server, &node).await {
                            Ok(grant) => return grant,
                            Err(error) => assert!(error.is_transient(), "{error:?}"),
                        }
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                });
            }
            asking.join_all().await
        })
    });
    let out = cluster.tokens();
    assert_eq!(out.lines().count(), nodes.len(), "{out}");
    for grant in granted {
        assert!(out.contains(grant.token.id().unwrap()), "{}", grant.node);
    }
}

#[test]
fn a_node_that_asks_nothing_is_cut_off() {
    let cluster = Cluster::start();
    let mut ssh = cluster
        .ssh_command("agent", &[], &["orch-join"])
        .spawn()
        .unwrap();
    // Open, and nothing comes: `timeout` would end it with 124.
    let input = ssh.stdin.take();
    let ended = ssh.wait().unwrap();
    assert_eq!(ended.code(), Some(255), "{}", cluster.log());
    drop(input);
    cluster.ask("agent").unwrap();
}

#[test]
fn noise_instead_of_ssh_harms_nobody() {
    let cluster = Cluster::start();
    for noise in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![0xff; 100_000],
        [b"SSH-2.0-x\r\n".to_vec(), vec![0x7f; 100_000]].concat(),
        [b"SSH-1.5-x\r\n".to_vec(), vec![0; 4]].concat(),
    ] {
        let mut stream = cluster.connect().unwrap();
        // The service may hang up in the middle of it.
        let _ = stream.write_all(&noise);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    cluster.ask("agent").unwrap();
}

#[test]
fn a_node_that_asks_all_the_time_is_told_when_to_ask_again() {
    let cluster = Cluster::start();
    let refused = (0..100).find_map(|_| cluster.ask("agent").err()).unwrap();
    assert!(
        matches!(
            &refused,
            JoinError::Refused {
                reason: RefusalReason::RateLimited,
                ..
            }
        ),
        "{refused:?}"
    );
    assert!(refused.is_transient());
    assert!(refused.retry_after().unwrap() > Duration::ZERO);
    let minted = cluster.minted().len();
    assert!(minted >= 10, "{minted}");
    // Another node is not this one's concern.
    cluster.ask("other").unwrap();
}

#[test]
fn both_families_are_served_and_told_apart() {
    let cluster = Cluster::start();
    let address: SocketAddr = format!("[fd07::1]:{PORT}").parse().unwrap();
    let server = Server {
        address,
        ..cluster.server_for("agent")
    };
    cluster.ask_as(server, "agent").unwrap();
    cluster.ask("agent").unwrap();
    let log = cluster.log();
    assert!(log.contains(r#""peer":"[fd07::2]:"#), "{log}");
    assert!(log.contains(r#""peer":"10.231.7.2:"#), "{log}");
    assert!(!log.contains("ffff:"), "{log}");
    let option = "HostKeyAlias=[10.231.7.1]:6222";
    let request = "{\"schema\":1,\"node\":\"agent\"}\n";
    let options = ["-6", "-o", "HostName=fd07::1", "-o", option];
    let output = cluster.ssh("agent", &options, &["orch-join"], request);
    assert!(output.status.success(), "{output:?}");
}

/// As in most containers.
#[test]
fn a_server_whose_ipv6_is_switched_off_serves_ipv4() {
    let mut cluster = Cluster::start();
    let switched = cluster
        .in_server("sysctl")
        .args(["--write", "net.ipv6.conf.all.disable_ipv6=1"])
        .output()
        .unwrap();
    assert!(switched.status.success(), "{switched:?}");
    cluster.restart_service();
    cluster.ask("agent").unwrap();
    let log = cluster.log();
    assert!(log.contains(r#""peer":"10.231.7.2:"#), "{log}");
}

fn connect_as_stranger(cluster: &Cluster) -> TcpStream {
    let address = cluster.socket();
    let stream = cluster.in_agent(move || {
        block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            let source = SocketAddr::new(STRANGER.parse().unwrap(), 0);
            socket.bind(source).unwrap();
            socket.connect(address).await.unwrap().into_std().unwrap()
        })
    });
    stream.set_nonblocking(false).unwrap();
    stream
}
