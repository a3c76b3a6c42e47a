//! Whether a server has a cluster's state, and in what.

use std::path::{Path, PathBuf};

use super::paths;
use crate::system::{FileError, Files};

/// etcd makes it when it first starts, so that a start that failed before leaves none.
const ETCD: &str = "db/etcd/member";
/// K3s renames it once its content has moved to etcd.
const SQLITE: &str = "db/state.db";

/// What a server keeps the cluster's state in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datastore {
    /// It has none: it has never run, or was wiped to join again.
    None,
    Sqlite,
    Etcd,
}

impl Datastore {
    pub(crate) fn of(files: &dyn Files) -> Result<Self, FileError> {
        Self::below(Path::new(paths::SERVER_DATA), |path| files.exists(&path))
    }

    /// `exists` looks at paths below the server's folder.
    pub(crate) fn below<E>(
        server: &Path,
        exists: impl Fn(PathBuf) -> Result<bool, E>,
    ) -> Result<Self, E> {
        // While K3s moves the state both are there; only what is in SQLite is whole.
        if exists(server.join(SQLITE))? {
            return Ok(Datastore::Sqlite);
        }
        Ok(match exists(server.join(ETCD))? {
            true => Datastore::Etcd,
            false => Datastore::None,
        })
    }
}
