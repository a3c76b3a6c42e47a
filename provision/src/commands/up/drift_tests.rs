//! What somebody changed by hand is seen by a plan with its reason, mended by a run, and restarts K3s only where K3s may
//! have read it.

use std::path::Path;

use orch_contract::{LogLevel, Mirror, Role};

use super::*;
use crate::k3s::paths;
use crate::system::{Files, Services};
use crate::testing::node::{Node, changes, lines};

const UNIT: &str = "/etc/systemd/system/k3s.service";
const ENVIRONMENT: &str = "/etc/systemd/system/k3s.service.env";
const RESTART: &[&str] = &["restart k3s.service"];
const RELOAD_AND_RESTART: &[&str] = &["reload", "restart k3s.service"];

/// A server with registries, as it was provisioned.
async fn server() -> Node {
    let mut node = Node::new(Role::Server);
    let mirror = Mirror {
        endpoints: vec!["http://192.168.56.254:5000".to_owned()],
        ..Mirror::default()
    };
    let mirrors = &mut node.config.registries.mirrors;
    mirrors.insert("docker.io".to_owned(), mirror);
    node.up(false).await;
    node.take_done();
    assert_eq!(lines(&node.up(true).await), Vec::<String>::new());
    node
}

/// The plan says these lines, the run tells systemd this and no more, and afterwards all is well.
async fn is_mended(node: &Node, planned: &[&str], done: &[&str]) {
    assert_eq!(lines(&node.up(true).await), planned);
    assert_eq!(node.take_done(), Vec::<String>::new());
    assert_eq!(lines(&node.up(false).await), planned);
    assert_eq!(node.take_done(), done);
    let [running, wanted] = node.running_and_wanted();
    assert_eq!(running, wanted);
    assert_eq!(lines(&node.up(true).await), Vec::<String>::new());
}

/// Appends to a file and leaves its mode.
fn edit(node: &Node, path: &str, addition: &str) {
    let files = &node.machine.files;
    let mode = files.mode(Path::new(path)).unwrap().unwrap();
    let text = files.text(path).unwrap();
    files.put(path, &format!("{text}{addition}"), mode);
}

#[tokio::test]
async fn an_edited_unit_file() {
    let node = server().await;
    edit(&node, UNIT, "Environment=A=b\n");
    let diff = changes(&node.up(true).await)[0].1[0].diff.clone();
    assert!(
        diff.contains(&"-Environment=A=[hidden]".to_owned()),
        "{diff:?}"
    );
    let planned = [
        "update /etc/systemd/system/k3s.service differs",
        "reload k3s.service has another file than systemd has read",
        "restart k3s.service was started with another /etc/systemd/system/k3s.service",
    ];
    is_mended(&node, &planned, RELOAD_AND_RESTART).await;
}

#[tokio::test]
async fn an_edited_environment() {
    let node = server().await;
    edit(&node, ENVIRONMENT, "HTTPS_PROXY=http://x\n");
    let planned = [
        "update /etc/systemd/system/k3s.service.env differs",
        "reload k3s.service has another file than systemd has read",
        "restart k3s.service was started with another /etc/systemd/system/k3s.service.env",
    ];
    is_mended(&node, &planned, RELOAD_AND_RESTART).await;
}

#[tokio::test]
async fn overrides_of_others_are_named_and_stay() {
    let node = server().await;
    let others = [
        "/etc/systemd/system/k3s.service.d/override.conf",
        "/etc/rancher/k3s/config.yaml.d/mine.yaml",
    ];
    for path in others {
        node.machine.files.put(path, "x", 0o644);
    }
    let events = node.up(false).await;
    for path in others {
        let is_named = events.iter().any(|event| {
            matches!(event, Event::Log { level: LogLevel::Warn, message, .. } if message.contains(path))
        });
        assert!(is_named, "{path}");
        assert_eq!(node.machine.files.text(path).as_deref(), Some("x"));
    }
    assert_eq!(lines(&events), Vec::<String>::new());
}

#[tokio::test]
async fn an_edited_configuration() {
    let node = server().await;
    edit(&node, paths::CONFIG, "cluster-cidr: 10.9.0.0/16\n");
    let planned = [
        "update /etc/rancher/k3s/config.yaml differs",
        "restart k3s.service was started with another /etc/rancher/k3s/config.yaml",
    ];
    is_mended(&node, &planned, RESTART).await;
}

#[tokio::test]
async fn edited_registries_with_which_k3s_was_restarted() {
    let node = server().await;
    edit(&node, paths::REGISTRIES, "configs: {}\n");
    node.begin_restart("k3s.service").await.unwrap();
    node.take_done();
    let planned = [
        "update /etc/rancher/k3s/registries.yaml differs",
        "restart k3s.service was started with another /etc/rancher/k3s/registries.yaml",
    ];
    is_mended(&node, &planned, RESTART).await;
}

