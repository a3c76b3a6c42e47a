use orch_contract::NodeConfig;
use orch_runner::{Recorder, Runner};

use super::*;
use crate::system::{FakeDownload, System, sha256_hex};
use crate::testing::{Machine, server_config};

const RELEASE: &str = "https://github.com/k3s-io/k3s/releases/download/v1.34.2%2Bk3s1";

fn sums(lines: &[(&str, &str)]) -> String {
    lines
        .iter()
        .map(|(content, name)| format!("{}  {name}\n", sha256_hex(content.as_bytes())))
        .collect()
}

fn runnable(machine: &Machine) {
    for binary in ["/usr/local/bin/.k3s.orch-new", "/usr/local/bin/k3s"] {
        machine
            .commands
            .answer(binary, 0, "k3s version v1.34.2+k3s1 (abc)\ngo version\n");
    }
}

async fn run(system: System<'_>, config: &NodeConfig) -> Result<InstalledK3s, StepFailure> {
    let recorder = Recorder::default();
    let step = AcquireK3s {
        context: Context { system, config },
        architecture: Architecture::Amd64,
    };
    Runner::new(&recorder, false).run(&step).await
}

#[tokio::test]
async fn a_binary_and_images_from_a_directory() {
    let machine = Machine::fit();
    runnable(&machine);
    machine
        .files
        .put("/var/lib/orch/artifacts/k3s", "BIN", 0o644);
    machine.files.put(
        "/var/lib/orch/artifacts/k3s-airgap-images-amd64.tar.zst",
        "IMG",
        0o644,
    );
    machine.files.put(
        "/var/lib/orch/artifacts/sha256sum-amd64.txt",
        &sums(&[("BIN", "k3s"), ("IMG", "k3s-airgap-images-amd64.tar.zst")]),
        0o644,
    );
    let config = server_config();
    let installed = run(machine.system(), &config).await.unwrap();
    assert_eq!(installed.version_line, "k3s version v1.34.2+k3s1 (abc)");
    assert_eq!(machine.files.text("/usr/local/bin/k3s").unwrap(), "BIN");
    for name in paths::LINKS {
        let link = format!("/usr/local/bin/{name}");
        assert_eq!(machine.files.text(&link).as_deref(), Some("BIN"), "{name}");
    }
    let images = "/var/lib/rancher/k3s/agent/images/k3s-airgap-images-amd64.tar.zst";
    assert_eq!(machine.files.text(images).unwrap(), "IMG");
    machine.files.take_writes();
    run(machine.system(), &config).await.unwrap();
    assert_eq!(machine.files.take_writes(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_wrong_checksum_names_both_and_installs_nothing() {
    let machine = Machine::fit();
    runnable(&machine);
    machine.files.put("/usr/local/bin/k3s", "OLD", 0o755);
    machine
        .files
        .put("/var/lib/orch/artifacts/k3s", "EVIL", 0o644);
    machine.files.put(
        "/var/lib/orch/artifacts/sha256sum-amd64.txt",
        &sums(&[("BIN", "k3s")]),
        0o644,
    );
    let failure = run(machine.system(), &server_config()).await.unwrap_err();
    let message = failure.error().to_string();
    assert_eq!(failure.exit_code, ExitCode::Acquire);
    assert!(message.contains(&sha256_hex(b"BIN")), "{message}");
    assert!(message.contains(&sha256_hex(b"EVIL")), "{message}");
    assert_eq!(machine.files.text("/usr/local/bin/k3s").unwrap(), "OLD");
    assert_eq!(machine.files.text("/usr/local/bin/.k3s.orch-new"), None);
}

#[tokio::test]
async fn archives_that_the_configuration_names_go_beside_k3ss_own() {
    let machine = Machine::fit();
    runnable(&machine);
    let artifact = |name: &str, content: &str| {
        let path = format!("/var/lib/orch/artifacts/{name}");
        machine.files.put(&path, content, 0o644);
    };
    artifact("k3s", "BIN");
    artifact("sha256sum-amd64.txt", &sums(&[("BIN", "k3s")]));
    let mut config = server_config();
    let images = &mut config.artifacts.images;
    images.insert("orch-images.tar".to_owned(), sha256_hex(b"APP"));
    let failure = run(machine.system(), &config).await.unwrap_err();
    let message = failure.error().to_string();
    assert_eq!(
        message,
        "there is no orch-images.tar in /var/lib/orch/artifacts"
    );

    artifact("orch-images.tar", "EVIL");
    let failure = run(machine.system(), &config).await.unwrap_err();
    let message = failure.error().to_string();
    assert!(message.contains(&sha256_hex(b"EVIL")), "{message}");
    let target = "/var/lib/rancher/k3s/agent/images/orch-images.tar";
    assert_eq!(machine.files.text(target), None);

    artifact("orch-images.tar", "APP");
    run(machine.system(), &config).await.unwrap();
    assert_eq!(machine.files.text(target).unwrap(), "APP");
    machine.files.take_writes();
    run(machine.system(), &config).await.unwrap();
    assert_eq!(machine.files.take_writes(), Vec::<PathBuf>::new());

    // Another set of images takes its place.
    let images = &mut config.artifacts.images;
    images.insert("orch-images.tar".to_owned(), sha256_hex(b"NEW"));
    artifact("orch-images.tar", "NEW");
    run(machine.system(), &config).await.unwrap();
    assert_eq!(machine.files.text(target).unwrap(), "NEW");
}

#[tokio::test]
async fn a_binary_without_a_checksum_is_refused() {
    let machine = Machine::fit();
    machine
        .files
        .put("/var/lib/orch/artifacts/k3s", "BIN", 0o644);
    let failure = run(machine.system(), &server_config()).await.unwrap_err();
    assert!(failure.error().to_string().contains("sha256sum-amd64.txt"));
}

#[tokio::test]
async fn the_lock_wins_over_the_checksum_file() {
    let machine = Machine::fit();
    runnable(&machine);
    machine
        .files
        .put("/var/lib/orch/artifacts/k3s", "BIN", 0o644);
    machine.files.put(
        "/var/lib/orch/artifacts/sha256sum-amd64.txt",
        &sums(&[("BIN", "k3s")]),
        0o644,
    );
    let mut config = server_config();
    config
        .artifacts
        .sha256
        .insert("k3s".to_owned(), "0".repeat(64));
    let failure = run(machine.system(), &config).await.unwrap_err();
    assert!(failure.error().to_string().contains(&"0".repeat(64)));
}

#[tokio::test]
async fn the_release_is_downloaded_once_and_then_known() {
    let machine = Machine::fit();
    runnable(&machine);
    let download = FakeDownload::new(
        &machine.files,
        &[
            (
                &format!("{RELEASE}/sha256sum-amd64.txt"),
                &sums(&[("BIN", "k3s")]),
            ),
            (&format!("{RELEASE}/k3s"), "BIN"),
        ],
    );
    let system = System {
        download: &download,
        ..machine.system()
    };
    let config = server_config();
    run(system, &config).await.unwrap();
    run(system, &config).await.unwrap();
    assert_eq!(download.asked.lock().unwrap().len(), 2);
    assert_eq!(machine.files.text("/usr/local/bin/k3s").unwrap(), "BIN");
}

#[tokio::test]
async fn a_download_with_a_wrong_checksum_leaves_nothing_behind() {
    let machine = Machine::fit();
    let download = FakeDownload::new(
        &machine.files,
        &[
            (
                &format!("{RELEASE}/sha256sum-amd64.txt"),
                &sums(&[("BIN", "k3s")]),
            ),
            (&format!("{RELEASE}/k3s"), "EVIL"),
        ],
    );
    let system = System {
        download: &download,
        ..machine.system()
    };
    let failure = run(system, &server_config()).await.unwrap_err();
    assert!(failure.error().to_string().contains(&sha256_hex(b"EVIL")));
    assert_eq!(machine.files.text("/usr/local/bin/k3s"), None);
    assert_eq!(
        machine.files.text("/var/lib/orch/cache/v1.34.2+k3s1/k3s"),
        None
    );
}

#[tokio::test]
async fn another_version_is_refused() {
    let machine = Machine::fit();
    machine.commands.answer(
        "/usr/local/bin/.k3s.orch-new",
        0,
        "k3s version v1.33.4+k3s1 (abc)\n",
    );
    machine.files.put("/srv/k3s", "BIN", 0o644);
    let mut config = server_config();
    config.artifacts.binary = Some("/srv/k3s".into());
    let failure = run(machine.system(), &config).await.unwrap_err();
    let message = failure.error().to_string();
    assert!(
        message.contains("v1.33.4+k3s1") && message.contains("v1.34.2+k3s1"),
        "{message}"
    );
    assert_eq!(machine.files.text("/usr/local/bin/k3s"), None);
}

#[tokio::test]
async fn nothing_anywhere_and_no_download_says_where_it_looked() {
    let machine = Machine::fit();
    let mut config = server_config();
    config.artifacts.release_url = None;
    let failure = run(machine.system(), &config).await.unwrap_err();
    assert!(
        failure
            .error()
            .to_string()
            .contains("/var/lib/orch/artifacts")
    );
}
