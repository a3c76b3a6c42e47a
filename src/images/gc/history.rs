//! Where this project's images were: what earlier versions of `images.lock` say, which git remembers.
//!
//! A component that is gone leaves a repository that no name leads to. It may be another project's by now, so what the lock
//! named there is all that may go.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::GcError;
use super::git::{Commit, Git};

/// Repository -> the tags of ours that some version of the lock names in it.
pub type Former = BTreeMap<String, BTreeSet<String>>;

/// Versions that are in memory at a time.
const BATCH: usize = 50;

/// As much of a lock as has to be understood.
#[derive(Deserialize)]
struct OldLock {
    #[serde(default)]
    components: BTreeMap<String, Place>,
}

#[derive(Deserialize)]
struct Place {
    repository: String,
    tag: String,
}

/// What all versions of `lock` name that `commits` descend from.
pub(super) async fn read(git: &Git, commits: &[Commit], lock: &Path) -> Result<Former, GcError> {
    let mut former = Former::new();
    let Some(path) = inside(&git.folder, lock) else {
        return Ok(former);
    };
    let versions = git.versions(commits, &path).await?;
    for batch in versions.chunks(BATCH) {
        for version in git.contents(batch).await? {
            // What is no lock that orch wrote names no repository.
            let Ok(OldLock { components }) = serde_json::from_slice(&version) else {
                continue;
            };
            for Place { repository, tag } in components.into_values() {
                former.entry(repository).or_default().insert(tag);
            }
        }
    }
    Ok(former)
}

/// `file`, which need not be there any more, as git calls it from its top folder; nothing if it lies elsewhere.
fn inside(top: &Path, file: &Path) -> Option<String> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let file = folder.canonicalize().ok()?.join(file.file_name()?);
    let path = file.strip_prefix(top.canonicalize().ok()?).ok()?;
    Some(path.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_found_from_the_top_folder_also_when_it_is_gone() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir(top.path().join("deploy")).unwrap();
        let lock = top.path().join("deploy/../deploy/images.lock");
        assert_eq!(inside(top.path(), &lock).unwrap(), "deploy/images.lock");
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(inside(elsewhere.path(), &lock), None);
    }

    #[test]
    fn only_places_are_read_of_a_lock() {
        let text = r#"{"version": 0, "components": {"a": {"repository": "r/a", "tag": "in-1", "new": 1}}}"#;
        let lock: OldLock = serde_json::from_str(text).unwrap();
        assert_eq!(lock.components["a"].repository, "r/a");
    }
}
