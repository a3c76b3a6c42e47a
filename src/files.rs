//! Files that are the old ones or the new ones, never half of each: written beside their target, synced, then moved into place.
//! Some of them must be private, the others keep their mode. And the hash of a file.
//!
//! Boundary: bytes and paths; knows nothing of what is in them.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

/// A new content, durable beside its target and not yet visible.
#[derive(Debug)]
pub struct Staged {
    target: PathBuf,
    file: NamedTempFile,
}

impl Staged {
    /// Makes the new content visible.
    pub fn commit(self) -> io::Result<()> {
        self.file
            .persist(&self.target)
            .map_err(|error| error.error)?;
        sync_parent(&self.target)
    }
}

/// Writes `content` beside `path` with the mode that `path` has now.
pub fn stage(path: &Path, content: &[u8]) -> io::Result<Staged> {
    // A link keeps being a link: what it points to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = match fs::metadata(&target) {
        Ok(found) => found.permissions(),
        Err(_) => Permissions::from_mode(0o644),
    };
    prepare(&target, content, mode)
}

/// Replaces `path` in one step, unless it holds `content` already. True when it was written.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|current| current == content) {
        return Ok(false);
    }
    stage(path, content)?.commit()?;
    Ok(true)
}

/// Writes `content` with mode 0600, replacing what is there. A reader sees the old bytes or the new ones.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    prepare(path, content, private())?.commit()
}

/// [`replace_private`], but a file that is private and equal already is left alone.
pub fn keep_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let private = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o600);
    if private
        && fs::read(path)
            .map(Zeroizing::new)
            .is_ok_and(|found| found.as_slice() == content)
    {
        return Ok(());
    }
    replace_private(path, content)
}

/// SHA-256 of a file, in hex, read in pieces.
pub fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else {
            return Ok(hex::encode(hasher.finalize()));
        };
        hasher.update(piece);
    }
}

/// Writes `content` with mode 0600 unless the file exists, which is an [`io::ErrorKind::AlreadyExists`].
pub fn create_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let staged = prepare(path, content, private())?;
    staged
        .file
        .persist_noclobber(path)
        .map_err(|error| error.error)?;
    sync_parent(path)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn private() -> Permissions {
    Permissions::from_mode(0o600)
}

/// Nobody else may read it before it has its mode: `tempfile` creates with 0600.
fn prepare(target: &Path, content: &[u8], mode: Permissions) -> io::Result<Staged> {
    let mut file = tempfile::Builder::new()
        .prefix(".orch-")
        .tempfile_in(parent(target))?;
    file.write_all(content)?;
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    Ok(Staged {
        target: target.to_owned(),
        file,
    })
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old and longer").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        replace_private(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_replaced_keeps_its_mode_and_a_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("link"));
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert!(replace(&path, b"first").unwrap());
        assert_eq!(mode(), 0o644);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(replace(&link, b"second").unwrap());
        assert!(!replace(&link, b"second").unwrap());
        assert_eq!(
            (fs::read(&path).unwrap(), mode()),
            (b"second".to_vec(), 0o640)
        );
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        drop(stage(&path, b"third").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn create_leaves_an_existing_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        create_private(&path, b"first").unwrap();
        let error = create_private(&path, b"second").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