#[tokio::test]
async fn another_binary_of_the_same_version() {
    let node = server().await;
    node.machine.files.put(paths::BINARY, "EVIL", 0o755);
    let sums = [b"EVIL".as_slice(), b"BIN"].map(crate::system::sha256_hex);
    let planned = format!(
        "update /usr/local/bin/k3s is v1.34.2+k3s1 with another checksum ({}, not {}): \
         v1.34.2+k3s1 from /var/lib/orch/artifacts/k3s",
        &sums[0][..12],
        &sums[1][..12]
    );
    let planned = [
        planned.as_str(),
        "restart k3s.service was started with another /usr/local/bin/k3s",
    ];
    is_mended(&node, &planned, RESTART).await;
}

#[tokio::test]
async fn a_binary_of_another_version() {
    let node = server().await;
    node.machine.files.put(paths::BINARY, "OLD", 0o755);
    let version = "k3s version v1.33.1+k3s1 (abc)\n";
    let commands = &node.machine.commands;
    commands.answer("/usr/local/bin/k3s --version", 0, version);
    let planned = lines(&node.up(true).await);
    assert_eq!(
        planned,
        [
            "update /usr/local/bin/k3s is v1.33.1+k3s1: v1.34.2+k3s1 from /var/lib/orch/artifacts/k3s",
            "restart k3s.service was started with another /usr/local/bin/k3s",
        ]
    );
    assert_eq!(lines(&node.up(false).await), planned);
    assert_eq!(node.take_done(), RESTART);
    assert_eq!(node.machine.files.text(paths::BINARY).unwrap(), "BIN");
}

#[tokio::test]
async fn a_binary_that_is_gone_while_k3s_runs() {
    let node = server().await;
    node.machine.files.remove(Path::new(paths::BINARY)).unwrap();
    let planned = lines(&node.up(true).await);
    assert!(
        planned[0].starts_with("install /usr/local/bin/k3s is missing"),
        "{planned:?}"
    );
    assert_eq!(lines(&node.up(false).await), planned);
    assert_eq!(node.take_done(), RESTART);
}

#[tokio::test]
async fn a_disabled_unit_is_enabled_without_a_restart() {
    let node = server().await;
    node.change_unit(|unit| unit.is_enabled = false);
    let planned = ["enable k3s.service would not start at boot"];
    is_mended(&node, &planned, &["enable k3s.service"]).await;
}

#[tokio::test]
async fn a_stopped_unit_is_started() {
    let node = server().await;
    node.change_unit(|unit| unit.is_active = false);
    let events = node.up(true).await;
    assert_eq!(lines(&events)[0], "start k3s.service is inactive");
    assert_eq!(
        lines(&node.up(false).await),
        ["start k3s.service is inactive"]
    );
    assert_eq!(node.take_done(), RESTART);
}

#[tokio::test]
async fn a_mode_is_put_back_without_a_restart() {
    let node = server().await;
    for path in [paths::CONFIG, paths::REGISTRIES] {
        let text = node.machine.files.text(path).unwrap();
        node.machine.files.put(path, &text, 0o644);
    }
    let planned = [
        "update /etc/rancher/k3s/config.yaml has mode 0644, not 0600",
        "update /etc/rancher/k3s/registries.yaml has mode 0644, not 0600",
    ];
    is_mended(&node, &planned, &[]).await;
}

#[tokio::test]
async fn a_binary_that_others_may_write_is_put_back_without_a_restart() {
    let node = server().await;
    node.machine.files.put(paths::BINARY, "BIN", 0o777);
    let planned = ["update /usr/local/bin/k3s has mode 0777, not 0755"];
    is_mended(&node, &planned, &[]).await;
}

#[tokio::test]
async fn a_process_that_is_not_the_binary_on_disk_is_restarted() {
    let node = server().await;
    let link = Path::new("/proc/77/exe");
    let files = &node.machine.files;
    for (program, reason) in [
        (
            "/usr/local/bin/k3s (deleted)",
            "runs (process 77) from a /usr/local/bin/k3s that was replaced or removed",
        ),
        (
            "/opt/other",
            "runs (process 77) from /opt/other, which is another program",
        ),
    ] {
        files.put("/opt/other", "OTHER", 0o755);
        files.symlink(Path::new(program), link).unwrap();
        is_mended(&node, &[&format!("restart k3s.service {reason}")], RESTART).await;
    }
}

#[tokio::test]
async fn images_that_are_missing_do_not_cost_a_restart() {
    let node = server().await;
    let asset = "k3s-airgap-images-amd64.tar.zst";
    let files = &node.machine.files;
    files.put(&format!("/var/lib/orch/artifacts/{asset}"), "IMG", 0o644);
    let sum = crate::system::sha256_hex(b"IMG");
    edit(
        &node,
        "/var/lib/orch/artifacts/sha256sum-amd64.txt",
        &format!("{sum}  {asset}\n"),
    );
    let planned = format!("create /var/lib/rancher/k3s/agent/images/{asset} is missing");
    is_mended(&node, &[&planned], &[]).await;
}
