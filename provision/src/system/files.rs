//! Files: read whole, write whole or not at all.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub(crate) struct FileError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    pub(crate) fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

/// Files of the machine. Paths are absolute. What is missing is `None`, not an error.
pub(crate) trait Files: Send + Sync {
    /// Where on this machine the bytes of `path` are, for what reads them by itself.
    fn locate(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError>;

    /// Permission bits of what `path` leads to.
    fn mode(&self, path: &Path) -> Result<Option<u32>, FileError>;

    /// Changes permission bits and nothing else.
    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), FileError>;

    /// Atomic: temporary file, fsync, rename. Creates the directories above.
    fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError>;

    /// Copies atomically and returns the SHA-256 of what was copied.
    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<String, FileError>;

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError>;

    /// SHA-256 in hex.
    fn sha256(&self, path: &Path) -> Result<Option<String>, FileError>;

    /// Entries of a directory, sorted; none where it is missing.
    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError>;

    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError>;

    fn symlink(&self, target: &Path, link: &Path) -> Result<(), FileError>;

    /// Where a symbolic link leads, as it says so; none where there is no link.
    fn link_target(&self, path: &Path) -> Result<Option<PathBuf>, FileError>;

    /// Removes a file, a link or a directory with all below it. A directory that cannot go because
    /// something is mounted on it is left empty.
    fn remove(&self, path: &Path) -> Result<(), FileError>;

    /// Writes a kernel setting, which cannot be replaced by rename.
    fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError>;

    /// The file system that holds `path` or the nearest directory above.
    fn space(&self, path: &Path) -> Result<Space, FileError>;
}

/// How much a file system holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    /// What programs may still write.
    pub(crate) free: u64,
    pub(crate) total: u64,
}

impl dyn Files + '_ {
    /// Text of a file; bytes that are no UTF-8 are replaced.
    pub(crate) fn read_text(&self, path: &Path) -> Result<Option<String>, FileError> {
        Ok(self
            .read(path)?
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    pub(crate) fn exists(&self, path: &Path) -> Result<bool, FileError> {
        Ok(self.mode(path)?.is_some())
    }
}

/// SHA-256 of bytes, in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The real file system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disk;

fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Where a file is written before it gets its name. Always the same place, so that a run that was killed leaves nothing
/// that the next one does not write again and take away.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.orch-tmp"))
}

fn write_whole(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let directory = parent(path);
    fs::create_dir_all(directory)?;
    let temporary = temporary(path);
    let written = write_as(&temporary, mode, fill).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The first error is the one that counts.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    fs::File::open(directory)?.sync_all()
}

/// Nobody else can open the file before it has its mode.
fn write_as(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> io::Result<()> {
    optional(fs::remove_file(path))?;
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    fill(&mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

fn hash_while_copying(from: &mut impl Read, to: &mut impl Write) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return fs::remove_file(path);
    }
    for entry in fs::read_dir(path)? {
        remove_tree(&entry?.path())?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        other => other,
    }
}

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        optional(fs::read(path)).map_err(|source| FileError::new("read", path, source))
    }

    fn mode(&self, path: &Path) -> Result<Option<u32>, FileError> {
        optional(fs::metadata(path))
            .map(|metadata| metadata.map(|metadata| metadata.mode() & 0o7777))
            .map_err(|source| FileError::new("look at", path, source))
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(|source| FileError::new("change the mode of", path, source))
    }

    fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
        write_whole(path, mode, |file| file.write_all(content))
            .map_err(|source| FileError::new("write", path, source))
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<String, FileError> {
        let mut source =
            fs::File::open(from).map_err(|source| FileError::new("read", from, source))?;
        let mut digest = String::new();
        write_whole(to, mode, |file| {
            digest = hash_while_copying(&mut source, file)?;
            Ok(())
        })
        .map_err(|source| FileError::new("write", to, source))?;
        Ok(digest)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        fs::rename(from, to)
            .and_then(|()| fs::File::open(parent(to))?.sync_all())
            .map_err(|source| FileError::new("replace", to, source))
    }

    fn sha256(&self, path: &Path) -> Result<Option<String>, FileError> {
        optional(fs::File::open(path))
            .and_then(|file| match file {
                Some(mut file) => hash_while_copying(&mut file, &mut io::sink()).map(Some),
                None => Ok(None),
            })
            .map_err(|source| FileError::new("read", path, source))
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        let entries = optional(fs::read_dir(directory)).and_then(|entries| {
            entries
                .into_iter()
                .flatten()
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<io::Result<Vec<_>>>()
        });
        let mut entries = entries.map_err(|source| FileError::new("list", directory, source))?;
        entries.sort();
        Ok(entries)
    }

    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        fs::create_dir_all(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(|source| FileError::new("create", path, source))
    }

    fn symlink(&self, target: &Path, link: &Path) -> Result<(), FileError> {
        symlink(target, link).map_err(|source| FileError::new("link", link, source))
    }

    fn link_target(&self, path: &Path) -> Result<Option<PathBuf>, FileError> {
        match fs::read_link(path) {
            // That is what the kernel says of something that is no link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
            other => optional(other).map_err(|source| FileError::new("look at", path, source)),
        }
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        optional(remove_tree(path))
            .map(|_| ())
            .map_err(|source| FileError::new("remove", path, source))
    }

    fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError> {
        fs::write(path, value).map_err(|source| FileError::new("write", path, source))
    }

    fn space(&self, path: &Path) -> Result<Space, FileError> {
        let mut existing = path;
        while !existing.exists() {
            existing = parent(existing);
        }
        rustix::fs::statvfs(existing)
            .map(|stat| Space {
                free: stat.f_bavail.saturating_mul(stat.f_frsize),
                total: stat.f_blocks.saturating_mul(stat.f_frsize),
            })
            .map_err(|errno| FileError::new("measure", existing, errno.into()))
    }
}

