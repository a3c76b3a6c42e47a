//! Deletes K3s's files and orch's, but never the shared directory's content, and not what the host
//! uploaded: provisioning again needs it.

use std::path::Path;

use async_trait::async_trait;
use orch_contract::{Action, Change, Role, Subject, node_paths};
use orch_runner::{Check, Step, StepFailure, StepReport};

use super::RemoveError;
use crate::k3s::paths;
use crate::k3s::units::{JOIN_UNIT, environment_path, unit_name, unit_path};
use crate::system::{FileError, Invocation, System};

pub(crate) struct DeleteFiles<'a> {
    pub(crate) system: System<'a>,
}

const UNITS: [&str; 3] = [JOIN_UNIT, unit_name(Role::Server), unit_name(Role::Agent)];
const EXPORTS: &str = "/etc/exports.d/orch.exports";
/// What `systemctl enable` made for units whose file somebody has deleted.
const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";
/// Where a run that was killed may have left a file that it was writing.
const WRITTEN: [&str; 7] = [
    paths::UNIT_DIRECTORY,
    "/usr/local/bin",
    "/etc/containerd-extra",
    "/etc/exports.d",
    "/etc/modules-load.d",
    "/etc/sysctl.d",
    node_paths::STATE_DIRECTORY,
];
/// Directories that go when nothing is left in them.
const PARENTS: [&str; 3] = ["/etc/containerd-extra", "/etc/rancher", "/var/lib/rancher"];

fn candidates() -> Vec<String> {
    let mut paths: Vec<String> = UNITS.iter().map(|unit| unit_path(unit)).collect();
    paths.extend([Role::Server, Role::Agent].map(environment_path));
    paths.extend(
        [
            "/etc/rancher/k3s",
            // The node's password: the join service makes the server forget its side.
            "/etc/rancher/node",
            paths::DATA,
            "/var/lib/kubelet",
            "/var/lib/cni",
            "/var/log/containers",
            "/var/log/pods",
            "/run/k3s",
            "/run/flannel",
            "/etc/containerd-extra/orch.toml",
            EXPORTS,
            "/etc/modules-load.d/orch.conf",
            "/etc/sysctl.d/90-orch.conf",
            paths::JOIN_TOKEN,
            node_paths::APPLIED,
            node_paths::CACHE,
            paths::BINARY,
        ]
        .map(str::to_owned),
    );
    paths
}

impl DeleteFiles<'_> {
    fn present(&self) -> Result<Vec<String>, FileError> {
        let files = self.system.files;
        let mut present = self.links()?;
        for directory in WRITTEN {
            let left = files.list(Path::new(directory))?.into_iter();
            present.extend(
                left.filter(|path| is_unfinished(path))
                    .map(|path| path.display().to_string()),
            );
        }
        for path in candidates() {
            let path_ref = Path::new(&path);
            // A directory that is somebody's mount can be emptied but not removed.
            let is_empty_mount = files.exists(path_ref)?
                && files.read(path_ref).is_err()
                && files.list(path_ref)?.is_empty();
            if files.exists(path_ref)? && !is_empty_mount {
                present.push(path);
            }
        }
        for parent in PARENTS {
            let path = Path::new(parent);
            if files.exists(path)? && files.list(path)?.is_empty() {
                present.push(parent.to_owned());
            }
        }
        Ok(present)
    }

    /// Links of ours, also those that lead nowhere by now.
    fn links(&self) -> Result<Vec<String>, FileError> {
        let files = self.system.files;
        let mut links = Vec::new();
        let binary = files.sha256(Path::new(paths::BINARY))?;
        for name in paths::LINKS {
            let link = format!("/usr/local/bin/{name}");
            let path = Path::new(&link);
            let leads_to_k3s =
                files.link_target(path)?.as_deref() == Some(Path::new(paths::BINARY));
            let is_k3s = binary.is_some() && files.sha256(path)? == binary;
            if leads_to_k3s || is_k3s {
                links.push(link);
            }
        }
        for unit in UNITS {
            let link = format!("{WANTS}/{unit}");
            if files.link_target(Path::new(&link))?.is_some() {
                links.push(link);
            }
        }
        Ok(links)
    }

    async fn delete(&self) -> Result<(), RemoveError> {
        let mut was_exported = false;
        // The second time round, the directories that are empty by now.
        for _ in 0..2 {
            for path in self.present()? {
                was_exported |= path == EXPORTS;
                self.system.files.remove(Path::new(&path))?;
            }
        }
        if was_exported {
            // Without its file an export lives on until somebody says so. No NFS server, no export.
            let forget = Invocation::new("exportfs", ["-r", "-a"]);
            let _ = self.system.commands.run(&forget).await;
        }
        Ok(self.system.services.reload().await?)
    }
}

/// A file that has not got its name yet.
fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') && (name.ends_with(".orch-tmp") || name.ends_with(".orch-new"))
}

#[async_trait]
impl Step for DeleteFiles<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "delete_files"
    }

    fn title(&self) -> String {
        "Delete K3s's files".to_owned()
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let present = self.present().map_err(RemoveError::File)?;
        let changes = present
            .into_iter()
            .map(|path| Change::new(Subject::File, path, Action::Remove, "is there"));
        Ok(Check::of(changes.collect(), || ()))
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.delete().await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Machine;

    #[tokio::test]
    async fn data_and_uploads_stay() {
        let machine = Machine::fit();
        for path in [
            "/var/lib/orch/volumes/db/file",
            "/var/lib/orch/artifacts/k3s",
            "/etc/orch/node.json",
            "/usr/local/bin/kubectl",
        ] {
            machine.files.put(path, "keep", 0o644);
        }
        for path in [
            "/var/lib/rancher/k3s/server/db",
            "/etc/rancher/k3s/config.yaml",
            "/var/lib/orch/join-token",
            "/usr/local/bin/k3s",
        ] {
            machine.files.put(path, "gone", 0o644);
        }
        let step = DeleteFiles {
            system: machine.system(),
        };
        step.delete().await.unwrap();
        assert_eq!(step.present().unwrap(), Vec::<String>::new());
        assert!(
            machine
                .files
                .text("/var/lib/orch/volumes/db/file")
                .is_some()
        );
        assert!(machine.files.text("/usr/local/bin/kubectl").is_some());
        assert!(machine.files.text("/etc/orch/node.json").is_some());
        assert!(
            machine
                .files
                .text("/var/lib/rancher/k3s/server/db")
                .is_none()
        );
    }
}
