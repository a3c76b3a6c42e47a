//! This host: what it must have before machines and images can be made, and how to get it.
//!
//! Boundary: looks at and changes the host only. Each requirement can be checked and most can be
//! met by [`Requirement::fix`]; nothing is installed that is already there.

mod engine;
pub mod group;
mod packages;
mod ports;
mod space;

use std::path::PathBuf;

use crate::process::{RunError, find_program};

pub use engine::Engine;
pub use packages::{Privilege, debian_mirror, has_vagrant_libvirt};
pub use ports::{PortOwner, port_owner};

/// Why the host is not ready.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{what} is missing and cannot be installed from here: {how}")]
    NotInstallable { what: &'static str, how: String },
    #[error(
        "installing {packages} needs root: run as root, or install sudo, or run `{command}` yourself"
    )]
    NoPrivilege { packages: String, command: String },
    #[error("cannot install {packages}")]
    Install { packages: String, source: RunError },
    #[error("the Docker engine does not answer after {seconds} s; see {log}")]
    EngineSilent { seconds: u64, log: PathBuf },
    #[error("the Docker engine ended as it was starting; its last lines in {log} say why")]
    EngineEnded { log: PathBuf },
    #[error("cannot start the Docker engine")]
    EngineStart { source: RunError },
    #[error(
        "the Docker engine runs but this user may not use it: add the user to the group `docker` or run as root ({detail})"
    )]
    EngineRefused { detail: String },
    #[error(
        "port {port} on this host is taken by {owner}; stop it, or give `{key}` another number in orch.yaml"
    )]
    PortTaken {
        port: u16,
        owner: PortOwner,
        key: String,
    },
    #[error(
        "{path} has {free_mib} MiB free and needs {needed_mib}; make room (`docker image prune`, destroy clusters, empty the cache){hint}"
    )]
    DiskFull {
        path: PathBuf,
        free_mib: u64,
        needed_mib: u64,
        /// What else helps here.
        hint: &'static str,
    },
    #[error("cannot {operation}")]
    Io {
        operation: String,
        source: std::io::Error,
    },
}

/// Something the host must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// A program, and the Debian package that brings it.
    Program {
        name: &'static str,
        package: &'static str,
        why: &'static str,
        /// Where it is to be had on a distribution without that package.
        home: &'static str,
    },
    /// The Docker engine's program.
    EngineInstalled,
    /// An engine that answers.
    EngineRunning,
    /// Docker's buildx plugin.
    Buildx,
    /// TCP ports on 127.0.0.1 that nobody else uses, with their key in `orch.yaml`.
    PortsFree(Vec<(u16, String)>),
    /// Vagrant's plugin for libvirt.
    VagrantLibvirt,
    /// Free space, in MiB, where the engine keeps its data, as far as that is on this host.
    EngineSpace { mib: u64 },
    /// Free space, in MiB, where a path lies.
    Space { path: PathBuf, mib: u64 },
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// In place; the text says what was found.
    Present(String),
    /// Missing; the text says what and why it is needed.
    Missing(String),
}

impl Requirement {
    /// The name in reports.
    pub fn name(&self) -> String {
        match self {
            Self::Program { name, .. } => (*name).to_owned(),
            Self::EngineInstalled => "docker".into(),
            Self::EngineRunning => "docker engine".into(),
            Self::Buildx => "docker buildx".into(),
            Self::PortsFree(_) => "ports".into(),
            Self::VagrantLibvirt => "vagrant-libvirt".into(),
            Self::EngineSpace { .. } => "space of the Docker engine".into(),
            Self::Space { path, .. } => format!("space in {}", path.display()),
        }
    }

    /// Looks, changes nothing.
    pub async fn check(&self) -> Result<Finding, HostError> {
        Ok(match self {
            Self::Program { name, why, .. } => match find_program(name) {
                Some(path) => Finding::Present(path.display().to_string()),
                None => Finding::Missing(format!("{name} is not installed ({why})")),
            },
            Self::EngineInstalled => match (find_program("dockerd"), find_program("docker")) {
                (Some(path), Some(_)) => Finding::Present(path.display().to_string()),
                // An engine elsewhere (Docker Desktop, a remote context) needs no local program.
                (None, Some(_)) if Engine::version().await.is_some() => {
                    Finding::Present("an engine that runs elsewhere".into())
                }
                _ => Finding::Missing("the Docker engine is not installed".into()),
            },
            Self::EngineRunning => match Engine::version().await {
                Some(version) => Finding::Present(format!("version {version}")),
                None => {
                    Engine::check_allowed().await?;
                    Finding::Missing("the Docker engine does not run".into())
                }
            },
            Self::VagrantLibvirt => {
                if has_vagrant_libvirt() {
                    Finding::Present("installed".into())
                } else {
                    Finding::Missing(
                        "vagrant-libvirt is not installed (how Vagrant makes libvirt's machines)"
                            .into(),
                    )
                }
            }
            Self::Buildx => match Engine::buildx_version().await {
                Some(version) => Finding::Present(version),
                None => Finding::Missing("Docker's buildx plugin is not installed".into()),
            },
            Self::PortsFree(ports) => {
                for (port, key) in ports {
                    if let Some(owner) = port_owner(*port) {
                        return Err(HostError::PortTaken {
                            port: *port,
                            owner,
                            key: key.clone(),
                        });
                    }
                }
                let list: Vec<_> = ports.iter().map(|(port, _)| port.to_string()).collect();
                Finding::Present(format!("{} free", list.join(", ")))
            }
            Self::Space { path, mib } => {
                space::require(path, *mib, " or set ORCH_CACHE to another disk")?
            }
            Self::EngineSpace { mib } => match Engine::data().await {
                Some(path) => space::require(
                    &path,
                    *mib,
                    " or give the engine another `data-root` in /etc/docker/daemon.json",
                )?,
                None => Finding::Present("the engine's data is not on this host".into()),
            },
        })
    }

    /// Installs or starts what [`Requirement::check`] found missing.
    pub async fn fix(&self, privilege: &Privilege) -> Result<(), HostError> {
        match self {
            Self::Program {
                name,
                package,
                home,
                ..
            } => match privilege.install(&[package]).await {
                Err(HostError::Install { .. }) if !packages::is_known(package).await => {
                    Err(HostError::NotInstallable {
                        what: name,
                        how: format!("apt has no package {package} here; install it from {home}"),
                    })
                }
                result => result,
            },
            Self::EngineInstalled => privilege.install(&["docker.io", "iptables"]).await,
            Self::EngineRunning => Engine::start(privilege).await,
            Self::Buildx => packages::install_buildx(privilege).await,
            Self::VagrantLibvirt => privilege.install(&["vagrant-libvirt"]).await,
            // All are errors already when they are checked: only the user can decide.
            Self::PortsFree(_) | Self::Space { .. } | Self::EngineSpace { .. } => Ok(()),
        }
    }
}
