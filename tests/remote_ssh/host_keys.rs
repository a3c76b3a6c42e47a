//! Host keys: who is let in, who is not, and what the user is told.

use std::fs;

use orch::remote::{Command, HostKeyPin, Reason, Wanted};

use crate::support::{Server, run};

fn public_key(server: &Server, kind: &str) -> String {
    let text = server.text(&format!("host_{kind}.pub"));
    text.split_whitespace()
        .take(2)
        .collect::<Vec<_>>()
        .join(" ")
}

fn fingerprint(server: &Server, kind: &str) -> String {
    let path = server.path(&format!("host_{kind}.pub"));
    let line = run(&["ssh-keygen", "-lf", path.to_str().unwrap()]);
    line.split_whitespace().nth(1).unwrap().to_owned()
}

fn pinned(server: &Server, pin: &str) -> Wanted {
    Wanted {
        host_key: Some(pin.parse::<HostKeyPin>().unwrap()),
        ..server.wanted()
    }
}

async fn refusal(server: &Server, wanted: &Wanted) -> Reason {
    let error = server.try_connect(wanted).await.unwrap_err();
    assert!(
        !server.text("log").contains("Accepted publickey"),
        "it logged in"
    );
    *error.reason
}

#[tokio::test]
async fn whichever_kind_of_key_is_known_is_asked_for() {
    let server = Server::start("");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        server.know(&[kind]);
        server.connect().await.close().await;
    }
}

#[tokio::test]
async fn an_unknown_host_is_refused_with_its_fingerprint_and_the_next_step() {
    let server = Server::start("");
    // `StrictHostKeyChecking no` is in the configuration.
    fs::write(server.path("known_hosts"), "").unwrap();
    let reason = refusal(&server, &server.wanted()).await;
    let text = reason.to_string();
    assert!(text.contains(&fingerprint(&server, "ed25519")), "{text}");
    assert!(
        text.contains(&format!("host_key: {}", public_key(&server, "ed25519"))),
        "{text}"
    );
    let ssh = format!(
        "`ssh -F {} -p {} -l root -- 127.0.0.1`",
        server.path("ssh_config").display(),
        server.port
    );
    assert!(text.contains(&ssh), "{text}");
    assert!(matches!(reason, Reason::UnknownHost { .. }), "{text}");
    assert_eq!(server.text("known_hosts"), "", "nothing is written");
    assert!(!server.path("home/.ssh").exists());
}

#[tokio::test]
async fn a_changed_key_is_another_and_louder_error() {
    let server = Server::start("");
    server.make_key("other", "ed25519", "");
    let line = format!("[127.0.0.1]:{} {}", server.port, server.text("other.pub"));
    fs::write(server.path("known_hosts"), line).unwrap();
    let reason = refusal(&server, &server.wanted()).await;
    assert!(matches!(reason, Reason::ChangedHostKey { .. }), "{reason}");
    let text = reason.to_string();
    assert!(text.contains("HAS CHANGED"), "{text}");
    assert!(text.contains("known_hosts:1"), "{text}");
    let remedy = format!(
        "ssh-keygen -R '[127.0.0.1]:{}' -f {}",
        server.port,
        server.path("known_hosts").display()
    );
    assert!(text.contains(&remedy), "{text}");
    assert!(text.contains(&fingerprint(&server, "ed25519")), "{text}");
}

