//! Snapshots of a server: which there are, and one of them here, whole and private.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use orch::files::sha256_of;
use orch::nodes::snapshot::{Snapshot, download, list, upload};
use orch::nodes::{Host, Options};
use orch_contract::Role;

use crate::nodes::Unwatched;
use crate::support::Server;

fn host(server: &Server) -> Host {
    Host {
        name: "one".to_owned(),
        role: Role::Server,
        folder: "/none".into(),
        wanted: server.wanted(),
    }
}

fn options() -> Options {
    Options {
        parallel: 1,
        is_new_cluster: false,
        sudo_password: None,
    }
}

#[tokio::test]
async fn a_snapshot_is_listed_and_fetched_whole_for_this_user_only() {
    let server = Server::start("");
    let (host, options) = (host(&server), options());
    let folder = server.path("snapshots");
    let directory = folder.display().to_string();
    let listed = list(
        std::slice::from_ref(&host),
        &options,
        &Unwatched,
        &directory,
    )
    .await;
    assert_eq!(listed[0].as_ref().unwrap(), &[]);

    fs::create_dir(&folder).unwrap();
    // More than one piece, and not a whole number of them; no text.
    let content: Vec<u8> = (0..1_300_001_u32).map(|i| (i % 251) as u8).collect();
    fs::write(folder.join("on-demand-one-1"), &content).unwrap();
    fs::write(folder.join(".half"), "").unwrap();
    let listed = list(
        std::slice::from_ref(&host),
        &options,
        &Unwatched,
        &directory,
    )
    .await;
    let [found] = listed[0].as_ref().unwrap().as_slice() else {
        panic!("{listed:?}");
    };
    assert_eq!(
        (found.name.as_str(), found.bytes),
        ("on-demand-one-1", 1_300_001)
    );

    let saved = Snapshot {
        sha256: Some(sha256_of(&folder.join("on-demand-one-1")).unwrap()),
        ..found.clone()
    };
    let here = server.path("here.db");
    download(&host, &options, &Unwatched, &saved, &here)
        .await
        .unwrap();
    assert!(fs::read(&here).unwrap() == content);
    assert_eq!(
        fs::metadata(&here).unwrap().permissions().mode() & 0o777,
        0o600
    );

    // One that changes meanwhile is not taken for it, and leaves what was there.
    let other = Snapshot {
        sha256: Some("0".repeat(64)),
        ..saved.clone()
    };
    let error = download(&host, &options, &Unwatched, &other, &here)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("changed while"), "{error}");
    assert!(fs::read(&here).unwrap() == content);
    assert!(!server.path("here.db.partial").exists());

    let sum = saved.sha256.unwrap();
    let back = format!("{directory}/back");
    upload(&host, &options, &Unwatched, &here, &sum, &back)
        .await
        .unwrap();
    assert!(fs::read(&back).unwrap() == content);
}
