//! Changes to key files, one at a time: each is whole or has not happened.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::KeyError;

/// What changes files; a test puts one here that is cut off in the middle.
pub(super) trait Store {
    /// Makes a directory that only its owner can enter, and its parents.
    fn make_directory(&self, path: &Path) -> Result<(), KeyError>;
    /// Replaces a file, mode 0600.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), KeyError>;
    fn rename(&self, from: &Path, to: &Path) -> Result<(), KeyError>;
    /// A file that is not there is as wanted.
    fn remove(&self, path: &Path) -> Result<(), KeyError>;
}

pub(super) struct Disk;

impl Store for Disk {
    fn make_directory(&self, path: &Path) -> Result<(), KeyError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| KeyError::CreateDirectory {
                path: path.to_owned(),
                source,
            })
    }

    fn write(&self, path: &Path, content: &[u8]) -> Result<(), KeyError> {
        let write = || -> io::Result<()> {
            let directory = path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.as_file()
                .set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(content)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            sync_directory_of(path)
        };
        write().map_err(written(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), KeyError> {
        fs::rename(from, to)
            .and_then(|()| sync_directory_of(to))
            .map_err(written(to))
    }

    fn remove(&self, path: &Path) -> Result<(), KeyError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(written(path)(error)),
            Ok(()) => sync_directory_of(path).map_err(written(path)),
        }
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn written(path: &Path) -> impl Fn(io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::Write {
        path: path.clone(),
        source,
    }
}
