//! The way to a node: jump hosts, IPv6, several addresses, programs that are connections, and dead ends.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use orch::remote::{Command, Limits, Reason, Wanted, connect, resolve_in};

use crate::support::{Network, Server, block_on_inside, run};

/// A computer, a gate, and behind it a node that only the gate reaches.
struct Behind {
    _network: Network,
    here: String,
    gate: Server,
    node: Server,
}

impl Behind {
    fn new(gate_to_node: (&str, &str)) -> Self {
        let mut network = Network::new();
        let (here, middle, far) = (
            network.add("here"),
            network.add("gate"),
            network.add("node"),
        );
        network.join("outer", (&here, "10.77.1.1/24"), (&middle, "10.77.1.2/24"));
        let (left, right) = gate_to_node;
        network.join("inner", (&middle, left), (&far, right));
        let bare = |text: &str| text.split('/').next().unwrap().parse::<IpAddr>().unwrap();
        let gate = Server::start_at(bare("10.77.1.2"), Some(&middle), "");
        let node = Server::start_at(bare(right), Some(&far), "");
        // The node knows the gate's client: one key, one list for both.
        let known = format!(
            "{}{}",
            gate.known_line("ed25519"),
            node.known_line("ed25519")
        );
        fs::write(node.path("known_hosts"), known).unwrap();
        fs::copy(node.path("user.pub"), gate.path("authorized_keys")).unwrap();
        Self {
            _network: network,
            here,
            gate,
            node,
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            jump: Some("root@10.77.1.2:22".into()),
            ..self.node.wanted()
        }
    }
}

#[test]
fn a_node_behind_a_gate_is_reached_through_it() {
    let behind = Behind::new(("10.77.2.1/24", "10.77.2.2/24"));
    block_on_inside(&behind.here, async {
        let direct = Wanted {
            jump: Some("none".into()),
            ..behind.wanted()
        };
        let error = behind.node.try_connect(&direct).await.unwrap_err();
        assert!(matches!(*error.reason, Reason::Connect { .. }), "{error}");

        let connection = behind.node.try_connect(&behind.wanted()).await.unwrap();
        let text = connection
            .succeed(&Command::new(
                "ip -o addr show dev inner; echo $SSH_CONNECTION",
            ))
            .await
            .unwrap()
            .text();
        assert!(
            text.contains("10.77.2.1") && text.contains("10.77.2.2"),
            "{text}"
        );
        // Both ways at once, more than all buffers on the way hold.
        let input = vec![7; 8_000_000];
        let command = Command::new("cat").input(input);
        let output = connection.run(&command).await.unwrap();
        assert_eq!(output.stdout.len() as u64 + output.omitted, 8_000_000);
        connection.close().await;
    });
}

#[test]
fn the_gate_is_verified_like_the_node() {
    let behind = Behind::new(("10.77.2.1/24", "10.77.2.2/24"));
    block_on_inside(&behind.here, async {
        fs::write(
            behind.node.path("known_hosts"),
            behind.node.known_line("ed25519"),
        )
        .unwrap();
        let error = behind.node.try_connect(&behind.wanted()).await.unwrap_err();
        assert_eq!(error.jump.as_deref(), Some("root@10.77.1.2:22"));
        assert!(
            matches!(*error.reason, Reason::UnknownHost { .. }),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("at the jump host root@10.77.1.2:22"),
            "{error}"
        );

        fs::write(
            behind.node.path("known_hosts"),
            behind.gate.known_line("ed25519"),
        )
        .unwrap();
        let error = behind.node.try_connect(&behind.wanted()).await.unwrap_err();
        assert_eq!(error.jump, None);
        assert!(
            matches!(*error.reason, Reason::UnknownHost { .. }),
            "{error}"
        );
    });
}

#[test]
fn a_gate_that_does_not_reach_the_node_says_so() {
    let behind = Behind::new(("10.77.2.1/24", "10.77.2.2/24"));
    block_on_inside(&behind.here, async {
        let wanted = Wanted {
            port: Some(2),
            ..behind.wanted()
        };
        let error = behind.node.try_connect(&wanted).await.unwrap_err();
        assert!(
            matches!(*error.reason, Reason::JumpRefused { .. }),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("at the jump host root@10.77.1.2:22"),
            "{error}"
        );
    });
}

