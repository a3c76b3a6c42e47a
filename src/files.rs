//! Files that must be whole and private: written beside their target, synced, then moved into place;
//! and the hash of a file.
//!
//! Boundary: bytes and paths; knows nothing of what is in them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

/// Writes `content` with mode 0600, replacing what is there. A reader sees the old bytes or the new ones.
pub fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = prepare(path, content)?;
    file.persist(path).map_err(|error| error.error)?;
    sync_parent(path)
}

/// [`replace_private`], but a file that is private and equal already is left alone.
pub fn keep_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let private =
        std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o777 == 0o600);
    if private
        && std::fs::read(path)
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
    let file = prepare(path, content)?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    sync_parent(path)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `tempfile` creates with mode 0600.
fn prepare(path: &Path, content: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new_in(parent(path))?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    Ok(file)
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
        std::fs::write(&path, "old and longer").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        replace_private(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn create_leaves_an_existing_file_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        create_private(&path, b"first").unwrap();
        let error = create_private(&path, b"second").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