#[tokio::test]
async fn a_revoked_key_is_refused_though_it_is_known() {
    let server = Server::start("");
    let known = server.text("known_hosts");
    fs::write(
        server.path("known_hosts"),
        format!("{known}@revoked * {}\n", public_key(&server, "ed25519")),
    )
    .unwrap();
    let reason = refusal(&server, &server.wanted()).await;
    assert!(matches!(reason, Reason::RevokedHostKey { .. }), "{reason}");

    fs::write(server.path("known_hosts"), known).unwrap();
    fs::write(server.path("revoked"), server.text("host_ed25519.pub")).unwrap();
    server.configure(&format!(
        "RevokedHostKeys {}",
        server.path("revoked").display()
    ));
    let reason = refusal(&server, &server.wanted()).await;
    assert!(matches!(reason, Reason::RevokedHostKey { .. }), "{reason}");

    // A list that says nothing of what it means lets nobody in.
    fs::write(server.path("revoked"), "nonsense\n").unwrap();
    let reason = refusal(&server, &server.wanted()).await;
    assert!(matches!(reason, Reason::KnownHosts { .. }), "{reason}");
    fs::remove_file(server.path("revoked")).unwrap();
    let reason = refusal(&server, &server.wanted()).await;
    assert!(matches!(reason, Reason::KnownHosts { .. }), "{reason}");

    // A list that does not say what it means lets nobody in.
    fs::write(server.path("revoked"), "nonsense\n").unwrap();
    let reason = refusal(&server, &server.wanted()).await;
    assert!(matches!(reason, Reason::KnownHosts { .. }), "{reason}");
    fs::remove_file(server.path("revoked")).unwrap();
    let reason = refusal(&server, &server.wanted()).await;
    assert!(matches!(reason, Reason::KnownHosts { .. }), "{reason}");
}

#[tokio::test]
async fn names_that_are_hashed_are_found() {
    let server = Server::start("");
    let path = server.path("known_hosts");
    run(&["ssh-keygen", "-H", "-f", path.to_str().unwrap()]);
    assert!(server.text("known_hosts").starts_with("|1|"));
    server.connect().await.close().await;
}

#[tokio::test]
async fn an_alias_and_several_lists_are_as_in_openssh() {
    let server = Server::start("");
    let alone = |kind| format!("vault {}", server.text(&format!("host_{kind}.pub")));
    fs::write(server.path("known_hosts"), "").unwrap();
    fs::write(server.path("more hosts"), alone("ecdsa")).unwrap();
    let folder = server.folder.path().display();
    server.configure(&format!(
        "HostKeyAlias vault\nUserKnownHostsFile {folder}/known_hosts \"{folder}/more hosts\""
    ));
    let reason = server
        .try_connect(&server.wanted())
        .await
        .err()
        .map(|error| *error.reason);
    // A path with a space cannot be told from two in what ssh prints, unless it begins like one.
    assert!(reason.is_none(), "{reason:?}");

    fs::remove_file(server.path("more hosts")).unwrap();
    fs::write(server.path("additional"), alone("rsa")).unwrap();
    let wanted = Wanted {
        known_hosts: Some(server.path("additional")),
        ..server.wanted()
    };
    server.try_connect(&wanted).await.unwrap().close().await;
}

#[tokio::test]
async fn a_pinned_key_or_fingerprint_is_all_that_counts() {
    let server = Server::start("");
    for kind in ["ed25519", "ecdsa", "rsa"] {
        fs::write(server.path("known_hosts"), "").unwrap();
        for pin in [public_key(&server, kind), fingerprint(&server, kind)] {
            let connection = server.try_connect(&pinned(&server, &pin)).await.unwrap();
            connection.succeed(&Command::new("true")).await.unwrap();
            connection.close().await;
        }
    }
}

#[tokio::test]
async fn a_pin_that_does_not_match_is_not_made_good_by_a_list() {
    let server = Server::start("");
    server.make_key("other", "ed25519", "");
    fs::rename(server.path("other.pub"), server.path("host_other.pub")).unwrap();
    for pin in [public_key(&server, "other"), fingerprint(&server, "other")] {
        let reason = refusal(&server, &pinned(&server, &pin)).await;
        assert!(matches!(reason, Reason::ChangedHostKey { .. }), "{reason}");
        let text = reason.to_string();
        assert!(text.contains(&fingerprint(&server, "other")), "{text}");
    }
}
