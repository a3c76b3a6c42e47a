//! Debian packages: installing them, and finding the mirror that the host's apt already uses.

use std::path::{Path, PathBuf};

use super::HostError;
use crate::process::{OnCancel, Program, find_program};

/// The Debian release after the stable one that orch supports: the first with a buildx package.
const NEXT_RELEASE: &str = "trixie";

/// The right to change the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    Root,
    Sudo,
    None,
}

impl Privilege {
    /// What this process has.
    pub fn detect() -> Self {
        if rustix::process::geteuid().is_root() {
            Self::Root
        } else if find_program("sudo").is_some() {
            Self::Sudo
        } else {
            Self::None
        }
    }

    /// `program` as root.
    pub(super) fn command(&self, program: &str, arguments: &[&str]) -> Result<Program, HostError> {
        match self {
            // Half an installation is worse than a late end. sudo may have to ask for a password, and
            // then needs the terminal.
            Self::Root => Ok(Program::new(program)
                .args(arguments)
                .on_cancel(OnCancel::Finish)),
            Self::Sudo => Ok(Program::new("sudo").args([program]).args(arguments)),
            Self::None => Err(HostError::NoPrivilege {
                packages: program.to_owned(),
                command: Program::new(program).args(arguments).pasteable(),
            }),
        }
    }

    /// Installs Debian packages; nothing is started that they bring.
    pub(super) async fn install(&self, packages: &[&str]) -> Result<(), HostError> {
        let names = packages.join(" ");
        if find_program("apt-get").is_none() {
            return Err(HostError::NotInstallable {
                what: "a package",
                how: format!(
                    "this host has no apt-get; install {names} with its own package manager"
                ),
            });
        }
        let failed = |source| HostError::Install {
            packages: names.clone(),
            source,
        };
        let arguments = ["install", "--yes", "--no-install-recommends"];
        let install = self
            .command("apt-get", &[&arguments[..], packages].concat())
            .map_err(|_| HostError::NoPrivilege {
                packages: names.clone(),
                command: format!("apt-get {} {names}", arguments.join(" ")),
            })?
            .env("DEBIAN_FRONTEND", "noninteractive");
        if install.run().await.is_ok() {
            return Ok(());
        }
        // An earlier installation may have been cut off.
        self.command("dpkg", &["--configure", "-a"])?
            .run()
            .await
            .map_err(failed)?;
        // The index may be missing or old: fetch it once and try again.
        self.command("apt-get", &["update"])?
            .run()
            .await
            .map_err(failed)?;
        install.run().await.map_err(failed)
    }
}

/// Whether Vagrant can talk to libvirt. Looks where Debian's package and `vagrant plugin install` put the plugin, because
/// Vagrant itself takes seconds to answer.
pub fn has_vagrant_libvirt() -> bool {
    let packaged = || {
        let folder = "/usr/share/rubygems-integration/all/specifications";
        std::fs::read_dir(folder).is_ok_and(|entries| {
            entries.filter_map(Result::ok).any(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with("vagrant-libvirt-")
            })
        })
    };
    let installed = || {
        let home = std::env::var_os("VAGRANT_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".vagrant.d")));
        home.and_then(|home| std::fs::read_to_string(home.join("plugins.json")).ok())
            .is_some_and(|plugins| plugins.contains("\"vagrant-libvirt\""))
    };
    packaged() || installed()
}

/// The Debian mirror that this host's apt is configured with.
pub async fn debian_mirror() -> Result<String, HostError> {
    let targets = Program::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(SITE) $(ORIGIN) $(LABEL)",
            "Created-By: Packages",
        ])
        .output()
        .await
        .map_err(|source| HostError::Install {
            packages: "the list of package sources".into(),
            source,
        })?;
    targets
        .lines()
        .find(|line| line.ends_with(" Debian Debian"))
        .and_then(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .ok_or_else(|| HostError::NotInstallable {
            what: "a Debian mirror",
            how: "apt knows no Debian source; run `apt-get update` and look at /etc/apt/sources.list.d".into(),
        })
}

/// Whether apt could install a package of this name.
pub(super) async fn is_known(package: &str) -> bool {
    let policy = Program::new("apt-cache")
        .args(["policy", package])
        .output()
        .await
        .unwrap_or_default();
    policy.contains("Candidate:") && !policy.contains("Candidate: (none)")
}

/// Installs buildx: from the distribution where it has the package, else from the next release.
pub(super) async fn install_buildx(privilege: &Privilege) -> Result<(), HostError> {
    if is_known("docker-buildx").await {
        return privilege.install(&["docker-buildx"]).await;
    }
    let failed = |source| HostError::Install {
        packages: format!("docker-buildx from {NEXT_RELEASE}"),
        source,
    };
    let io = |operation: &str| {
        let operation = operation.to_owned();
        move |source| HostError::Io { operation, source }
    };
    let mirror = debian_mirror().await?;
    // An index of its own, so that nothing else is ever upgraded from the next release.
    let folder = tempfile::Builder::new()
        .prefix("orch-buildx-")
        .tempdir()
        .map_err(io("make a temporary folder"))?;
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("lists/partial")).map_err(io("make a temporary folder"))?;
    std::fs::create_dir_all(path("cache/archives/partial"))
        .map_err(io("make a temporary folder"))?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        path("sources.list"),
        format!("deb [signed-by={keyring}] {mirror} {NEXT_RELEASE} main\n"),
    )
    .map_err(io("write a package source"))?;
    let option = |key: &str, file: &Path| format!("{key}={}", file.display());
    let options = [
        option("Dir::Etc::sourcelist", &path("sources.list")),
        "Dir::Etc::sourceparts=-".to_owned(),
        option("Dir::State::lists", &path("lists")),
        option("Dir::Cache", &path("cache")),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt = |verb: &[&str]| {
        let mut program = Program::new("apt-get").directory(folder.path());
        for option in &options {
            program = program.args(["-o", option]);
        }
        program.args(verb)
    };
    apt(&["update"]).run().await.map_err(failed)?;
    apt(&["download", "docker-buildx"])
        .run()
        .await
        .map_err(failed)?;
    let package = std::fs::read_dir(folder.path())
        .map_err(io("list the downloaded package"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| HostError::NotInstallable {
            what: "docker-buildx",
            how: format!("the mirror {mirror} has no such package in {NEXT_RELEASE}"),
        })?;
    privilege
        .command("dpkg", &["--install", &package.to_string_lossy()])?
        .run()
        .await
        .map_err(failed)
}
