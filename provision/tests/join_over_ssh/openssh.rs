//! OpenSSH's own client at the join service: what it may do, and everything else that it can ask for.

use std::process::{Child, Command, Stdio};

use crate::support::Cluster;
use orch_contract::JoinResponse;

const REQUEST: &str = "{\"schema\":1,\"node\":\"agent\"}\n";

#[test]
fn openssh_can_join_and_do_nothing_else() {
    let cluster = Cluster::start();
    let joined = cluster.ssh("agent", &[], &["orch-join"], REQUEST);
    assert!(joined.status.success(), "{joined:?}");
    let response = JoinResponse::parse(&joined.stdout).unwrap();
    assert!(matches!(response, JoinResponse::Granted(_)));
    let calls = cluster.calls();

    let refused: [(&str, &[&str], &[&str]); 9] = [
        ("a shell", &[], &[]),
        ("a terminal", &["-tt"], &[]),
        ("a command", &[], &["id"]),
        ("a command behind the join", &[], &["orch-join; id"]),
        ("a path to the join", &[], &["/usr/local/bin/orch-join"]),
        ("a subsystem", &["-s"], &["sftp"]),
        (
            "forwarding from a socket",
            &[
                "-N",
                "-R",
                "/run/orch-forwarded:127.0.0.1:22",
                "-o",
                "ExitOnForwardFailure=yes",
            ],
            &[],
        ),
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
        let output = cluster.ssh("agent", options, command, REQUEST);
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
        let output = cluster.ssh("agent", &["-o", &option], &["orch-join"], REQUEST);
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
        "forwarding from localhost:7777",
        "forwarding from /run/orch-forwarded",
    ] {
        assert!(log.contains(what), "{what} is not in the audit: {log}");
    }
}

/// Requests that OpenSSH sends along with a command: the command works, they do not.
#[test]
fn what_comes_with_a_command_is_refused() {
    let cluster = Cluster::start();
    let agent = Agent::start(&cluster);
    let mut ssh = cluster.ssh_command(
        "agent",
        &["-tt", "-A", "-Y", "-o", "SetEnv=LD_PRELOAD=/tmp/x.so"],
        &["id"],
    );
    ssh.env("SSH_AUTH_SOCK", &agent.socket)
        .env("DISPLAY", "127.0.0.1:0");
    let output = ssh.output().unwrap();
    assert_eq!(output.stdout, b"");
    let log = cluster.log();
    for what in [
        "a terminal",
        "X11 forwarding",
        "agent forwarding",
        "the environment variable LD_PRELOAD",
        "the command id",
    ] {
        assert!(log.contains(what), "{what} is not in the audit: {log}");
    }
    assert_eq!(cluster.calls(), "");
}

#[test]
fn only_the_one_user_name_is_known() {
    let cluster = Cluster::start();
    for user in ["root", "ORCH", "orch2"] {
        let option = format!("User={user}");
        let output = cluster.ssh("agent", &["-o", &option], &["orch-join"], REQUEST);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            message.contains("Permission denied (publickey)"),
            "{message}"
        );
    }
    assert!(cluster.log().contains("the user root"), "{}", cluster.log());
    assert_eq!(cluster.calls(), "");
}

#[test]
fn only_modern_algorithms_are_spoken() {
    let cluster = Cluster::start();
    for weak in [
        "KexAlgorithms=diffie-hellman-group14-sha256",
        "KexAlgorithms=diffie-hellman-group14-sha1",
        "KexAlgorithms=diffie-hellman-group-exchange-sha256",
        "KexAlgorithms=ecdh-sha2-nistp256",
        "Ciphers=aes128-ctr,aes256-ctr",
        "Ciphers=aes128-cbc,3des-cbc",
        "HostKeyAlgorithms=rsa-sha2-512,rsa-sha2-256,ssh-rsa",
        "HostKeyAlgorithms=ecdsa-sha2-nistp256",
    ] {
        let output = cluster.ssh("agent", &["-o", weak], &["orch-join"], REQUEST);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("no matching"), "{weak}: {message}");
        assert_eq!(output.stdout, b"", "{weak}");
    }
    assert_eq!(cluster.calls(), "");
    for good in [
        "KexAlgorithms=curve25519-sha256",
        "Ciphers=aes256-gcm@openssh.com",
        "Ciphers=chacha20-poly1305@openssh.com",
    ] {
        let output = cluster.ssh("agent", &["-o", good], &["orch-join"], REQUEST);
        assert!(output.status.success(), "{good}: {output:?}");
    }
}

/// Terrapin (CVE-2023-48795) drops messages before the keys are in use; strict key exchange forbids it.
#[test]
fn key_exchange_is_strict() {
    let cluster = Cluster::start();
    let output = cluster.ssh("agent", &["-vvv"], &["orch-join"], REQUEST);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");
    assert!(message.contains("strict KEX ordering"), "{message}");
}

/// OpenSSH only asks for forwarding of an agent that is there.
struct Agent {
    process: Child,
    socket: std::path::PathBuf,
}

impl Agent {
    fn start(cluster: &Cluster) -> Self {
        let socket = cluster.path("agent.socket");
        let process = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        cluster.until("an agent", || socket.exists());
        Self { process, socket }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