#[test]
fn the_configurations_own_jump_hosts_over_ipv6() {
    let behind = Behind::new(("fd77::1/64", "fd77::2/64"));
    behind.node.configure("Host inside\n  HostName fd77::2\n  User root\n  ProxyJump gate\nHost gate\n  HostName 10.77.1.2\n  User root\n");
    let wanted = Wanted {
        name: "inside".into(),
        host: "inside".into(),
        ssh_config: Some(behind.node.path("ssh_config")),
        ..Wanted::default()
    };
    block_on_inside(&behind.here, async {
        let target = behind.node.resolve(&wanted).await;
        assert_eq!(target.address(), "root@[fd77::2]:22");
        let connection = behind.node.try_connect(&wanted).await.unwrap();
        connection.succeed(&Command::new("true")).await.unwrap();
        // The list of jump hosts may be a chain: through the gate to the gate, and then to the node.
        let chain = Wanted {
            jump: Some("gate,root@10.77.1.2".into()),
            ..wanted.clone()
        };
        behind.node.try_connect(&chain).await.unwrap().close().await;
    });
}

#[test]
fn link_local_addresses_have_their_interface_with_them() {
    let mut network = Network::new();
    let (here, far) = (network.add("here"), network.add("node"));
    network.join("wire", (&here, "fe80::77:1/64"), (&far, "fe80::77:2/64"));
    network.join("other", (&here, "10.77.3.1/24"), (&far, "10.77.3.2/24"));
    let mut server = Server::start_at(
        "10.77.3.2".parse().unwrap(),
        Some(&far),
        "ListenAddress fe80::77:2%wire",
    );
    fs::write(
        server.path("known_hosts"),
        server
            .known_line("ed25519")
            .replace("10.77.3.2", "fe80::77:2%wire"),
    )
    .unwrap();
    let wanted = Wanted {
        host: "fe80::77:2%wire".into(),
        ..server.wanted()
    };
    block_on_inside(&here, async {
        let connection = server.try_connect(&wanted).await.unwrap();
        connection.succeed(&Command::new("true")).await.unwrap();
    });
    server.kill();
}

