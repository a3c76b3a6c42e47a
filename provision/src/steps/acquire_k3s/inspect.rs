//! What of K3s is installed, and what is to be: looks, and changes nothing.

use std::path::Path;

use orch_contract::{Action, Change, Subject};

use super::locate::Source;
use super::{AcquireError, AcquireK3s, BINARY_MODE, InstalledK3s};
use crate::k3s::paths;
use crate::k3s::release::version_of;
use crate::system::FileError;

impl AcquireK3s<'_> {
    /// What is installed, or else what is to be installed.
    pub(super) async fn inspect(&self) -> Result<Result<InstalledK3s, Vec<Change>>, AcquireError> {
        let files = self.context.system.files;
        let source = self.find_binary()?;
        let installed = files.sha256(Path::new(paths::BINARY))?;
        let mut changes = Vec::new();
        if installed.is_none() || installed.as_deref() != source.sha256() {
            changes.push(self.binary_change(installed.as_deref(), &source).await);
        } else if let Some(mode) = self.wrong_mode()? {
            let detail = format!("has mode {mode:04o}, not {BINARY_MODE:04o}");
            changes.push(Change::new(
                Subject::File,
                paths::BINARY,
                Action::Update,
                detail,
            ));
        }
        for archive in self.find_archives()? {
            let target = Path::new(paths::AIRGAP_IMAGES).join(&archive.name);
            let present = files.sha256(&target)?;
            let (action, detail) = match present {
                None => (Action::Create, "is missing"),
                Some(_) => (Action::Update, "differs"),
            };
            if present.as_ref() != Some(&archive.sha256) {
                let name = target.display().to_string();
                changes.push(Change::new(Subject::File, name, action, detail));
            }
        }
        for name in self.missing_links()? {
            let link = format!("/usr/local/bin/{name}");
            changes.push(Change::new(
                Subject::Link,
                link,
                Action::Create,
                "is missing",
            ));
        }
        if !changes.is_empty() {
            return Ok(Err(changes));
        }
        Ok(Ok(InstalledK3s {
            sha256: installed.unwrap_or_default(),
            version_line: self
                .version_line(paths::BINARY)
                .await
                .map_err(AcquireError::Version)?,
            is_replaced: false,
        }))
    }

    async fn binary_change(&self, installed: Option<&str>, source: &Source) -> Change {
        let from = match source {
            Source::Local { path, .. } => path.display().to_string(),
            Source::Release { .. } => "the release".to_owned(),
        };
        let wanted = self.version();
        let (action, detail) = match installed {
            None => (Action::Install, format!("is missing: {wanted} from {from}")),
            Some(installed) => {
                // One that does not run has no version, which is no obstacle to replacing it.
                let line = self.version_line(paths::BINARY).await.unwrap_or_default();
                let found = match version_of(&line) {
                    None => "does not run".to_owned(),
                    Some(version) if version != wanted => format!("is {version}"),
                    Some(_) if source.sha256().is_none() => "has an unknown checksum".to_owned(),
                    Some(version) => format!(
                        "is {version} with another checksum ({}, not {})",
                        short(installed),
                        short(source.sha256().unwrap_or_default())
                    ),
                };
                (Action::Update, format!("{found}: {wanted} from {from}"))
            }
        };
        Change::new(Subject::Version, paths::BINARY, action, detail)
    }

    pub(super) fn wrong_mode(&self) -> Result<Option<u32>, FileError> {
        let mode = self.context.system.files.mode(Path::new(paths::BINARY))?;
        Ok(mode.filter(|mode| *mode != BINARY_MODE))
    }

    pub(super) fn missing_links(&self) -> Result<Vec<&'static str>, FileError> {
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
}

/// Enough of a checksum to tell two apart.
fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}
