//! A plan says what a run then does, changes nothing, and shows nothing secret.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use orch_contract::{
    Action, Change, Event, Mirror, Outcome, RegistryAuth, RegistryConfig, Role, Secret,
};
use orch_runner::Recorder;

use super::*;
use crate::k3s::paths;
use crate::system::{Disk, FileError, Files, Space};
use crate::testing::node::{Node, changes, lines};

/// Waits depend on the moment and change nothing.
fn without_waits(events: &[Event]) -> Vec<(String, Vec<Change>)> {
    let mut steps = changes(events);
    for (_, changes) in &mut steps {
        changes.retain(|change| change.action != Action::Wait);
    }
    steps.retain(|(_, changes)| !changes.is_empty());
    steps
}

#[tokio::test]
async fn on_an_empty_server_a_run_does_exactly_what_its_plan_said() {
    let node = Node::new(Role::Server);
    let planned = node.up(true).await;
    let applied = node.up(false).await;
    assert_eq!(without_waits(&planned), without_waits(&applied));
    let lines = lines(&planned);
    for expected in [
        "update net.ipv4.ip_forward is 0, not 1",
        "install /usr/local/bin/k3s is missing: v1.34.2+k3s1 from /var/lib/orch/artifacts/k3s",
        "create /etc/rancher/k3s/config.yaml is missing",
        "enable k3s.service would not start at boot",
        "start k3s.service was not started by orch yet",
    ] {
        assert!(
            lines.iter().any(|line| line == expected),
            "{expected} in {lines:#?}"
        );
    }
    let [running, wanted] = node.running_and_wanted();
    assert_eq!(running, wanted);
    let again = node.up(true).await;
    assert_eq!(changes(&again), []);
    assert!(matches!(
        again.last(),
        Some(Event::Summary {
            outcome: Outcome::Unchanged,
            ..
        })
    ));
}

#[tokio::test]
async fn an_empty_agent_is_planned_to_the_end_without_asking_for_a_token() {
    let node = Node::new(Role::Agent);
    let planned = lines(&node.up(true).await);
    assert!(
        planned
            .iter()
            .any(|line| line.starts_with("request /var/lib/orch/join-token")),
        "{planned:#?}"
    );
    assert!(
        planned
            .iter()
            .any(|line| line == "start k3s-agent.service has a new join token"),
        "{planned:#?}"
    );
    assert!(
        planned
            .last()
            .unwrap()
            .starts_with("wait agent is not ready")
    );
}

#[tokio::test]
async fn a_changed_configuration_and_version_are_planned_as_they_are_applied() {
    let mut node = Node::provisioned(Role::Server).await;
    node.config.k3s.disable = vec!["traefik".to_owned()];
    node.config.k3s.version = "v1.34.3+k3s1".to_owned();
    node.machine
        .files
        .put("/var/lib/orch/artifacts/k3s", "NEW", 0o644);
    let sum = crate::system::sha256_hex(b"NEW");
    node.config.artifacts.sha256.insert("k3s".to_owned(), sum);
    node.machine.commands.answer(
        "/usr/local/bin/.k3s.orch-new",
        0,
        "k3s version v1.34.3+k3s1\n",
    );
    let planned = node.up(true).await;
    let applied = node.up(false).await;
    assert_eq!(without_waits(&planned), without_waits(&applied));
    assert_eq!(
        lines(&planned),
        [
            "update /usr/local/bin/k3s is v1.34.2+k3s1: v1.34.3+k3s1 from /var/lib/orch/artifacts/k3s",
            "update /etc/rancher/k3s/config.yaml differs",
            "restart k3s.service was started with another /etc/rancher/k3s/config.yaml, /usr/local/bin/k3s",
        ]
    );
    let diff = &changes(&planned)[1].1[0].diff;
    assert!(
        diff.contains(&"+disable:".to_owned()) && diff.contains(&"+  - traefik".to_owned()),
        "{diff:#?}"
    );
}

