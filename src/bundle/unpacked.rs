//! A project that came out of a bundle: `orch.yaml` and its manifests, and beside them a folder with all that a network would
//! otherwise bring.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::contents::{Contents, K3S, PROGRAMS};
use super::read::Announced;
use super::{BundleError, CONTENTS, io};

/// The folder beside `orch.yaml`.
pub const FOLDER: &str = "orch-bundle";
/// The archive of images that nodes are given.
pub const ARCHIVE: &str = "orch-images.tar";
/// What everything in the folder must hash to, for sha256sum(1), too.
pub(super) const SUMS: &str = "sha256sum.txt";

/// One that was found.
#[derive(Debug, Clone)]
pub struct Unpacked {
    folder: PathBuf,
    /// What it says of itself.
    pub announced: Announced,
    /// SHA-256 by path in the folder.
    sums: BTreeMap<String, String>,
}

impl Unpacked {
    /// Looks in a project's root.
    pub fn find(root: &Path) -> Result<Option<Self>, BundleError> {
        let folder = root.join(FOLDER);
        let path = folder.join(CONTENTS);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(format!("read {}", path.display()))(error)),
        };
        let changed = |path: &Path, reason: String| BundleError::Changed {
            path: path.display().to_string(),
            reason: format!(
                "{reason}; delete {} and unpack the bundle again",
                root.display()
            ),
        };
        let contents: Contents =
            serde_json::from_slice(&bytes).map_err(|error| changed(&path, error.to_string()))?;
        let listed = folder.join(SUMS);
        let text =
            std::fs::read_to_string(&listed).map_err(io(format!("read {}", listed.display())))?;
        let lines = text.lines().filter_map(|line| line.split_once("  "));
        let sums: BTreeMap<String, String> = lines
            .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
            .collect();
        let id = hex::encode(Sha256::digest(&bytes));
        if sums.get(CONTENTS) != Some(&id) {
            return Err(changed(&path, format!("it has sha256 {id}")));
        }
        Ok(Some(Self {
            folder,
            announced: Announced { contents, id },
            sums,
        }))
    }

    /// The folder with K3s's release assets.
    pub fn k3s(&self) -> PathBuf {
        self.folder.join(K3S)
    }

    /// Holds K3s's own checksum file against its checksum.
    pub fn check_k3s_sums(&self) -> Result<(), BundleError> {
        let start = format!("{K3S}/sha256sum");
        let mut names = self.sums.keys().filter(|name| name.starts_with(&start));
        names.try_for_each(|name| self.check(&self.folder.join(name)))
    }

    /// The provisioner.
    pub fn provisioner(&self) -> PathBuf {
        self.folder.join(PROGRAMS).join("orch-provision")
    }

    /// The archive of images, and what it must hash to.
    pub fn archive(&self) -> (PathBuf, String) {
        let sum = self.sums.get(ARCHIVE).cloned().unwrap_or_default();
        (self.folder.join(ARCHIVE), sum)
    }

    /// Holds a file of the folder against its checksum.
    pub fn check(&self, path: &Path) -> Result<(), BundleError> {
        let name = path.strip_prefix(&self.folder).unwrap_or(path);
        let expected = self.sums.get(name.to_string_lossy().as_ref());
        let found =
            crate::files::sha256_of(path).map_err(io(format!("read {}", path.display())))?;
        if expected == Some(&found) {
            return Ok(());
        }
        let expected = expected.map_or("no checksum", String::as_str);
        Err(BundleError::Changed {
            path: path.display().to_string(),
            reason: format!(
                "it has sha256 {found}, {SUMS} beside it says {expected}; delete {} and unpack the bundle again, nothing was used",
                self.folder.display()
            ),
        })
    }

    /// Holds everything against its checksum.
    pub fn check_all(&self) -> Result<(), BundleError> {
        self.sums
            .keys()
            .try_for_each(|name| self.check(&self.folder.join(name)))
    }
}
