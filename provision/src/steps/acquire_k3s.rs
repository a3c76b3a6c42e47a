//! Gets the K3s binary and its air-gap images: the path given, the artifact directories, the
//! cache, the release download. Nothing is installed before its checksum is right.

mod inspect;
mod locate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use orch_contract::{ExitCode, node_paths};
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use self::locate::Source;
use super::Context;
use crate::applied::Applied;
use crate::k3s::paths;
use crate::k3s::release::{Architecture, asset_url, checksum_of, same_kubernetes, version_of};
use crate::k3s::units::unit_name;
use crate::system::{CommandError, DownloadError, FileError, Invocation};

const BINARY_MODE: u32 = 0o755;

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
    #[error("there is no {archive} in {}", directories.join(", "))]
    NoArchive {
        archive: String,
        directories: Vec<String>,
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
    /// Another file was there: what runs may have been started from it.
    pub(crate) is_replaced: bool,
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

    async fn version_line(&self, binary: &str) -> Result<String, CommandError> {
        let invocation = Invocation::new(binary, ["--version"]);
        let shown = self.context.system.commands.run_ok(&invocation).await?;
        Ok(shown.text().lines().next().unwrap_or_default().to_owned())
    }

    async fn install(&self, report: &StepReport<'_>) -> Result<InstalledK3s, AcquireError> {
        let asset = self.architecture.binary();
        let source = self.find_binary()?;
        let present = self.context.system.files.sha256(Path::new(paths::BINARY))?;
        let installed = match (present, source) {
            // A file that is replaced, even by an equal one, is no longer the one that runs.
            (Some(present), source) if source.sha256() == Some(&present) => {
                self.keep_binary(present).await?
            }
            (_, Source::Local { path, sha256 }) => {
                self.install_binary(asset, &path, &sha256, report).await?
            }
            (_, Source::Release { sha256 }) => {
                let (path, sha256) = self.download(asset, sha256, report).await?;
                self.install_binary(asset, &path, &sha256, report).await?
            }
        };
        for archive in self.find_archives()? {
            let target = Path::new(paths::AIRGAP_IMAGES).join(&archive.name);
            let sha256 = &archive.sha256;
            if self.context.system.files.sha256(&target)?.as_ref() != Some(sha256) {
                let path = archive.path.as_ref();
                let path = path.ok_or_else(|| self.no_archive(&archive.name))?;
                let staged = self.stage(&archive.name, path, &target, 0o644, sha256)?;
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

    /// The installed binary is the right one; others may have changed who may use it.
    async fn keep_binary(&self, sha256: String) -> Result<InstalledK3s, AcquireError> {
        if self.wrong_mode()?.is_some() {
            let files = self.context.system.files;
            files.set_mode(Path::new(paths::BINARY), BINARY_MODE)?;
        }
        let version_line = self.version_line(paths::BINARY).await;
        Ok(InstalledK3s {
            sha256,
            version_line: version_line.map_err(AcquireError::Version)?,
            is_replaced: false,
        })
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
        let staged = self.stage(asset, path, target, BINARY_MODE, expected)?;
        let version_line = match self.check_version(asset, path, &staged, report).await {
            Ok(version_line) => version_line,
            Err(error) => {
                files.remove(&staged)?;
                return Err(error);
            }
        };
        let unit = unit_name(self.context.config.node.role);
        Applied::forget(files, unit, &[paths::BINARY.to_owned()])?;
        // What is installed must be known, so it is so before it is installed.
        self.remember(asset, expected)?;
        files.rename(&staged, target)?;
        Ok(InstalledK3s {
            sha256: expected.to_owned(),
            version_line,
            is_replaced: true,
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
            Err(changes) => Check::Needed(changes.into()),
        })
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<InstalledK3s, StepFailure> {
        Ok(self.install(report).await?)
    }

    fn planned(&self) -> InstalledK3s {
        let files = self.context.system.files;
        let source = self.find_binary().ok();
        let sha256 = source.as_ref().and_then(Source::sha256).map(str::to_owned);
        let installed = files.sha256(Path::new(paths::BINARY)).ok().flatten();
        InstalledK3s {
            is_replaced: sha256.is_none() || sha256 != installed,
            sha256: sha256.unwrap_or_default(),
            version_line: format!("k3s version {}", self.version()),
        }
    }
}

#[cfg(test)]
mod tests;