#[tokio::test]
async fn no_secret_is_in_any_event_of_a_plan_or_a_run() {
    let mut node = Node::new(Role::Server);
    let auth = RegistryAuth {
        username: "hunter1".to_owned(),
        password: Secret::new("hunter2"),
    };
    let registries = &mut node.config.registries;
    registries.configs.insert(
        "example.org".to_owned(),
        RegistryConfig {
            auth: Some(auth),
            tls: None,
        },
    );
    registries.mirrors.insert(
        "docker.io".to_owned(),
        Mirror {
            endpoints: vec!["https://hunter3:hunter4@example.org".to_owned()],
            ..Mirror::default()
        },
    );
    let k3s = &mut node.config.k3s;
    k3s.environment
        .insert("HTTPS_PROXY".to_owned(), Secret::new("http://hunter5"));
    k3s.config.insert(
        "datastore-endpoint".to_owned(),
        "postgres://u:hunter6@db/k3s".into(),
    );
    k3s.config
        .insert("etcd-s3-secret-key".to_owned(), "hunter7".into());
    let files = &node.machine.files;
    let yaml = "token: hunter8\nconfigs: {x: {auth: {token: hunter9}}}\n# hunter10\n";
    files.put(paths::CONFIG, yaml, 0o644);
    files.put(paths::REGISTRIES, yaml, 0o644);
    let environment = "A=hunter12\n# hunter13\nexport B=hunter14\n";
    files.put("/etc/systemd/system/k3s.service.env", environment, 0o644);
    files.put(
        "/etc/systemd/system/k3s.service",
        "[Service]\nEnvironment=K3S_TOKEN=hunter11\n",
        0o644,
    );
    for dry_run in [true, false] {
        let text = serde_json::to_string(&node.up(dry_run).await).unwrap();
        assert!(!text.contains("hunter"), "{text}");
        assert!(text.contains("example.org"), "{text}");
    }
}

/// The real file system below a directory, as if it were the root.
struct Below(PathBuf);

impl Below {
    fn at(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Everything there is, with its mode, its time and its content.
    fn inventory(&self) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
        let mut all = BTreeMap::new();
        let mut directories = vec![self.0.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = std::fs::symlink_metadata(&path).unwrap();
                if metadata.is_dir() {
                    directories.push(path.clone());
                }
                let content = std::fs::read(&path).unwrap_or_default();
                all.insert(
                    path,
                    (
                        metadata.mode(),
                        metadata.mtime(),
                        metadata.ctime_nsec(),
                        content,
                    ),
                );
            }
        }
        all
    }
}

impl Files for Below {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        Disk.read(&self.at(path))
    }
    fn mode(&self, path: &Path) -> Result<Option<u32>, FileError> {
        Disk.mode(&self.at(path))
    }
    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        Disk.set_mode(&self.at(path), mode)
    }
    fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
        Disk.write(&self.at(path), content, mode)
    }
    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<String, FileError> {
        Disk.copy(&self.at(from), &self.at(to), mode)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        Disk.rename(&self.at(from), &self.at(to))
    }
    fn sha256(&self, path: &Path) -> Result<Option<String>, FileError> {
        Disk.sha256(&self.at(path))
    }
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        Disk.list(&self.at(directory))
    }
    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        Disk.create_directory(&self.at(path), mode)
    }
    fn symlink(&self, target: &Path, link: &Path) -> Result<(), FileError> {
        Disk.symlink(target, &self.at(link))
    }
    fn link_target(&self, path: &Path) -> Result<Option<PathBuf>, FileError> {
        Disk.link_target(&self.at(path))
    }
    fn remove(&self, path: &Path) -> Result<(), FileError> {
        Disk.remove(&self.at(path))
    }
    fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError> {
        Disk.write_kernel(&self.at(path), value)
    }
    fn space(&self, path: &Path) -> Result<Space, FileError> {
        Disk.space(&self.at(path))
    }
}

#[tokio::test]
async fn a_plan_changes_no_file_and_no_unit() {
    for role in [Role::Server, Role::Agent] {
        let directory = tempfile::tempdir().unwrap();
        let root = Below(directory.path().to_owned());
        let node = Node::new(role);
        for (path, content, mode) in node.machine.files.all() {
            root.write(&path, &content, mode).unwrap();
        }
        // By hand, and not as it should be.
        for path in [
            paths::CONFIG,
            paths::REGISTRIES,
            "/etc/systemd/system/k3s.service.d/x.conf",
        ] {
            root.write(Path::new(path), b"edited: true\n", 0o644)
                .unwrap();
        }
        let before = root.inventory();
        let recorder = Recorder::default();
        let system = System {
            files: &root,
            ..node.system()
        };
        let outcome = node.run(system, &recorder, true).await.unwrap();
        assert_eq!(outcome, Outcome::Planned);
        assert_eq!(root.inventory(), before);
        assert_eq!(node.take_done(), Vec::<String>::new());
        let asked = node.machine.commands.asked_lines();
        let looks = ["ip -json", "ss ", "/usr/local/bin/k3s --version", "stat "];
        for line in asked {
            assert!(looks.iter().any(|look| line.starts_with(look)), "{line}");
        }
    }
}
