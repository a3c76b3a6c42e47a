//! `images.lock`: what was built from what. Committed, so that every machine gives the same sources the same names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::difference::Details;
use crate::files;

/// Version of the file's format.
const VERSION: u32 = 1;

/// The lock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The lock.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It is not what orch writes.
    #[error(
        "{path}:{line}:{column}: this is not a lock that orch wrote: restore it from git, or delete it to make a new one"
    )]
    Format {
        /// The lock.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the reader met.
        #[source]
        source: serde_json::Error,
    },
    /// A later orch wrote it.
    #[error("{path} has format {found}, this orch knows format {VERSION}: update orch")]
    Version {
        /// The lock.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The lock.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// The content of `images.lock`: JSON, keys sorted, one line per value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Format version.
    pub version: u32,
    /// Base image reference -> `sha256:...` at its registry, or `substitute:sha256:...` of a recipe.
    #[serde(default)]
    pub bases: BTreeMap<String, String>,
    /// Component name -> what it was last pushed as.
    #[serde(default)]
    pub components: BTreeMap<String, Entry>,
    /// Manifest, relative to the lock's folder -> what its images were before they were pinned, in order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub originals: BTreeMap<String, Vec<Original>>,
    /// What other parts of orch keep in the same file.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// One component's last push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the parts consist of, for whoever asks why a name changed.
    #[serde(default, skip_serializing_if = "Details::is_empty")]
    pub details: Details,
    /// Digest of the manifest in the registry, `sha256:...`.
    pub digest: String,
    /// Input hash, `sha256:...`.
    pub input: String,
    /// Hash of each part of the input, for `orch images why`.
    #[serde(default)]
    pub parts: BTreeMap<String, String>,
    /// Repository, e.g. `docker.io/namespace/name`.
    pub repository: String,
    /// Tag, `in-` and 12 digits of the input hash.
    pub tag: String,
}

/// What an image in a manifest was before it was pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// The component, or a foreign image without its digest.
    pub image: String,
    /// The text that stood there; nothing if it was not this lock's orch that pinned it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Entry {
    /// What a manifest says: `repository:tag@digest`.
    pub fn pinned(&self) -> String {
        format!("{}:{}@{}", self.repository, self.tag, self.digest)
    }
}

impl Default for Lock {
    fn default() -> Self {
        Self {
            version: VERSION,
            bases: BTreeMap::new(),
            components: BTreeMap::new(),
            originals: BTreeMap::new(),
            other: BTreeMap::new(),
        }
    }
}

impl Lock {
    /// Reads the lock; a missing file is an empty lock.
    pub fn read(path: &Path) -> Result<Self, LockError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => {
                return Err(LockError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let lock: Self = serde_json::from_slice(&bytes).map_err(|source| LockError::Format {
            path: path.to_owned(),
            line: source.line(),
            column: source.column(),
            source,
        })?;
        if lock.version != VERSION {
            return Err(LockError::Version {
                path: path.to_owned(),
                found: lock.version,
            });
        }
        Ok(lock)
    }

    /// Replaces the file in one step; an equal file is left alone. True when it was written.
    pub fn write(&self, path: &Path) -> Result<bool, LockError> {
        let failed = |source: std::io::Error| LockError::Write {
            path: path.to_owned(),
            source,
        };
        let mut text = serde_json::to_string_pretty(self).map_err(|error| failed(error.into()))?;
        text.push('\n');
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        files::replace(path, text.as_bytes()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_keep_in_the_file_survives_and_an_equal_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.lock");
        std::fs::write(&path, r#"{"version": 1, "k3s": {"v1": "sha256:aa"}}"#).unwrap();
        let mut lock = Lock::read(&path).unwrap();
        lock.bases
            .insert("debian:bookworm-slim".to_owned(), "sha256:bb".to_owned());
        assert!(lock.write(&path).unwrap());
        assert!(!lock.write(&path).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains(r#""v1": "sha256:aa""#) && text.ends_with("}\n"),
            "{text}"
        );
        assert_eq!(Lock::read(&path).unwrap(), lock);
    }

    #[test]
    fn a_missing_lock_is_empty_and_a_broken_one_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.lock");
        assert_eq!(Lock::read(&path).unwrap(), Lock::default());
        std::fs::write(&path, "{\n  \"version\": x\n}").unwrap();
        assert!(
            Lock::read(&path)
                .unwrap_err()
                .to_string()
                .contains("images.lock:2:14")
        );
        std::fs::write(&path, r#"{"version": 9}"#).unwrap();
        assert!(
            Lock::read(&path)
                .unwrap_err()
                .to_string()
                .contains("format 9")
        );
    }
}
