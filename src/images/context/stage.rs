//! Writes a normalised copy of a context for the builder: fixed modes, fixed times, our own owner.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::{ContextError, Entry, Kind, SOURCE_DATE_EPOCH, Visitor};

/// Copies what it is shown into a folder of its own.
#[derive(Debug)]
pub struct Stage {
    root: PathBuf,
    open: Option<(PathBuf, File)>,
    folders: Vec<PathBuf>,
}

impl Stage {
    /// Writes into `root`, which must exist and be empty.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            open: None,
            folders: vec![root.to_owned()],
        }
    }

    /// Folders last, because writing into one changes its time.
    pub fn finish(self) -> Result<(), ContextError> {
        for path in self.folders.iter().rev() {
            set_link_time(path).map_err(|source| ContextError::Stage {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }
}

impl Visitor for Stage {
    fn entry(&mut self, entry: &Entry) -> Result<(), ContextError> {
        let path = self.root.join(&entry.path);
        let failed = |source| ContextError::Stage {
            path: path.clone(),
            source,
        };
        match &entry.kind {
            Kind::Directory => {
                fs::create_dir(&path).map_err(failed)?;
                fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(failed)?;
                self.folders.push(path);
            }
            Kind::Symlink { target } => {
                symlink(target, &path).map_err(failed)?;
                set_link_time(&path).map_err(failed)?;
            }
            Kind::File { .. } => {
                let file = File::create_new(&path).map_err(failed)?;
                self.open = Some((path, file));
            }
        }
        Ok(())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<(), ContextError> {
        let Some((path, file)) = &mut self.open else {
            return Ok(());
        };
        file.write_all(bytes).map_err(|source| ContextError::Stage {
            path: path.clone(),
            source,
        })
    }

    fn end(&mut self, entry: &Entry) -> Result<(), ContextError> {
        let (Some((path, file)), Kind::File { executable, .. }) = (self.open.take(), &entry.kind)
        else {
            return Ok(());
        };
        let mode = if *executable { 0o755 } else { 0o644 };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(SOURCE_DATE_EPOCH);
        file.set_permissions(Permissions::from_mode(mode))
            .and_then(|()| file.set_times(FileTimes::new().set_modified(time).set_accessed(time)))
            .map_err(|source| ContextError::Stage { path, source })
    }
}

/// Sets the fixed time on a link itself or on a folder.
fn set_link_time(path: &Path) -> std::io::Result<()> {
    let time = Timespec {
        tv_sec: SOURCE_DATE_EPOCH as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into)
}
