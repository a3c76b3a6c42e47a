//! The directory that every node shares.
//!
//! Over NFS, the first server mounts its own export as the agents do: a lock that one node takes with flock(2) excludes the others
//! only if all of them take it through the NFS server.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::{Action, Change, ExitCode, NodeConfig, StorageKind, Subject, node_paths};
use orch_runner::{
    Check, ExitCoded, Probe, Step, StepFailure, StepReport, Wait, WaitError, error_chain,
};

use super::Context;
use crate::desired::DesiredFiles;
use crate::host::mounts::{mount_at, parse_mounts};
use crate::k3s::units::{unit_name, unit_path};
use crate::system::{CommandError, FileError, Invocation};

const EXPORTS: &str = "/etc/exports.d/orch.exports";
/// The packages that bring the programs, as Debian and as Red Hat name them.
const NFS_SERVER: [&str; 2] = ["nfs-kernel-server", "nfs-utils"];
const NFS_CLIENT: [&str; 2] = ["nfs-common", "nfs-utils"];
const NFS_SERVER_UNIT: &str = "nfs-server.service";
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);
const MOUNT_TIMEOUT: Duration = Duration::from_secs(120);
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Why the shared directory is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountStorageError {
    #[error(
        "nothing is mounted at {}, so data would stay on this node and be lost when a pod moves; \
         mount the shared directory there, or set storage.kind", path.display()
    )]
    NotMounted { path: PathBuf },
    #[error("{} is mounted from {source_name} ({kind}), not from {expected}; unmount it", path.display())]
    MountedElsewhere {
        path: PathBuf,
        source_name: String,
        kind: String,
        expected: String,
    },
    #[error(
        "NFS needs the package {package}, which could not be installed; install it and try again"
    )]
    Package {
        package: &'static str,
        source: CommandError,
    },
    #[error("cannot export {}; does this kernel have an NFS server (nfsd)?", path.display())]
    Export { path: PathBuf, source: CommandError },
    #[error("cannot mount {remote} at {}; is the server provisioned, and does TCP port 2049 reach it?", path.display())]
    Mount {
        remote: String,
        path: PathBuf,
        source: WaitError,
    },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for MountStorageError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Host
    }
}

pub(crate) struct MountStorage<'a> {
    pub(crate) context: Context<'a>,
}

