//! Gets the K3s binary and its air-gap images: the path given, the artifact directories, the
//! cache, the release download. Nothing is installed before its checksum is right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use orch_contract::{ExitCode, node_paths};
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::Context;
use crate::k3s::paths;
use crate::k3s::release::{Architecture, asset_url, checksum_of, same_kubernetes, version_of};
use crate::system::{CommandError, DownloadError, FileError, Invocation};

/// Why K3s could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcquireError {
    #[error(
        "{asset} from {from} has the wrong checksum: expected {expected}, it has {actual}; nothing was installed"
    )]
    Checksum {
        asset: String,
        from: String,
        expected: String,
        actual: String,
    },
    #[error(
        "there is no checksum for {}; put {checksums} beside it or lock it in artifacts.sha256", path.display()
    )]
    NoChecksum { path: PathBuf, checksums: String },
    #[error("{checksums} of K3s {version} has no line for {asset}; is {version} a release?")]
    NotInChecksums {
        checksums: String,
        version: String,
        asset: String,
    },
    #[error("artifacts.binary: there is no {}", path.display())]
    GivenMissing { path: PathBuf },
    #[error(
        "there is no {asset} in {}, and artifacts.release_url forbids downloading it", directories.join(", ")
    )]
    Nowhere {
        asset: String,
        directories: Vec<String>,
    },
    #[error("{asset} from {from} does not run on this machine; nothing was installed")]
    DoesNotRun {
        asset: String,
        from: String,
        source: CommandError,
    },
    #[error(
        "{asset} from {from} is {actual}, the configuration asks for {expected}; nothing was installed"
    )]
    OtherVersion {
        asset: String,
        from: String,
        actual: String,
        expected: String,
    },
    #[error(
        "K3s {version} cannot be downloaded; put its release files into {}, or let this machine reach the release host",
        node_paths::ARTIFACTS
    )]
    Download {
        version: String,
        source: DownloadError,
    },
    #[error("the installed K3s does not run")]
    Version(#[source] CommandError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for AcquireError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Acquire
    }
}

/// The K3s that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstalledK3s {
    pub(crate) sha256: String,
    /// The first line of `k3s --version`.
    pub(crate) version_line: String,
}

/// Where an asset would come from, and the checksum it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Local {
        path: PathBuf,
        sha256: String,
    },
    /// The checksum is known from an earlier run or a lock, or must be downloaded first.
    Release {
        sha256: Option<String>,
    },
}

impl Source {
    fn sha256(&self) -> Option<&str> {
        match self {
            Source::Local { sha256, .. } => Some(sha256),
            Source::Release { sha256 } => sha256.as_deref(),
        }
    }
}

pub(crate) struct AcquireK3s<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) architecture: Architecture,
}

