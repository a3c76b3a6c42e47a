//! Where K3s would come from: reads directories and checksums, changes nothing.

use std::path::{Path, PathBuf};

use super::{AcquireError, AcquireK3s};
use crate::k3s::release::checksum_of;

/// Where an asset would come from, and the checksum it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Local {
        path: PathBuf,
        sha256: String,
    },
    /// The checksum is known from an earlier run or a lock, or must be downloaded first.
    Release {
        sha256: Option<String>,
    },
}

/// An archive that K3s is to import images from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Archive {
    pub(super) name: String,
    pub(super) sha256: String,
    /// Where it would come from. A plan is made before anything is delivered.
    pub(super) path: Option<PathBuf>,
}

impl Source {
    pub(super) fn sha256(&self) -> Option<&str> {
        match self {
            Source::Local { sha256, .. } => Some(sha256),
            Source::Release { sha256 } => sha256.as_deref(),
        }
    }
}

impl AcquireK3s<'_> {
    /// The checksum of an asset that lies in a directory: the lock first, then the file beside it.
    pub(super) fn checksum_in(
        &self,
        directory: &Path,
        asset: &str,
    ) -> Result<Option<String>, AcquireError> {
        if let Some(lock) = self.context.config.artifacts.sha256.get(asset) {
            return Ok(Some(lock.to_ascii_lowercase()));
        }
        let checksums = directory.join(self.architecture.checksums());
        let text = self.context.system.files.read_text(&checksums)?;
        Ok(text.and_then(|text| checksum_of(&text, asset)))
    }

    pub(super) fn find_binary(&self) -> Result<Source, AcquireError> {
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
    pub(super) fn find_local(&self, asset: &str) -> Result<Option<Source>, AcquireError> {
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

    pub(super) fn find_images(&self) -> Result<Option<(String, Source)>, AcquireError> {
        for asset in self.architecture.airgap_images() {
            if let Some(source) = self.find_local(&asset)? {
                return Ok(Some((asset, source)));
            }
        }
        Ok(None)
    }

    /// All archives of images: K3s's own, if it is there, and those that the configuration names.
    pub(super) fn find_archives(&self) -> Result<Vec<Archive>, AcquireError> {
        let mut archives = Vec::new();
        if let Some((name, Source::Local { path, sha256 })) = self.find_images()? {
            archives.push(Archive {
                name,
                sha256,
                path: Some(path),
            });
        }
        let artifacts = &self.context.config.artifacts;
        for (name, sha256) in &artifacts.images {
            let mut path = None;
            for directory in &artifacts.directories {
                let candidate = directory.join(name);
                if self.context.system.files.exists(&candidate)? {
                    path = Some(candidate);
                    break;
                }
            }
            archives.push(Archive {
                name: name.clone(),
                sha256: sha256.to_ascii_lowercase(),
                path,
            });
        }
        Ok(archives)
    }

    pub(super) fn no_archive(&self, archive: &str) -> AcquireError {
        AcquireError::NoArchive {
            archive: archive.to_owned(),
            directories: self.directories(),
        }
    }

    fn directories(&self) -> Vec<String> {
        let directories = &self.context.config.artifacts.directories;
        directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect()
    }

    pub(super) fn nowhere(&self, asset: &str) -> AcquireError {
        AcquireError::Nowhere {
            asset: asset.to_owned(),
            directories: self.directories(),
        }
    }
}
