//! Logging in: which keys are tried, and what a refusal says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};

use orch::remote::{
    Command, Connection, Environment, Limits, Reason, RemoteError, Wanted, connect, resolve_in,
};

use crate::support::{Server, run};

/// A real agent, ended by its id.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(server: &Server) -> Self {
        let socket = server.path("agent");
        let process = Program::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
            std::thread::yield_now();
        }
        Self { process, socket }
    }

    fn add(&self, server: &Server, name: &str) {
        let added = Program::new("ssh-add")
            .arg("-q")
            .arg(server.path(name))
            .env("SSH_AUTH_SOCK", &self.socket)
            .status();
        assert!(added.unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn connect_with(
    server: &Server,
    agent: Option<&Agent>,
    wanted: &Wanted,
) -> Result<Connection, RemoteError> {
    let environment = Environment {
        agent: agent.map(|agent| agent.socket.clone()),
        ..server.environment()
    };
    let target = resolve_in(wanted, &environment).await.unwrap();
    connect(&target, &Limits::default()).await
}

fn with_identity(server: &Server, name: &str) -> Wanted {
    Wanted {
        identity: Some(server.path(name)),
        ..server.wanted()
    }
}

/// The user's key in the default place does not log in.
fn without_default(options: &str) -> Server {
    let server = Server::start(options);
    fs::rename(server.path("user"), server.path("elsewhere")).unwrap();
    fs::rename(server.path("user.pub"), server.path("elsewhere.pub")).unwrap();
    server
}

#[tokio::test]
async fn keys_of_every_kind_and_format() {
    let server = Server::start("");
    for (kind, arguments) in [
        ("ed25519", ["-m", "RFC4716"]),
        ("ecdsa", ["-m", "RFC4716"]),
        ("rsa", ["-m", "RFC4716"]),
        ("rsa", ["-m", "PEM"]),
        ("rsa", ["-m", "PKCS8"]),
        ("ecdsa", ["-m", "PKCS8"]),
    ] {
        let name = format!("{kind}-{}", arguments[1]);
        let path = server.path(&name);
        let path = path.to_str().unwrap();
        run(&[
            "ssh-keygen",
            "-q",
            "-t",
            kind,
            arguments[0],
            arguments[1],
            "-N",
            "",
            "-f",
            path,
        ]);
        server.authorize(&name);
        let connected = server.try_connect(&with_identity(&server, &name)).await;
        connected
            .unwrap_or_else(|error| panic!("{name}: {error}"))
            .close()
            .await;
    }
}

#[tokio::test]
async fn rsa_logs_in_without_sha_1_from_a_file_and_from_an_agent() {
    let server = Server::start("PubkeyAcceptedAlgorithms rsa-sha2-512");
    server.make_key("mine", "rsa", "");
    server.authorize("mine");
    let wanted = with_identity(&server, "mine");
    server.try_connect(&wanted).await.unwrap().close().await;
    let agent = Agent::start(&server);
    agent.add(&server, "mine");
    fs::remove_file(server.path("mine")).unwrap();
    let connected = connect_with(&server, Some(&agent), &server.wanted()).await;
    connected.unwrap().close().await;
}

#[tokio::test]
async fn the_agents_keys_log_in() {
    let server = without_default("");
    let agent = Agent::start(&server);
    for kind in ["ed25519", "ecdsa", "rsa"] {
        server.make_key(kind, kind, "");
    }
    server.authorize("rsa");
    let error = connect_with(&server, Some(&agent), &server.wanted())
        .await
        .unwrap_err();
    assert!(matches!(*error.reason, Reason::Refused { .. }), "{error}");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        agent.add(&server, kind);
    }
    connect_with(&server, Some(&agent), &server.wanted())
        .await
        .unwrap()
        .close()
        .await;
    // A key file that no shell has seen the name of.
    fs::create_dir(server.path("home/.ssh")).unwrap();
    fs::copy(server.path("rsa"), server.path("home/.ssh/mine")).unwrap();
    let wanted = Wanted {
        identity: Some("~/.ssh/mine".into()),
        ..server.wanted()
    };
    server.try_connect(&wanted).await.unwrap().close().await;
    // The same through the configuration, and not where it says none.
    server.configure(&format!("IdentityAgent {}", agent.socket.display()));
    server.connect().await.close().await;
    server.configure("IdentityAgent none");
    let error = connect_with(&server, Some(&agent), &server.wanted())
        .await
        .unwrap_err();
    assert!(matches!(*error.reason, Reason::Refused { .. }), "{error}");
}

#[tokio::test]
async fn only_the_identities_that_are_named_are_tried() {
    let server = without_default("MaxAuthTries 2");
    let agent = Agent::start(&server);
    for name in ["a", "b", "c", "d"] {
        server.make_key(name, "ed25519", "");
        agent.add(&server, name);
    }
    agent.add(&server, "elsewhere");
    let error = connect_with(&server, Some(&agent), &server.wanted())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("too many keys?"), "{text}");
    assert!(text.contains("the agent's a SHA256:"), "{text}");
    // The public half is enough to name a key that the agent has.
    fs::remove_file(server.path("elsewhere")).unwrap();
    connect_with(&server, Some(&agent), &with_identity(&server, "elsewhere"))
        .await
        .unwrap()
        .close()
        .await;
    server.configure(&format!(
        "IdentitiesOnly yes\nIdentityFile {}",
        server.path("elsewhere.pub").display()
    ));
    connect_with(&server, Some(&agent), &server.wanted())
        .await
        .unwrap()
        .close()
        .await;
}