impl AcquireK3s<'_> {
    fn version(&self) -> &str {
        &self.context.config.k3s.version
    }

    fn cache(&self) -> PathBuf {
        Path::new(node_paths::CACHE).join(self.version())
    }

    /// The checksum of an asset that lies in a directory: the lock first, then the file beside it.
    fn checksum_in(&self, directory: &Path, asset: &str) -> Result<Option<String>, AcquireError> {
        if let Some(lock) = self.context.config.artifacts.sha256.get(asset) {
            return Ok(Some(lock.to_ascii_lowercase()));
        }
        let checksums = directory.join(self.architecture.checksums());
        let text = self.context.system.files.read_text(&checksums)?;
        Ok(text.and_then(|text| checksum_of(&text, asset)))
    }

    fn find_binary(&self) -> Result<Source, AcquireError> {
        let files = self.context.system.files;
        let artifacts = &self.context.config.artifacts;
        let asset = self.architecture.binary();
        if let Some(path) = &artifacts.binary {
            let directory = path.parent().unwrap_or(Path::new("/"));
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let sha256 = match self.checksum_in(directory, &name)? {
                Some(known) => Some(known),
                // Whoever names a file by its path vouches for it.
                None => files.sha256(path)?,
            };
            return match (sha256, files.exists(path)?) {
                (Some(sha256), true) => Ok(Source::Local {
                    path: path.clone(),
                    sha256,
                }),
                _ => Err(AcquireError::GivenMissing { path: path.clone() }),
            };
        }
        if let Some(local) = self.find_local(asset)? {
            return Ok(local);
        }
        let known = self.checksum_in(&self.cache(), asset)?;
        if known.is_none() && artifacts.release_url.is_none() {
            return Err(self.nowhere(asset));
        }
        Ok(Source::Release { sha256: known })
    }

    /// An asset in an artifact directory or in the cache.
    fn find_local(&self, asset: &str) -> Result<Option<Source>, AcquireError> {
        let files = self.context.system.files;
        let directories = &self.context.config.artifacts.directories;
        for directory in directories.iter().chain([&self.cache()]) {
            let path = directory.join(asset);
            if !files.exists(&path)? {
                continue;
            }
            let sha256 =
                self.checksum_in(directory, asset)?
                    .ok_or_else(|| AcquireError::NoChecksum {
                        path: path.clone(),
                        checksums: self.architecture.checksums(),
                    })?;
            return Ok(Some(Source::Local { path, sha256 }));
        }
        Ok(None)
    }

    fn find_images(&self) -> Result<Option<(String, Source)>, AcquireError> {
        for asset in self.architecture.airgap_images() {
            if let Some(source) = self.find_local(&asset)? {
                return Ok(Some((asset, source)));
            }
        }
        Ok(None)
    }

    fn nowhere(&self, asset: &str) -> AcquireError {
        let directories = &self.context.config.artifacts.directories;
        AcquireError::Nowhere {
            asset: asset.to_owned(),
            directories: directories
                .iter()
                .map(|directory| directory.display().to_string())
                .collect(),
        }
    }

    async fn inspect(&self) -> Result<Result<InstalledK3s, String>, AcquireError> {
        let files = self.context.system.files;
        let source = self.find_binary()?;
        let Some(installed) = files.sha256(Path::new(paths::BINARY))? else {
            return Ok(Err(format!("{} is missing", paths::BINARY)));
        };
        match source.sha256() {
            Some(expected) if expected == installed => {}
            Some(_) => return Ok(Err(format!("{} differs", paths::BINARY))),
            None => {
                return Ok(Err(format!(
                    "it is not known whether {} is {}",
                    paths::BINARY,
                    self.version()
                )));
            }
        }
        if let Some((asset, source)) = self.find_images()? {
            let target = Path::new(paths::AIRGAP_IMAGES).join(&asset);
            if files.sha256(&target)?.as_deref() != source.sha256() {
                return Ok(Err(format!("{asset} is not imported")));
            }
        }
        if let Some(name) = self.missing_links()?.first() {
            return Ok(Err(format!("{name} is missing")));
        }
        Ok(Ok(InstalledK3s {
            sha256: installed,
            version_line: self
                .version_line(paths::BINARY)
                .await
                .map_err(AcquireError::Version)?,
        }))
    }

    fn missing_links(&self) -> Result<Vec<&'static str>, FileError> {
        let files = self.context.system.files;
        let mut missing = Vec::new();
        for name in paths::LINKS {
            let present = files.exists(&Path::new("/usr/local/bin").join(name))?
                || files.exists(&Path::new("/usr/bin").join(name))?;
            if !present {
                missing.push(name);
            }
        }
        Ok(missing)
    }

    async fn version_line(&self, binary: &str) -> Result<String, CommandError> {
        let invocation = Invocation::new(binary, ["--version"]);
        let shown = self.context.system.commands.run_ok(&invocation).await?;
        Ok(shown.text().lines().next().unwrap_or_default().to_owned())
    }

    async fn install(&self, report: &StepReport<'_>) -> Result<InstalledK3s, AcquireError> {
        let asset = self.architecture.binary();
        let (path, expected) = match self.find_binary()? {
            Source::Local { path, sha256 } => (path, sha256),
            Source::Release { sha256 } => self.download(asset, sha256, report).await?,
        };
        let installed = self.install_binary(asset, &path, &expected, report).await?;
        if let Some((asset, Source::Local { path, sha256 })) = self.find_images()? {
            let target = Path::new(paths::AIRGAP_IMAGES).join(&asset);
            if self.context.system.files.sha256(&target)?.as_deref() != Some(&sha256) {
                let staged = self.stage(&asset, &path, &target, 0o644, &sha256)?;
                self.context.system.files.rename(&staged, &target)?;
            }
        }
        for name in self.missing_links()? {
            let link = Path::new("/usr/local/bin").join(name);
            self.context
                .system
                .files
                .symlink(Path::new(paths::BINARY), &link)?;
        }
        Ok(installed)
    }

    async fn install_binary(
        &self,
        asset: &str,
        path: &Path,
        expected: &str,
        report: &StepReport<'_>,
    ) -> Result<InstalledK3s, AcquireError> {
        let files = self.context.system.files;
        let target = Path::new(paths::BINARY);
        let staged = self.stage(asset, path, target, 0o755, expected)?;
        let version_line = match self.check_version(asset, path, &staged, report).await {
            Ok(version_line) => version_line,
            Err(error) => {
                files.remove(&staged)?;
                return Err(error);
            }
        };
        files.rename(&staged, target)?;
        self.remember(asset, expected)?;
        Ok(InstalledK3s {
            sha256: expected.to_owned(),
            version_line,
        })
    }

    /// Copies beside the target and verifies the copy.
    fn stage(
        &self,
        asset: &str,
        from: &Path,
        target: &Path,
        mode: u32,
        expected: &str,
    ) -> Result<PathBuf, AcquireError> {
        let files = self.context.system.files;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let staged = target.with_file_name(format!(".{name}.orch-new"));
        let actual = files.copy(from, &staged, mode)?;
        if actual != expected {
            files.remove(&staged)?;
            return Err(AcquireError::Checksum {
                asset: asset.to_owned(),
                from: from.display().to_string(),
                expected: expected.to_owned(),
                actual,
            });
        }
        Ok(staged)
    }

    async fn check_version(
        &self,
        asset: &str,
        from: &Path,
        staged: &Path,
        report: &StepReport<'_>,
    ) -> Result<String, AcquireError> {
        let from = from.display().to_string();
        let line = self
            .version_line(&staged.display().to_string())
            .await
            .map_err(|source| AcquireError::DoesNotRun {
                asset: asset.to_owned(),
                from: from.clone(),
                source,
            })?;
        let actual = version_of(&line).unwrap_or(&line);
        if !same_kubernetes(actual, self.version()) {
            return Err(AcquireError::OtherVersion {
                asset: asset.to_owned(),
                from,
                actual: actual.to_owned(),
                expected: self.version().to_owned(),
            });
        }
        if actual != self.version() {
            report.warn(format!(
                "the configuration asks for {}, this is: {line}",
                self.version()
            ));
        }
        Ok(line)
    }

    /// Keeps the checksum, so that a later run knows what is installed without its source.
    fn remember(&self, asset: &str, sha256: &str) -> Result<(), FileError> {
        let files = self.context.system.files;
        let path = self.cache().join(self.architecture.checksums());
        let text = files.read_text(&path)?.unwrap_or_default();
        if checksum_of(&text, asset).as_deref() == Some(sha256) {
            return Ok(());
        }
        let mut lines: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, name)| (name, sum))
            .collect();
        lines.insert(asset, sha256);
        let text: String = lines
            .iter()
            .map(|(name, sum)| format!("{sum}  {name}\n"))
            .collect();
        files.write(&path, text.as_bytes(), 0o644)
    }

    /// Downloads the binary into the cache; verification follows when it is installed.
    async fn download(
        &self,
        asset: &str,
        known: Option<String>,
        report: &StepReport<'_>,
    ) -> Result<(PathBuf, String), AcquireError> {
        let Some(base) = &self.context.config.artifacts.release_url else {
            return Err(self.nowhere(asset));
        };
        let download = |source| AcquireError::Download {
            version: self.version().to_owned(),
            source,
        };
        let system = self.context.system;
        let timeout = std::time::Duration::from_secs(self.context.config.timeouts.download_seconds);
        let checksums = self.architecture.checksums();
        let expected = match known {
            Some(known) => known,
            None => {
                let path = self.cache().join(format!(".{checksums}.orch-new"));
                let url = asset_url(base, self.version(), &checksums);
                system
                    .download
                    .fetch(&url, &path, timeout, report)
                    .await
                    .map_err(download)?;
                let text = system.files.read_text(&path)?.unwrap_or_default();
                system.files.remove(&path)?;
                checksum_of(&text, asset).ok_or_else(|| AcquireError::NotInChecksums {
                    checksums: checksums.clone(),
                    version: self.version().to_owned(),
                    asset: asset.to_owned(),
                })?
            }
        };
        let partial = self.cache().join(format!(".{asset}.orch-new"));
        let url = asset_url(base, self.version(), asset);
        system
            .download
            .fetch(&url, &partial, timeout, report)
            .await
            .map_err(download)?;
        let actual = system.files.sha256(&partial)?.unwrap_or_default();
        if actual != expected {
            system.files.remove(&partial)?;
            return Err(AcquireError::Checksum {
                asset: asset.to_owned(),
                from: url,
                expected,
                actual,
            });
        }
        self.remember(asset, &expected)?;
        let path = self.cache().join(asset);
        system.files.rename(&partial, &path)?;
        Ok((path, expected))
    }
}

#[async_trait]
impl Step for AcquireK3s<'_> {
    type Output = InstalledK3s;

    fn name(&self) -> &'static str {
        "acquire_k3s"
    }

    fn title(&self) -> String {
        format!("Install K3s {}", self.version())
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<InstalledK3s>, StepFailure> {
        Ok(match self.inspect().await? {
            Ok(installed) => Check::Satisfied(installed),
            Err(reason) => Check::Needed(reason),
        })
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<InstalledK3s, StepFailure> {
        Ok(self.install(report).await?)
    }

    fn planned(&self) -> InstalledK3s {
        InstalledK3s {
            sha256: self
                .find_binary()
                .ok()
                .and_then(|source| source.sha256().map(str::to_owned))
                .unwrap_or_default(),
            version_line: format!("k3s version {}", self.version()),
        }
    }
}

#[cfg(test)]
mod tests {
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
}