impl MountStorage<'_> {
    fn path(&self) -> &Path {
        &self.context.config.storage.path
    }

    fn remote(&self) -> String {
        let host = match self.context.config.servers.first.address {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => format!("[{address}]"),
        };
        format!("{host}:{}", node_paths::EXPORTED)
    }

    /// The files that make the mount or the export survive a reboot.
    fn files(&self) -> DesiredFiles {
        let mut desired = DesiredFiles::default();
        let config = self.context.config;
        if config.storage.kind != StorageKind::Nfs {
            return desired;
        }
        if config.is_first_server() {
            let mut line = node_paths::EXPORTED.to_owned();
            for client in &config.storage.clients {
                // Databases change the owner of their directories, which root must be able to do.
                let _ = write!(line, " {client}(rw,sync,no_subtree_check,no_root_squash)");
            }
            let text = format!("# Written by orch-provision.\n{line}\n");
            desired.add(EXPORTS, text, 0o644);
        }
        desired.add(
            unit_path(&mount_unit_name(self.path())),
            mount_unit(&self.remote(), self.path(), config),
            0o644,
        );
        desired
    }

    async fn inspect(&self) -> Result<Vec<Change>, MountStorageError> {
        let system = self.context.system;
        let config = self.context.config;
        let mut needed = self.files().changes(system.files)?;
        let mountinfo = system
            .files
            .read_text(Path::new("/proc/self/mountinfo"))?
            .unwrap_or_default();
        let mounts = parse_mounts(&mountinfo);
        let mount = mount_at(&mounts, self.path());
        match (config.storage.kind, mount) {
            (StorageKind::None, _) | (StorageKind::Bind, Some(_)) => return Ok(needed),
            (StorageKind::Bind, None) => {
                return Err(MountStorageError::NotMounted {
                    path: self.path().to_owned(),
                });
            }
            (StorageKind::Nfs, None) => {
                needed.push(Change::new(
                    Subject::Mount,
                    self.path().display().to_string(),
                    Action::Mount,
                    format!("is not mounted from {}", self.remote()),
                ));
            }
            (StorageKind::Nfs, Some(mount)) => {
                if !mount.kind.starts_with("nfs") || mount.source != self.remote() {
                    return Err(MountStorageError::MountedElsewhere {
                        path: self.path().to_owned(),
                        source_name: mount.source.clone(),
                        kind: mount.kind.clone(),
                        expected: self.remote(),
                    });
                }
            }
        }
        if config.is_first_server() {
            if !system.files.exists(Path::new(node_paths::EXPORTED))? {
                needed.push(Change::new(
                    Subject::Directory,
                    node_paths::EXPORTED,
                    Action::Create,
                    "is missing",
                ));
            }
            if !system.services.state(NFS_SERVER_UNIT).await?.is_active() {
                needed.push(Change::new(
                    Subject::Service,
                    NFS_SERVER_UNIT,
                    Action::Start,
                    "does not run",
                ));
            }
        }
        if !needed.is_empty() {
            needed.extend(self.missing_packages()?);
        }
        Ok(needed)
    }

    /// What is installed on the way.
    fn missing_packages(&self) -> Result<Vec<Change>, FileError> {
        let mut missing = Vec::new();
        for (program, package) in [("exportfs", NFS_SERVER), ("mount.nfs4", NFS_CLIENT)] {
            let is_wanted = program == "mount.nfs4" || self.context.config.is_first_server();
            if is_wanted && !self.has_program(program)? {
                missing.push(Change::new(
                    Subject::Package,
                    format!("{} or {}", package[0], package[1]),
                    Action::Install,
                    "is not installed",
                ));
            }
        }
        Ok(missing)
    }

    fn has_program(&self, program: &str) -> Result<bool, FileError> {
        for directory in ["/usr/sbin", "/sbin", "/usr/bin"] {
            let path = Path::new(directory).join(program);
            if self.context.system.files.exists(&path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn export(&self) -> Result<(), MountStorageError> {
        let system = self.context.system;
        self.ensure_program("exportfs", NFS_SERVER).await?;
        let exported = Path::new(node_paths::EXPORTED);
        if !system.files.exists(exported)? {
            system.files.create_directory(exported, 0o755)?;
        }
        self.files().write(system.files)?;
        let export = |source| MountStorageError::Export {
            path: exported.to_owned(),
            source,
        };
        for invocation in [
            Invocation::new("systemctl", ["enable", "--now", NFS_SERVER_UNIT])
                .timeout(MOUNT_TIMEOUT),
            Invocation::new("exportfs", ["-r", "-a"]),
        ] {
            system.commands.run_ok(&invocation).await.map_err(export)?;
        }
        Ok(())
    }

    /// Mounts it, waiting for a server that is being provisioned at the same time.
    async fn mount(&self, report: &StepReport<'_>) -> Result<(), MountStorageError> {
        let system = self.context.system;
        self.ensure_program("mount.nfs4", NFS_CLIENT).await?;
        if !system.files.exists(self.path())? {
            system.files.create_directory(self.path(), 0o755)?;
        }
        self.files().write(system.files)?;
        system.services.reload().await?;
        let unit = mount_unit_name(self.path());
        let invocation =
            Invocation::new("systemctl", ["enable", "--now", &unit]).timeout(MOUNT_TIMEOUT);
        let wait = Wait {
            condition: format!("{} mounted from {}", self.path().display(), self.remote()),
            timeout: Duration::from_secs(self.context.config.timeouts.join_seconds),
            interval: RETRY_INTERVAL,
        };
        let mounted = wait.until(report, || async {
            match system.commands.run_ok(&invocation).await {
                Ok(_) => Ok(Probe::Met(())),
                Err(error) if error.is_missing() => Err(error),
                Err(error) => Ok(Probe::Pending(error_chain(&error).join(": "))),
            }
        });
        mounted.await.map_err(|source| MountStorageError::Mount {
            remote: self.remote(),
            path: self.path().to_owned(),
            source,
        })??;
        Ok(())
    }

    /// Installs the package that brings a program, with whichever package manager there is.
    async fn ensure_program(
        &self,
        program: &str,
        [debian, red_hat]: [&'static str; 2],
    ) -> Result<(), MountStorageError> {
        if self.has_program(program)? {
            return Ok(());
        }
        let system = self.context.system;
        let apt = Invocation::new(
            "apt-get",
            [
                // A fresh machine may be at its own first upgrade.
                "-o",
                "DPkg::Lock::Timeout=300",
                "install",
                "--yes",
                "--no-install-recommends",
                debian,
            ],
        )
        .timeout(INSTALL_TIMEOUT);
        match system.commands.run_ok(&apt).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_missing() => {
                let dnf = Invocation::new("dnf", ["install", "--assumeyes", red_hat])
                    .timeout(INSTALL_TIMEOUT);
                system
                    .commands
                    .run_ok(&dnf)
                    .await
                    .map(|_| ())
                    .map_err(|source| MountStorageError::Package {
                        package: red_hat,
                        source,
                    })
            }
            Err(_) => {
                // An installation that was cut off keeps every later one from beginning. Where there was none, this does nothing.
                let finish = Invocation::new("dpkg", ["--configure", "-a"]);
                let _ = system.commands.run(&finish.timeout(INSTALL_TIMEOUT)).await;
                // The lists of a fresh image are often empty or stale.
                let update = Invocation::new("apt-get", ["update"]).timeout(INSTALL_TIMEOUT);
                let package = |source| MountStorageError::Package {
                    package: debian,
                    source,
                };
                system.commands.run_ok(&update).await.map_err(package)?;
                system
                    .commands
                    .run_ok(&apt)
                    .await
                    .map(|_| ())
                    .map_err(package)
            }
        }
    }
}

#[async_trait]
impl Step for MountStorage<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "mount_storage"
    }

    fn title(&self) -> String {
        match self.context.config.storage.kind {
            StorageKind::None => "No shared directory is asked for".to_owned(),
            StorageKind::Bind | StorageKind::Nfs => {
                format!("Share {}", self.path().display())
            }
        }
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        Ok(Check::of(self.inspect().await?, || ()))
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<(), StepFailure> {
        if self.context.config.is_first_server() {
            self.export().await?;
        }
        self.mount(report).await?;
        Ok(())
    }

    fn planned(&self) {}
}

/// systemd demands that a mount unit be named after its path (systemd.unit(5), "String escaping").
pub(crate) fn mount_unit_name(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut name = String::new();
    for (index, byte) in text.trim_matches('/').bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if index == 0 => name.push_str("\\x2e"),
            byte if byte.is_ascii_alphanumeric() || b"_.:".contains(&byte) => {
                name.push(char::from(byte));
            }
            byte => {
                let _ = write!(name, "\\x{byte:02x}");
            }
        }
    }
    format!("{name}.mount")
}

/// Hard and synchronous: a database must see its write fail or arrive, never be forgotten.
fn mount_unit(remote: &str, path: &Path, config: &NodeConfig) -> String {
    let unit = unit_name(config.node.role);
    let order = if config.is_first_server() {
        format!(
            "After=network-online.target {NFS_SERVER_UNIT}\nRequires={NFS_SERVER_UNIT}\nBefore={unit}"
        )
    } else {
        format!("After=network-online.target\nBefore={unit}")
    };
    format!(
        "\
# Written by orch-provision.
[Unit]
Description=Directory shared by the cluster's nodes
Wants=network-online.target
{order}

[Mount]
What={remote}
Where={path}
Type=nfs4
Options=nfsvers=4.2,hard,sync,noatime,_netdev
TimeoutSec=60

[Install]
WantedBy=multi-user.target
",
        path = path.display()
    )
}

#[cfg(test)]
mod tests;