#[tokio::test]
async fn a_key_with_a_passphrase_needs_an_agent_and_the_error_says_how() {
    let server = Server::start("");
    let path = server.path("locked");
    for format in ["RFC4716", "PEM", "PKCS8"] {
        let kind = if format == "RFC4716" {
            "ed25519"
        } else {
            "rsa"
        };
        let _ = fs::remove_file(&path);
        run(&[
            "ssh-keygen",
            "-q",
            "-t",
            kind,
            "-m",
            format,
            "-N",
            "geheim123",
            "-f",
            path.to_str().unwrap(),
        ]);
        let error = server
            .try_connect(&with_identity(&server, "locked"))
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&format!("run: ssh-add {}", path.display())),
            "{text}"
        );
        assert!(!text.contains("geheim123"), "{text}");
    }
}

#[tokio::test]
async fn a_refusal_lists_what_was_tried() {
    let server = without_default("");
    for name in ["user", "open", "broken"] {
        server.make_key(name, "ed25519", "");
    }
    fs::set_permissions(server.path("open"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(
        server.path("broken"),
        "-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n",
    )
    .unwrap();
    let folder = server.folder.path().display();
    server.configure(&format!(
        "IdentityFile {folder}/open\nIdentityFile {folder}/broken\nIdentityFile {folder}/missing"
    ));
    let error = server.try_connect(&server.wanted()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("refuses root; tried:"), "{text}");
    assert!(text.contains(&format!("chmod 600 {folder}/open")), "{text}");
    assert!(text.contains(&format!("{folder}/broken SHA256:")), "{text}");
    assert!(text.contains("cannot be read as a private key"), "{text}");
    assert!(text.contains(&format!("{folder}/user SHA256:")), "{text}");
    assert!(text.contains(": refused"), "{text}");
    assert!(!text.contains("missing"), "{text}");

    let error = server
        .try_connect(&with_identity(&server, "missing"))
        .await
        .unwrap_err();
    assert!(
        matches!(*error.reason, Reason::NoIdentity { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_takes_no_keys_or_wants_more_is_told_apart() {
    let server = Server::start("PubkeyAuthentication no\nPasswordAuthentication yes");
    let error = server.try_connect(&server.wanted()).await.unwrap_err();
    assert!(error.to_string().contains("takes no keys"), "{error}");
    let server =
        Server::start("AuthenticationMethods publickey,password\nPasswordAuthentication yes");
    let error = server.try_connect(&server.wanted()).await.unwrap_err();
    assert!(
        matches!(*error.reason, Reason::MoreThanAKey { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_certificate_beside_the_key_logs_in() {
    let authority = tempfile::tempdir().unwrap();
    let path = |name: &str| authority.path().join(name).to_str().unwrap().to_owned();
    run(&[
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-f",
        &path("ca"),
    ]);
    let server = Server::start(&format!("TrustedUserCAKeys {}", path("ca.pub")));
    server.make_key("mine", "ed25519", "");
    let mine = server.path("mine.pub");
    run(&[
        "ssh-keygen",
        "-q",
        "-s",
        &path("ca"),
        "-I",
        "me",
        "-n",
        "root",
        "-V",
        "+1d",
        mine.to_str().unwrap(),
    ]);
    server
        .try_connect(&with_identity(&server, "mine"))
        .await
        .unwrap()
        .close()
        .await;
}

/// As Vagrant prints it.
#[tokio::test]
async fn what_vagrant_says_of_a_machine_is_understood() {
    let server = Server::start("");
    let text = format!(
        "Host master\n  HostName 127.0.0.1\n  User root\n  Port {}\n  UserKnownHostsFile /dev/null\n  \
         StrictHostKeyChecking no\n  PasswordAuthentication no\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
         LogLevel FATAL\n  PubkeyAcceptedKeyTypes +ssh-rsa\n  HostKeyAlgorithms +ssh-rsa\n\nHost agent\n  HostName 127.0.0.2\n",
        server.port,
        server.path("user").display()
    );
    fs::write(server.path("vagrant"), text).unwrap();
    let mut wanted = Wanted {
        name: "master".into(),
        host: "master".into(),
        ssh_config: Some(server.path("vagrant")),
        ..Wanted::default()
    };
    let error = server.try_connect(&wanted).await.unwrap_err();
    assert!(
        matches!(*error.reason, Reason::UnknownHost { .. }),
        "{error}"
    );
    wanted.known_hosts = Some(server.path("known_hosts"));
    let connection = server.try_connect(&wanted).await.unwrap();
    assert_eq!(
        connection
            .succeed(&Command::new("id -un"))
            .await
            .unwrap()
            .text(),
        "root"
    );
}
