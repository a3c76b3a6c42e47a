//! What people get wrong, and what orch says then: the exit code, the cause, the next step.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

const CLUSTER: &str = "\
name: bad-input
provider: docker
network: {subnet: 192.168.59.0/24}
nodes:
  - {name: master, role: server, address: 192.168.59.10}
  - {name: agent, role: agent, address: 192.168.59.11}
";

fn project(yaml: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("orch.yaml"), yaml).unwrap();
    folder
}

fn orch(folder: &Path, arguments: &[&str]) -> Output {
    Command::cargo_bin("orch")
        .unwrap()
        .current_dir(folder)
        .env_remove("ORCH_FILE")
        .args(arguments)
        .output()
        .unwrap()
}

/// The exit code and what was said on stderr.
fn refused(output: &Output) -> (i32, String) {
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_wrong_orch_yaml_names_file_line_and_column() {
    let folder = project(&CLUSTER.replace("role: agent", "role: agnet"));
    let (code, text) = refused(&orch(folder.path(), &["create"]));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("orch.yaml:6:25: "), "{text}");
    assert!(text.contains("agnet"), "{text}");
    assert!(
        !folder.path().join(".orch").exists(),
        "nothing is made from a wrong file"
    );
}

#[test]
fn a_missing_orch_yaml_says_how_to_name_another() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = refused(&orch(folder.path(), &["status"]));
    assert_eq!(code, 3, "{text}");
    assert!(text.contains("--file"), "{text}");
}

#[test]
fn a_taken_port_names_its_owner_and_its_key() {
    for (key, yaml) in [
        ("ports.api", "ports: {api: PORT}\n"),
        (
            "ports.forward",
            "ports: {api: 16999, forward: [{host: PORT, node: 30000}]}\n",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let folder = project(&format!("{CLUSTER}{}", yaml.replace("PORT", &port)));
        let (code, text) = refused(&orch(folder.path(), &["create"]));
        assert_eq!(code, 4, "{text}");
        assert!(
            text.contains(&format!("port {port} on this host is taken by")),
            "{text}"
        );
        assert!(
            text.contains(&format!("pid {}", std::process::id())),
            "{text}"
        );
        assert!(text.contains(key), "{text}");
    }
}

/// A file system of a few MiB is a disk that is nearly full.
#[test]
fn a_nearly_full_disk_is_seen_before_anything_is_written() {
    let folder = project(CLUSTER);
    let small = folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new("unshare")
            .args(arguments)
            .output()
            .unwrap();
        refused(&status)
    };
    let script = format!(
        "mount -t tmpfs -o size=8m tmpfs {small} && cd {folder} && ORCH_CACHE={small}/cache exec {orch} create",
        small = small.display(),
        folder = folder.path().display(),
        orch = assert_cmd::cargo::cargo_bin("orch").display()
    );
    let (code, text) = mount(&["--mount", "--", "sh", "-c", &script]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("MiB free and needs"), "{text}");
    assert!(text.contains("ORCH_CACHE"), "{text}");
}

/// As a user without any right, on a host where something is missing.
#[test]
fn without_root_and_sudo_the_command_to_run_is_shown() {
    let folder = project(CLUSTER);
    // A PATH with nothing but what orch itself asks first.
    let bin = folder.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink("/usr/bin/apt-get", bin.join("apt-get")).unwrap();
    let orch = folder.path().join("orch");
    std::fs::copy(assert_cmd::cargo::cargo_bin("orch"), &orch).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let output = std::process::Command::new("/usr/bin/setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&orch)
        .arg("create")
        .current_dir(folder.path())
        .env("PATH", &bin)
        .env("ORCH_CACHE", folder.path().join("cache"))
        .output()
        .unwrap();
    let (code, text) = refused(&output);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("needs root"), "{text}");
    assert!(text.contains("apt-get install"), "{text}");
}

#[test]
fn a_wrong_k3s_checksum_names_both_sums_and_installs_nothing() {
    let assets = tempfile::tempdir().unwrap();
    for name in ["k3s", "k3s-airgap-images-amd64.tar.zst"] {
        std::fs::write(assets.path().join(name), name).unwrap();
    }
    let sums = format!("{}  k3s\n", "ab".repeat(32));
    std::fs::write(assets.path().join("sha256sum-amd64.txt"), sums).unwrap();
    let folder = project(&format!(
        "{CLUSTER}k3s: {{source: directory, directory: {}}}\n",
        assets.path().display()
    ));
    let (code, text) = refused(&orch(
        folder.path(),
        &["machines", "prepare", "--provider", "virtualbox"],
    ));
    assert_eq!(code, 5, "{text}");
    assert!(text.contains(&"ab".repeat(32)), "{text}");
    assert!(text.contains("nothing was installed"), "{text}");
    assert!(!folder.path().join(".orch/bad-input/artifacts").exists());
}

/// Where no registry and no release host can be reached, the release alone is an error that says so.
#[test]
fn no_network_is_said_with_the_way_round_it() {
    let folder = project(&format!(
        "{CLUSTER}k3s: {{source: release, release_url: \"https://127.0.0.1:1/k3s\"}}\n"
    ));
    let cache = tempfile::tempdir().unwrap();
    let output = Command::cargo_bin("orch")
        .unwrap()
        .current_dir(folder.path())
        .env("ORCH_CACHE", cache.path())
        .args(["machines", "prepare", "--provider", "virtualbox"])
        .output()
        .unwrap();
    let (code, text) = refused(&output);
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("does not answer"), "{text}");
    assert!(text.contains("k3s.source: directory"), "{text}");
}

#[test]
fn start_without_machines_says_what_makes_them() {
    let folder = project(CLUSTER);
    let (code, text) = refused(&orch(folder.path(), &["start"]));
    assert_eq!(code, 5, "{text}");
    assert!(text.contains("orch create"), "{text}");
}

#[test]
fn stop_without_machines_is_no_error() {
    let folder = project(CLUSTER);
    let output = orch(folder.path(), &["stop"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("cluster stopped\n"));
}

#[test]
fn a_wrong_command_line_is_exit_2() {
    let folder = project(CLUSTER);
    assert_eq!(orch(folder.path(), &["craete"]).status.code(), Some(64));
}

#[test]
fn errors_are_json_where_json_was_asked_for() {
    let folder = project("name: [\n");
    let (code, text) = refused(&orch(folder.path(), &["--output", "json", "status"]));
    assert_eq!(code, 3);
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["event"], "error");
}
