use std::path::Path;

use super::super::ssh_config::Family;
use super::*;

const A: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
const B: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";
const E: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";

fn key(text: &str) -> PublicKey {
    PublicKey::from_openssh(text).unwrap()
}

fn hop(port: u16) -> Hop {
    Hop {
        ssh: "ssh -- one".into(),
        host: "one".into(),
        port,
        user: "me".into(),
        identities: Vec::new(),
        certificates: Vec::new(),
        identities_only: false,
        agent: None,
        pin: None,
        known_hosts: Vec::new(),
        revoked_host_keys: None,
        host_key_alias: None,
        proxy_command: None,
        connect_timeout: None,
        alive_interval: None,
        alive_count: None,
        family: Family::Any,
        bind_address: None,
    }
}

async fn known(text: &str, hop: &Hop) -> HostKeys {
    let mut keys = HostKeys::of(hop).await.unwrap();
    keys.read(text, Path::new("/known"), hop);
    keys
}

async fn verdict(text: &str, port: u16) -> Result<(), Reason> {
    known(text, &hop(port)).await.verify(&key(A))
}

#[tokio::test]
async fn only_what_is_listed_is_accepted() {
    verdict(&format!("one {A}"), 22).await.unwrap();
    verdict(&format!("one {B}\none {A}"), 22).await.unwrap();
    assert!(matches!(
        verdict("", 22).await,
        Err(Reason::UnknownHost { .. })
    ));
    assert!(matches!(
        verdict(&format!("two {A}"), 22).await,
        Err(Reason::UnknownHost { .. })
    ));
    let changed = verdict(&format!("one {B}"), 22).await.unwrap_err();
    assert!(
        matches!(changed, Reason::ChangedHostKey { .. }),
        "{changed}"
    );
    let text = changed.to_string();
    assert!(
        text.contains("HAS CHANGED") && text.contains("/known:1"),
        "{text}"
    );
}

#[tokio::test]
async fn another_kind_of_key_than_the_known_one_is_no_new_host() {
    // It was asked for the known kind first, and does not have it.
    let changed = verdict(&format!("one {E}"), 22).await.unwrap_err();
    assert!(
        matches!(changed, Reason::ChangedHostKey { .. }),
        "{changed}"
    );
}

#[tokio::test]
async fn a_name_without_its_port_counts_only_for_a_port_that_is_not_listed() {
    verdict(&format!("[one]:2222 {A}"), 2222).await.unwrap();
    verdict(&format!("one {A}"), 2222).await.unwrap();
    let unknown = verdict(&format!("one {B}"), 2222).await.unwrap_err();
    assert!(matches!(unknown, Reason::UnknownHost { .. }), "{unknown}");
    let changed = verdict(&format!("one {A}\n[one]:2222 {B}"), 2222).await;
    assert!(matches!(changed, Err(Reason::ChangedHostKey { .. })));
}

#[tokio::test]
async fn a_revoked_key_is_refused_before_all_else() {
    let revoked = verdict(&format!("one {A}\n@revoked * {A}"), 22).await;
    assert!(matches!(revoked, Err(Reason::RevokedHostKey { .. })));
    verdict(&format!("one {A}\n@revoked * {B}"), 22)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_authority_is_no_key_and_the_error_says_so() {
    let unknown = verdict(&format!("@cert-authority one {A}"), 22)
        .await
        .unwrap_err();
    assert!(
        unknown
            .to_string()
            .contains("certificates of hosts are not supported"),
        "{unknown}"
    );
}

#[tokio::test]
async fn a_pin_decides_alone() {
    let mut pinned = hop(22);
    pinned.pin = Some(B.parse().unwrap());
    let keys = known(&format!("one {A}"), &pinned).await;
    assert!(matches!(
        keys.verify(&key(A)),
        Err(Reason::ChangedHostKey { .. })
    ));
    keys.verify(&key(B)).unwrap();
    pinned.pin = Some(fingerprint(&key(A)).parse().unwrap());
    known("", &pinned).await.verify(&key(A)).unwrap();
}

#[tokio::test]
async fn known_kinds_are_asked_for_first() {
    let first = async |text: &str| {
        known(text, &hop(22))
            .await
            .algorithms()
            .remove(0)
            .to_string()
    };
    assert_eq!(first("").await, "ssh-ed25519");
    assert_eq!(first(&format!("one {E}")).await, "ecdsa-sha2-nistp256");
    let mut pinned = hop(22);
    pinned.pin = Some(E.parse().unwrap());
    let keys = known("", &pinned).await;
    assert_eq!(
        keys.algorithms().remove(0).to_string(),
        "ecdsa-sha2-nistp256"
    );
    pinned.pin = Some(fingerprint(&key(A)).parse().unwrap());
    let attempts = known("", &pinned).await.attempts();
    // One for each curve, one for RSA with both hashes.
    assert_eq!(
        attempts.iter().map(Vec::len).collect::<Vec<_>>(),
        [1, 1, 1, 1, 2]
    );
}

#[tokio::test]
async fn a_list_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut unreadable = hop(22);
    unreadable.known_hosts = vec![folder.path().join("missing"), folder.path().to_owned()];
    let error = HostKeys::of(&unreadable).await.unwrap_err();
    assert!(matches!(error, Reason::KnownHosts { .. }), "{error}");
}
