//! What a plan leaves on a node: nothing, whatever becomes of it. What travels when only keys do: keys.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use orch::files::sha256_of;
use orch::nodes::{
    Delivery, Host, NodeEvent, NodeReport, Options, SharedFile, Watcher, plan, renew_keys,
};
use orch_contract::{Outcome, Role};

use crate::support::{Server, unique};

pub(crate) struct Unwatched;

impl Watcher for Unwatched {
    fn watch(&self, _event: NodeEvent) {}
}

/// A node that gets a key, and a provisioner that notes where it found it, then does `then`.
fn node(server: &Server, then: &str) -> (Host, Delivery) {
    let folder = server.path("node");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("node.json"), "{}").unwrap();
    fs::write(folder.join("join_client_key"), "secret").unwrap();
    let work = server.folder.path().display();
    let script = format!(
        "#!/bin/sh\nprogram=$0\nwhile [ \"$1\" != --staged ]; do shift; done\n\
         (stat -c %a \"$2\" \"$2/join_client_key\"; cat \"$2/join_client_key\") > {work}/found\n\
         printf '%s\\n%s\\n' \"$2\" \"${{program%/*}}\" > {work}/folders.new\n\
         mv {work}/folders.new {work}/folders\n{then}\n"
    );
    let path = server.path("orch-provision");
    fs::write(&path, script).unwrap();
    let sha256 = sha256_of(&path).unwrap();
    let host = Host {
        name: "node".to_owned(),
        role: Role::Agent,
        folder,
        wanted: server.wanted(),
    };
    let delivery = Delivery {
        provisioner: SharedFile { path, sha256 },
        artifacts: Vec::new(),
    };
    (host, delivery)
}

const OPTIONS: Options = Options {
    parallel: 1,
    is_new_cluster: false,
    sudo_password: None,
};

async fn planned(host: Host, delivery: Delivery) -> NodeReport {
    let mut reports = plan(&[host], &delivery, &OPTIONS, &Unwatched).await;
    reports.remove(0)
}

/// Where the key was and where the program was; both must be gone, or go soon.
async fn folders_go(server: &Server) {
    let folders = server.text("folders");
    assert!(folders.starts_with("/run/orch-plan."), "{folders}");
    let deadline = Instant::now() + Duration::from_secs(60);
    for folder in folders.lines().map(Path::new) {
        while folder.exists() {
            assert!(Instant::now() < deadline, "{} stays", folder.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_plan_takes_its_folders_along_and_those_that_were_left_long_ago() {
    let server = Server::start("");
    let left = format!("/run/orch-plan.{}", unique());
    fs::create_dir(&left).unwrap();
    let aged = Command::new("touch")
        .args(["--date", "2 hours ago", &left])
        .status();
    assert!(aged.unwrap().success());
    let summary = r#"{"at":"1970-01-01T00:00:00Z","node":"node","event":"summary","outcome":"planned","applied":0,"satisfied":0,"elapsed_ms":1}"#;
    let (host, delivery) = node(&server, &format!("echo '{summary}'; exit 2"));
    let report = planned(host, delivery).await;
    assert_eq!(report.outcome, Outcome::Planned, "{:?}", report.error);
    assert_eq!(server.text("found"), "700\n600\nsecret");
    folders_go(&server).await;
    assert!(!Path::new(&left).exists());
}

#[tokio::test]
async fn a_plan_that_fails_leaves_nothing_either() {
    let server = Server::start("");
    let (host, delivery) = node(&server, "echo broken >&2; exit 7");
    let error = planned(host, delivery).await.error.unwrap().to_string();
    assert!(
        error.contains("status 7") && error.contains("broken"),
        "{error}"
    );
    folders_go(&server).await;
}

#[tokio::test]
async fn a_plan_that_is_cut_off_leaves_nothing_either() {
    let server = Server::start("");
    // As the provisioner does: it ends when nobody reads what it says.
    let (host, delivery) = node(&server, "while echo waiting; do sleep 0.1; done");
    let running = tokio::spawn(planned(host, delivery));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !server.path("folders").exists() {
        assert!(Instant::now() < deadline, "{}", server.text("log"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running.abort();
    folders_go(&server).await;
}

#[tokio::test]
async fn keys_travel_alone_and_only_where_they_differ() {
    let server = Server::start_with_own_etc();
    let (host, _) = node(&server, "");
    let there = server.path("etc/orch");
    fs::create_dir(&there).unwrap();
    fs::write(there.join("node.json"), "as it was").unwrap();
    let renew = async || renew_keys(std::slice::from_ref(&host), &OPTIONS, &Unwatched).await;
    let report = renew().await.remove(0);
    assert_eq!(report.outcome, Outcome::Changed, "{:?}", report.error);
    let key = there.join("join_client_key");
    assert_eq!(fs::read_to_string(&key).unwrap(), "secret");
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let untouched = fs::read_to_string(there.join("node.json")).unwrap();
    assert_eq!(untouched, "as it was");
    let inode = fs::metadata(&key).unwrap().ino();
    let report = renew().await.remove(0);
    assert_eq!(report.outcome, Outcome::Unchanged, "{:?}", report.error);
    assert_eq!(fs::metadata(&key).unwrap().ino(), inode);
    assert!(!Path::new("/etc/orch/join_client_key").exists());
}
