//! Files in memory, for the steps' tests.

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

    /// Every file with its content and mode; links are left out.
    pub(crate) fn all(&self) -> Vec<(PathBuf, Vec<u8>, u32)> {
        let entries = self.entries.lock().unwrap();
        let files = entries.iter().filter_map(|(path, entry)| match entry {
            Entry::File(content, mode) => Some((path.clone(), content.clone(), *mode)),
            Entry::Directory(_) | Entry::Link(_) => None,
        });
        files.collect()
    }

    /// Everything there is, as it can be compared.
    pub(crate) fn everything(&self) -> BTreeMap<PathBuf, String> {
        let entries = self.entries.lock().unwrap();
        let shown = entries.iter().map(|(path, entry)| {
            let text = match entry {
                Entry::File(content, mode) => {
                    format!("{mode:o} {}", String::from_utf8_lossy(content))
                }
                Entry::Directory(mode) => format!("{mode:o} directory"),
                Entry::Link(target) => format!("-> {}", target.display()),
            };
            (path.clone(), text)
        });
        shown.collect()
    }

    /// What was written since the last call.
    pub(crate) fn take_writes(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.writes.lock().unwrap())
    }

    fn insert(&self, path: &Path, entry: Entry) {
        self.entries.lock().unwrap().insert(path.to_owned(), entry);
    }

    /// A file that is replaced lives on in the processes that run it.
    fn replace(&self, path: &Path, entry: Entry) {
        let mut entries = self.entries.lock().unwrap();
        let gone = PathBuf::from(format!("{} (deleted)", path.display()));
        for (link, known) in entries.iter_mut() {
            if link.starts_with("/proc") && matches!(known, Entry::Link(target) if target == path) {
                *known = Entry::Link(gone.clone());
            }
        }
        entries.insert(path.to_owned(), entry);
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

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        let content = self.read(path)?.ok_or_else(|| Self::missing(path))?;
        self.writes.lock().unwrap().push(path.to_owned());
        self.insert(path, Entry::File(content, mode));
        Ok(())
    }

    fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
        self.writes.lock().unwrap().push(path.to_owned());
        self.replace(path, Entry::File(content.to_vec(), mode));
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
        self.replace(to, entry);
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

    fn link_target(&self, path: &Path) -> Result<Option<PathBuf>, FileError> {
        Ok(match self.entries.lock().unwrap().get(path) {
            Some(Entry::Link(target)) => Some(target.clone()),
            _ => None,
        })
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

    fn space(&self, _path: &Path) -> Result<Space, FileError> {
        Ok(Space {
            free: 100 << 30,
            total: 200 << 30,
        })
    }
}
