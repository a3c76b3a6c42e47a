//! Whether a server has a cluster's state, and in what.

use std::path::{Path, PathBuf};

use super::paths;
use crate::system::{FileError, Files};

/// etcd makes it when it first starts, so that a start that failed before leaves none.
const ETCD: &str = "db/etcd/member";
/// The member's name: K3s writes it where other servers can join.
const MEMBER_NAME: &str = "db/etcd/name";
/// K3s renames it once its content has moved to etcd.
const SQLITE: &str = "db/state.db";

/// What a server keeps the cluster's state in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datastore {
    /// It has none: it has never run, or was wiped to join again.
    None,
    /// In something that no other server can join.
    Sqlite,
    /// In embedded etcd.
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
        if !exists(server.join(ETCD))? {
            return Ok(Datastore::None);
        }
        Ok(match exists(server.join(MEMBER_NAME))? {
            true => Datastore::Etcd,
            false => Datastore::Sqlite,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::MemoryFiles;

    #[test]
    fn what_lies_in_the_folder_says_what_it_is() {
        let folder = "/var/lib/rancher/k3s/server/db";
        let of = |present: &[&str]| {
            let files = MemoryFiles::default();
            for path in present {
                files.put(&format!("{folder}/{path}"), "", 0o600);
            }
            Datastore::of(&files).unwrap()
        };
        assert_eq!(of(&["etcd/member", "etcd/name"]), Datastore::Etcd);
        assert_eq!(of(&["state.db"]), Datastore::Sqlite);
        // A start that failed before etcd ran; snapshots that are kept.
        assert_eq!(of(&["etcd/name", "snapshots/a"]), Datastore::None);
        // While it is being moved, and where others cannot join.
        assert_eq!(
            of(&["state.db", "etcd/member", "etcd/name"]),
            Datastore::Sqlite
        );
        assert_eq!(of(&["etcd/member"]), Datastore::Sqlite);
    }
}
