//! The machine's files as they will be once the host has delivered `/etc/orch`: a plan made before that.

use std::path::{Path, PathBuf};

use orch_contract::node_paths;

use super::{FileError, Files, Space};

/// Reads below `/etc/orch` go to a folder of the plan's; everything else is the machine.
pub(crate) struct Staged<F> {
    machine: F,
    folder: PathBuf,
}

impl<F: Files> Staged<F> {
    pub(crate) fn new(machine: F, folder: PathBuf) -> Self {
        Self { machine, folder }
    }
}

impl<F: Files> Files for Staged<F> {
    fn locate(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(node_paths::CONFIG_DIRECTORY) {
            Ok(rest) => self.folder.join(rest),
            Err(_) => path.to_owned(),
        }
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        self.machine.read(&self.locate(path))
    }

    fn mode(&self, path: &Path) -> Result<Option<u32>, FileError> {
        self.machine.mode(&self.locate(path))
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        self.machine.set_mode(path, mode)
    }

    fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
        self.machine.write(path, content, mode)
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<String, FileError> {
        self.machine.copy(from, to, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.machine.rename(from, to)
    }

    fn sha256(&self, path: &Path) -> Result<Option<String>, FileError> {
        self.machine.sha256(&self.locate(path))
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        self.machine.list(&self.locate(directory))
    }

    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        self.machine.create_directory(path, mode)
    }

    fn symlink(&self, target: &Path, link: &Path) -> Result<(), FileError> {
        self.machine.symlink(target, link)
    }

    fn link_target(&self, path: &Path) -> Result<Option<PathBuf>, FileError> {
        self.machine.link_target(&self.locate(path))
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        self.machine.remove(path)
    }

    fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError> {
        self.machine.write_kernel(path, value)
    }

    fn space(&self, path: &Path) -> Result<Space, FileError> {
        self.machine.space(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::MemoryFiles;

    #[test]
    fn only_what_is_delivered_is_read_elsewhere() {
        let machine = MemoryFiles::default();
        machine.put("/etc/orch/node.json", "old", 0o600);
        machine.put("/etc/orch-other", "other", 0o600);
        machine.put("/run/plan/node.json", "new", 0o600);
        let staged = Staged::new(machine, "/run/plan".into());
        let files: &dyn Files = &staged;
        let read = |path: &str| files.read_text(Path::new(path)).unwrap();
        assert_eq!(read("/etc/orch/node.json").as_deref(), Some("new"));
        assert_eq!(read("/etc/orch/join_host_key"), None);
        assert_eq!(read("/etc/orch-other").as_deref(), Some("other"));
        assert_eq!(
            files.locate(Path::new("/etc/orch/join_host_key")),
            PathBuf::from("/run/plan/join_host_key")
        );
    }
}
