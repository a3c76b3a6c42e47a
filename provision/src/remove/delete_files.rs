//! Deletes K3s's files and orch's, but never the shared directory's content, and not what the host
//! uploaded: provisioning again needs it.

use std::path::Path;

use async_trait::async_trait;
use orch_contract::{Action, Change, Role, Subject, node_paths};
use orch_runner::{Check, Step, StepFailure, StepReport};

use super::RemoveError;
use crate::k3s::paths;
use crate::k3s::units::{JOIN_UNIT, environment_path, unit_name, unit_path};
use crate::system::{FileError, System};

pub(crate) struct DeleteFiles<'a> {
    pub(crate) system: System<'a>,
}

fn candidates() -> Vec<String> {
    let mut paths = vec![
        unit_path(JOIN_UNIT),
        unit_path(unit_name(Role::Server)),
        unit_path(unit_name(Role::Agent)),
        environment_path(Role::Server),
        environment_path(Role::Agent),
    ];
    paths.extend(
        [
            "/etc/rancher/k3s",
            // The node's password: the join service makes the server forget its side.
            "/etc/rancher/node",
            paths::DATA,
            "/var/lib/kubelet",
            "/var/lib/cni",
            "/run/k3s",
            "/run/flannel",
            "/etc/containerd-extra/orch.toml",
            "/etc/exports.d/orch.exports",
            "/etc/modules-load.d/orch.conf",
            "/etc/sysctl.d/90-orch.conf",
            paths::AGENT_TOKEN,
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
        let mut present = Vec::new();
        // Links that lead to K3s's binary go before it does.
        for name in paths::LINKS {
            let link = format!("/usr/local/bin/{name}");
            let binary = files.sha256(Path::new(paths::BINARY))?;
            if binary.is_some() && files.sha256(Path::new(&link))? == binary {
                present.push(link);
            }
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
        Ok(present)
    }

    async fn delete(&self) -> Result<(), RemoveError> {
        for path in self.present()? {
            self.system.files.remove(Path::new(&path))?;
        }
        Ok(self.system.services.reload().await?)
    }
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