#[test]
fn a_machine_that_vanishes_ends_the_stream() {
    let mut network = Network::new();
    let (here, far) = (network.add("here"), network.add("node"));
    network.join("wire", (&here, "10.77.4.1/24"), (&far, "10.77.4.2/24"));
    let server = Server::start_at("10.77.4.2".parse().unwrap(), Some(&far), "");
    let limits = Limits {
        alive_interval: Duration::from_secs(3),
        ..Limits::default()
    };
    block_on_inside(&here, async {
        let target = server.resolve(&server.wanted()).await;
        let connection = connect(&target, &limits).await.unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let waiting = Command::new("echo; sleep 1000");
        let stream = connection.stream(&waiting, |_, _| sender.send(()).unwrap());
        let pulling = async {
            receiver.recv().await.unwrap();
            run(&["ip", "-n", &far, "link", "set", "wire", "down"]);
        };
        let (result, ()) = tokio::join!(stream, pulling);
        let error = result.unwrap_err();
        assert!(matches!(*error.reason, Reason::Ended { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("is the machine or the network down?"),
            "{error}"
        );

        let target = server.resolve(&server.wanted()).await;
        let limits = Limits {
            connect: Duration::from_secs(1),
            ..limits.clone()
        };
        let error = connect(&target, &limits).await.unwrap_err();
        assert!(matches!(*error.reason, Reason::Connect { .. }), "{error}");
        assert!(error.to_string().contains("10.77.4.2: "), "{error}");
    });
}

#[test]
fn a_machine_that_vanishes_ends_what_it_is_sent() {
    let mut network = Network::new();
    let (here, far) = (network.add("here"), network.add("node"));
    network.join("wire", (&here, "10.77.5.1/24"), (&far, "10.77.5.2/24"));
    let server = Server::start_at("10.77.5.2".parse().unwrap(), Some(&far), "");
    let limits = Limits {
        alive_interval: Duration::from_secs(3),
        ..Limits::default()
    };
    block_on_inside(&here, async {
        let target = server.resolve(&server.wanted()).await;
        let connection = connect(&target, &limits).await.unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        // More than a link takes in before it is cut, and a word when it is under way.
        let taking = Command::new("head -c 1000000 >/dev/null; echo; cat >/dev/null")
            .input(vec![7; 1_000_000_000]);
        let stream = connection.stream(&taking, |_, _| sender.send(()).unwrap());
        let pulling = async {
            receiver.recv().await.unwrap();
            run(&["ip", "-n", &far, "link", "set", "wire", "down"]);
        };
        let (result, ()) = tokio::join!(stream, pulling);
        let error = result.unwrap_err();
        assert!(matches!(*error.reason, Reason::Ended { .. }), "{error}");
    });
}

#[tokio::test]
async fn loopback_over_ipv6() {
    let server = Server::start_at("::1".parse().unwrap(), None, "");
    server.connect().await.close().await;
}

#[tokio::test]
async fn only_addresses_of_the_family_in_the_configuration_are_dialled() {
    let server = Server::start("");
    server.configure("AddressFamily inet6");
    let error = server.try_connect(&server.wanted()).await.unwrap_err();
    assert!(matches!(*error.reason, Reason::Lookup { .. }), "{error}");
}

/// Whether the process whose id is in this file runs.
fn is_running(mark: &Path) -> bool {
    let id = fs::read_to_string(mark).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", id.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

async fn until_ended(mark: &Path) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while is_running(mark) {
        assert!(std::time::Instant::now() < deadline, "it still runs");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_proxy_command_is_the_connection_and_ends_with_it() {
    let server = Server::start("");
    let folder = server.folder.path().display();
    let mark = server.path("pid");
    let script = format!(
        "#!/bin/sh\necho $$ > {}\nexec ssh -F none -i {folder}/user -o UserKnownHostsFile={folder}/known_hosts -o BatchMode=yes \
         -p {} -W \"$1:$2\" root@127.0.0.1\n",
        mark.display(),
        server.port
    );
    fs::write(server.path("proxy"), script).unwrap();
    run(&["chmod", "+x", server.path("proxy").to_str().unwrap()]);
    server.configure(&format!("ProxyCommand {folder}/proxy %h %p"));
    let connection = server.connect().await;
    connection.succeed(&Command::new("true")).await.unwrap();
    assert!(is_running(&mark));
    drop(connection);
    until_ended(&mark).await;

    // One that leads nowhere ends with the attempt.
    server.configure(&format!(
        "ProxyCommand sh -c 'echo $$ > {}; exec sleep 1000'",
        mark.display()
    ));
    let target = server.resolve(&server.wanted()).await;
    let limits = Limits {
        handshake: Duration::from_secs(5),
        ..Limits::default()
    };
    let error = connect(&target, &limits).await.unwrap_err();
    assert!(matches!(*error.reason, Reason::Silent { .. }), "{error}");
    until_ended(&mark).await;

    server.configure("ProxyCommand sh -c 'echo the gate is shut >&2; exit 1'");
    let error = server.try_connect(&server.wanted()).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the ProxyCommand said: the gate is shut"),
        "{error}"
    );
    server.configure("ProxyCommand none");
    server.connect().await.close().await;
}

#[tokio::test]
async fn what_is_no_ssh_server_is_told_from_one_that_is_silent() {
    let server = Server::start("");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = Wanted {
        port: Some(listener.local_addr().unwrap().port()),
        ..server.wanted()
    };
    let target = server.resolve(&wanted).await;
    let limits = Limits {
        handshake: Duration::from_secs(1),
        ..Limits::default()
    };
    let error = connect(&target, &limits).await.unwrap_err();
    assert!(matches!(*error.reason, Reason::Silent { .. }), "{error}");

    // For as long as the tests run: it is asked several times.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // The first of them is the silent connection, whose other end is gone.
            let _ = stream
                .unwrap()
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let error = connect(&target, &Limits::default()).await.unwrap_err();
    assert!(matches!(*error.reason, Reason::Handshake { .. }), "{error}");
}

/// As sshd does it when too many come at once.
#[tokio::test]
async fn a_server_that_turns_some_away_is_asked_again() {
    let server = Server::start("");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = listener.local_addr().unwrap();
    let real = (server.address, server.port);
    let between = std::thread::spawn(move || {
        for _ in 0..3 {
            let (mut turned_away, _) = listener.accept().unwrap();
            turned_away.write_all(b"Exceeded MaxStartups\r\n").unwrap();
        }
        let (client, _) = listener.accept().unwrap();
        let server = TcpStream::connect(real).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        // Until one of them closes.
        let _ = std::io::copy(&mut &server, &mut &client);
    });
    let name = format!("[127.0.0.1]:{}", server.port);
    let known = server
        .known_line("ed25519")
        .replace(&name, &format!("[127.0.0.1]:{}", busy.port()));
    fs::write(server.path("known_hosts"), known).unwrap();
    let wanted = Wanted {
        port: Some(busy.port()),
        ..server.wanted()
    };
    let connection = server.try_connect(&wanted).await.unwrap();
    connection.succeed(&Command::new("true")).await.unwrap();
    connection.close().await;
    between.join().unwrap();
}

#[tokio::test]
async fn jump_hosts_that_lead_in_a_circle_are_an_error() {
    let server = Server::start("");
    server.configure("Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n");
    let wanted = Wanted {
        host: "a".into(),
        ..server.wanted()
    };
    let error = resolve_in(&wanted, &server.environment())
        .await
        .unwrap_err();
    assert!(matches!(*error.reason, Reason::JumpLoop { .. }), "{error}");
}