#[cfg(test)]
pub(crate) use memory::MemoryFiles;
pub(crate) use staged::Staged;

#[cfg(test)]
mod memory;
mod staged;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_with_its_mode_and_no_leftovers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/secret");
        Disk.write(&path, b"x", 0o600).unwrap();
        Disk.write(&path, b"y", 0o600).unwrap();
        assert_eq!(Disk.read(&path).unwrap().unwrap(), b"y");
        assert_eq!(Disk.mode(&path).unwrap(), Some(0o600));
        assert_eq!(Disk.list(path.parent().unwrap()).unwrap(), [path]);
    }

    #[test]
    fn what_a_killed_run_left_is_taken_away_and_a_failed_write_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(temporary(&path), "half").unwrap();
        Disk.write(&path, b"whole", 0o644).unwrap();
        let list = || Disk.list(directory.path()).unwrap();
        assert_eq!(list(), std::slice::from_ref(&path));
        let missing = directory.path().join("missing");
        Disk.copy(&missing, &path, 0o644).unwrap_err();
        let no_room = write_whole(&path, 0o644, |_| Err(io::ErrorKind::StorageFull.into()));
        no_room.unwrap_err();
        assert_eq!(list(), std::slice::from_ref(&path));
        assert_eq!(Disk.read(&path).unwrap().unwrap(), b"whole");
    }

    #[test]
    fn what_is_missing_is_none() {
        let path = Path::new("/nonexistent/file");
        assert_eq!(Disk.read(path).unwrap(), None);
        assert_eq!(Disk.sha256(path).unwrap(), None);
        assert_eq!(Disk.list(path).unwrap(), Vec::<PathBuf>::new());
        Disk.remove(path).unwrap();
    }

    #[test]
    fn removal_does_not_follow_links() {
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("kept");
        let tree = directory.path().join("tree");
        Disk.write(&kept, b"x", 0o644).unwrap();
        Disk.create_directory(&tree, 0o755).unwrap();
        Disk.symlink(directory.path(), &tree.join("link")).unwrap();
        Disk.remove(&tree).unwrap();
        assert_eq!(Disk.mode(&tree).unwrap(), None);
        assert_eq!(Disk.read(&kept).unwrap().unwrap(), b"x");
    }

    #[test]
    fn a_copy_reports_what_it_copied() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        Disk.write(&from, b"abc", 0o644).unwrap();
        let to = directory.path().join("to");
        let digest = Disk.copy(&from, &to, 0o755).unwrap();
        assert_eq!(digest, sha256_hex(b"abc"));
        assert_eq!(Disk.sha256(&to).unwrap(), Some(digest));
    }
}
