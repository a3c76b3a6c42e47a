//! Files: read whole, write whole or not at all.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

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
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError>;

    /// Permission bits of what `path` leads to.
    fn mode(&self, path: &Path) -> Result<Option<u32>, FileError>;

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

    /// Removes a file, a link or a directory with all below it. A directory that cannot go because
    /// something is mounted on it is left empty.
    fn remove(&self, path: &Path) -> Result<(), FileError>;

    /// Writes a kernel setting, which cannot be replaced by rename.
    fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError>;

    /// Bytes free for root on the file system that holds `path` or the nearest directory above.
    fn free_bytes(&self, path: &Path) -> Result<u64, FileError>;
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

fn write_whole(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut fs::File) -> io::Result<()>,
) -> io::Result<()> {
    let directory = parent(path);
    fs::create_dir_all(directory)?;
    let mut file = NamedTempFile::new_in(directory)?;
    fill(file.as_file_mut())?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(directory)?.sync_all()
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

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        optional(remove_tree(path))
            .map(|_| ())
            .map_err(|source| FileError::new("remove", path, source))
    }

    fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError> {
        fs::write(path, value).map_err(|source| FileError::new("write", path, source))
    }

    fn free_bytes(&self, path: &Path) -> Result<u64, FileError> {
        let mut existing = path;
        while !existing.exists() {
            existing = parent(existing);
        }
        rustix::fs::statvfs(existing)
            .map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
            .map_err(|errno| FileError::new("measure", existing, errno.into()))
    }
}

#[cfg(test)]
pub(crate) use memory::MemoryFiles;

#[cfg(test)]
mod memory {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Clone)]
    enum Entry {
        File(Vec<u8>, u32),
        Directory(u32),
        Link(PathBuf),
    }

    /// Files in memory; counts its writes.
    #[derive(Debug, Default)]
    pub(crate) struct MemoryFiles {
        entries: Mutex<BTreeMap<PathBuf, Entry>>,
        writes: Mutex<Vec<PathBuf>>,
    }

    impl MemoryFiles {
        pub(crate) fn with(files: &[(&str, &str)]) -> Self {
            let this = Self::default();
            for (path, content) in files {
                this.put(path, content, 0o644);
            }
            this
        }

        pub(crate) fn put(&self, path: &str, content: &str, mode: u32) {
            self.insert(Path::new(path), Entry::File(content.into(), mode));
        }

        pub(crate) fn text(&self, path: &str) -> Option<String> {
            (self as &dyn Files).read_text(Path::new(path)).unwrap()
        }

        /// What was written since the last call.
        pub(crate) fn take_writes(&self) -> Vec<PathBuf> {
            std::mem::take(&mut self.writes.lock().unwrap())
        }

        fn insert(&self, path: &Path, entry: Entry) {
            self.entries.lock().unwrap().insert(path.to_owned(), entry);
        }

        fn get(&self, path: &Path) -> Option<Entry> {
            let entry = self.entries.lock().unwrap().get(path).cloned();
            match entry {
                Some(Entry::Link(target)) => self.get(&target),
                other => other,
            }
        }

        fn missing(path: &Path) -> FileError {
            FileError::new("read", path, io::ErrorKind::NotFound.into())
        }
    }

    impl Files for MemoryFiles {
        fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
            Ok(match self.get(path) {
                Some(Entry::File(content, _)) => Some(content),
                _ => None,
            })
        }

        fn mode(&self, path: &Path) -> Result<Option<u32>, FileError> {
            let below = || {
                let entries = self.entries.lock().unwrap();
                entries.keys().any(|known| known.starts_with(path))
            };
            Ok(match self.get(path) {
                Some(Entry::File(_, mode) | Entry::Directory(mode)) => Some(mode),
                _ => below().then_some(0o755),
            })
        }

        fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
            self.writes.lock().unwrap().push(path.to_owned());
            self.insert(path, Entry::File(content.to_vec(), mode));
            Ok(())
        }

        fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<String, FileError> {
            let content = self.read(from)?.ok_or_else(|| Self::missing(from))?;
            self.write(to, &content, mode)?;
            Ok(sha256_hex(&content))
        }

        fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
            let entry = self
                .entries
                .lock()
                .unwrap()
                .remove(from)
                .ok_or_else(|| Self::missing(from))?;
            self.writes.lock().unwrap().push(to.to_owned());
            self.insert(to, entry);
            Ok(())
        }

        fn sha256(&self, path: &Path) -> Result<Option<String>, FileError> {
            Ok(self.read(path)?.map(|content| sha256_hex(&content)))
        }

        fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
            let entries = self.entries.lock().unwrap();
            Ok(entries
                .keys()
                .filter(|path| path.parent() == Some(directory))
                .cloned()
                .collect())
        }

        fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError> {
            self.insert(path, Entry::Directory(mode));
            Ok(())
        }

        fn symlink(&self, target: &Path, link: &Path) -> Result<(), FileError> {
            self.insert(link, Entry::Link(target.to_owned()));
            Ok(())
        }

        fn remove(&self, path: &Path) -> Result<(), FileError> {
            self.entries
                .lock()
                .unwrap()
                .retain(|known, _| !known.starts_with(path));
            Ok(())
        }

        fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError> {
            self.write(path, value.as_bytes(), 0o644)
        }

        fn free_bytes(&self, _path: &Path) -> Result<u64, FileError> {
            Ok(100 << 30)
        }
    }
}

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
