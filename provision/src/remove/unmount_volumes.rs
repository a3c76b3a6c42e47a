//! Unmounts what K3s and the kubelet mounted, deepest first, and the shared directory where orch
//! mounted it over NFS.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use orch_contract::{Action, Change, Subject, node_paths};
use orch_runner::{Check, Step, StepFailure, StepReport};

use super::RemoveError;
use crate::host::mounts::parse_mounts;
use crate::k3s::units::unit_path;
use crate::steps::mount_unit_name;
use crate::system::{FileError, Invocation, System};

/// Below these nothing mounted survives; the directories themselves may be somebody's mounts.
const BELOW: [&str; 4] = [
    "/run/k3s",
    "/var/lib/rancher/k3s",
    "/var/lib/kubelet",
    "/run/netns",
];

pub(crate) struct UnmountVolumes<'a> {
    pub(crate) system: System<'a>,
}

impl UnmountVolumes<'_> {
    fn mounted(&self) -> Result<Vec<PathBuf>, FileError> {
        let text = self
            .system
            .files
            .read_text(Path::new("/proc/self/mountinfo"))?
            .unwrap_or_default();
        let mut points: Vec<PathBuf> = parse_mounts(&text)
            .into_iter()
            .map(|mount| mount.point)
            .filter(|point| is_ours(point))
            .collect();
        points.reverse();
        Ok(points)
    }

    /// The unit that orch made for the shared directory, if it did.
    fn shared_unit(&self) -> Result<Option<String>, FileError> {
        let unit = mount_unit_name(Path::new(node_paths::VOLUMES));
        let exists = self.system.files.exists(Path::new(&unit_path(&unit)))?;
        Ok(exists.then_some(unit))
    }

    async fn unmount(&self) -> Result<(), RemoveError> {
        if let Some(unit) = self.shared_unit()? {
            self.system.services.stop(&unit).await?;
            self.system.files.remove(Path::new(&unit_path(&unit)))?;
        }
        for point in self.mounted()? {
            let invocation =
                Invocation::new("umount", ["-l".to_owned(), point.display().to_string()]);
            self.system.commands.run_ok(&invocation).await?;
        }
        Ok(())
    }
}

/// A container's network namespace is mounted under /run/netns; others' namespaces are, too.
fn is_ours(point: &Path) -> bool {
    BELOW.iter().any(|directory| {
        let Ok(rest) = point.strip_prefix(directory) else {
            return false;
        };
        let name = rest.to_string_lossy();
        !name.is_empty() && (*directory != "/run/netns" || name.starts_with("cni-"))
    })
}

#[async_trait]
impl Step for UnmountVolumes<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "unmount_volumes"
    }

    fn title(&self) -> String {
        "Unmount volumes".to_owned()
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let mounted = self.mounted().map_err(RemoveError::File)?;
        let shared = self.shared_unit().map_err(RemoveError::File)?;
        let mounted = mounted.iter().map(|point| point.display().to_string());
        let changes = shared
            .into_iter()
            .chain(mounted)
            .map(|name| Change::new(Subject::Mount, name, Action::Remove, "is there"));
        Ok(Check::of(changes.collect(), || ()))
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.unmount().await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Machine;

    #[test]
    fn the_deepest_goes_first_and_others_mounts_stay() {
        let machine = Machine::fit();
        let lines = [
            "/",
            "/var/lib/kubelet",
            "/var/lib/rancher",
            "/var/lib/kubelet/pods/a",
            "/var/lib/kubelet/pods/a/volumes/b",
            "/run/k3s/containerd/x",
            "/run/netns/mine",
            "/run/netns/cni-1",
            "/var/lib/orch/volumes",
        ]
        .map(|point| format!("1 2 0:3 / {point} rw - tmpfs tmpfs rw\n"));
        machine
            .files
            .put("/proc/self/mountinfo", &lines.concat(), 0o444);
        let step = UnmountVolumes {
            system: machine.system(),
        };
        let expected = [
            "/run/netns/cni-1",
            "/run/k3s/containerd/x",
            "/var/lib/kubelet/pods/a/volumes/b",
            "/var/lib/kubelet/pods/a",
        ];
        assert_eq!(step.mounted().unwrap(), expected.map(PathBuf::from));
    }
}
