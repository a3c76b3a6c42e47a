//! Files that are either the old ones or the new ones, never half of each.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A new content, durable beside its target and not yet visible.
#[derive(Debug)]
pub(super) struct Staged {
    target: PathBuf,
    file: NamedTempFile,
}

/// Writes `bytes` to a temporary file beside `path` with the mode that `path` has now.
pub(super) fn stage(path: &Path, bytes: &[u8]) -> io::Result<Staged> {
    // A link keeps being a link: what it points to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".orch-")
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    match fs::metadata(&target) {
        Ok(metadata) => file.as_file().set_permissions(metadata.permissions())?,
        Err(_) => file
            .as_file()
            .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?,
    }
    file.as_file().sync_all()?;
    Ok(Staged { target, file })
}

impl Staged {
    /// Makes the new content visible.
    pub(super) fn commit(self) -> io::Result<()> {
        self.file
            .persist(&self.target)
            .map_err(|error| error.error)?;
        if let Some(folder) = self
            .target
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

/// Replaces `path` in one step, unless it holds `bytes` already. True when it was written.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|current| current == bytes) {
        return Ok(false);
    }
    stage(path, bytes)?.commit()?;
    Ok(true)
}
