//! A context in lines that a person can review and a later run can compare itself with.
//!
//! A line is a path and a short fingerprint of what is there. A context of many files is told in fewer lines: folders give way to one
//! fingerprint each, the deepest and fullest first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::{Contents, Entry, Kind};
use crate::images::hash::{Records, Sha256Digest};

/// More lines than these are reviewed by nobody.
pub const LINES: usize = 1000;

/// Path -> fingerprint. A path that ends in `/` stands for a whole folder; `./` for everything.
pub type Fingerprints = BTreeMap<String, String>;

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Other bytes, another target of a link, or something else in a folder.
    Modified,
    /// A file became executable or stopped being so, and is the same otherwise.
    Mode,
    /// A file, link or folder became another one of them.
    Type,
}

/// A path of a context and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PathChange {
    /// Below the context's root; ends in `/` where only a whole folder can be compared.
    pub path: String,
    /// What became of it.
    pub change: Change,
}

impl Contents {
    /// The context in at most `limit` lines.
    pub fn fingerprints(&self, limit: usize) -> Fingerprints {
        let leaves = self.leaves();
        let folders = collapse(leaves.iter().map(|(path, _)| *path), limit);
        let mut fingerprints = Fingerprints::new();
        let mut known: HashMap<&str, &str> = HashMap::new();
        for folder in &folders {
            fingerprints.insert(folder.clone(), self.tree(folder));
        }
        for (path, fingerprint) in leaves {
            if !is_inside(path, &folders, &mut known) {
                fingerprints.insert(path.to_owned(), fingerprint);
            }
        }
        fingerprints
    }

    /// What differs from an earlier run's lines, which may be folded otherwise than ours would be.
    pub fn changes_since(&self, before: &Fingerprints) -> Vec<PathChange> {
        let folders: BTreeSet<String> = before
            .keys()
            .filter(|path| path.ends_with('/'))
            .cloned()
            .collect();
        let mut changes = Vec::new();
        let mut change = |path: &str, change| {
            changes.push(PathChange {
                path: path.to_owned(),
                change,
            });
        };
        for folder in &folders {
            if self.below(folder).next().is_none() {
                change(folder, Change::Removed);
            } else if before.get(folder) != Some(&self.tree(folder)) {
                change(folder, Change::Modified);
            }
        }
        let mut known = HashMap::new();
        let now: BTreeMap<&str, String> = self
            .leaves()
            .into_iter()
            .filter(|(path, _)| !is_inside(path, &folders, &mut known))
            .collect();
        for (path, fingerprint) in &now {
            match before.get(*path) {
                None => change(path, Change::Added),
                Some(old) if old != fingerprint => change(path, kind_of_change(old, fingerprint)),
                Some(_) => {}
            }
        }
        for path in before.keys().filter(|path| !path.ends_with('/')) {
            if !now.contains_key(path.as_str()) {
                change(path, Change::Removed);
            }
        }
        changes.sort();
        changes
    }

    /// Everything but the folders that something else is in: those follow from their content.
    fn leaves(&self) -> Vec<(&str, String)> {
        let mut full: HashSet<&str> = HashSet::new();
        for entry in self.entries.iter() {
            if let Some((parent, _)) = entry.path.rsplit_once('/') {
                full.insert(parent);
            }
        }
        self.entries
            .iter()
            .zip(self.digests.iter())
            .filter(|(entry, _)| !full.contains(entry.path.as_str()))
            .map(|(entry, digest)| (entry.path.as_str(), fingerprint(entry, digest)))
            .collect()
    }

    fn below<'c>(&'c self, folder: &'c str) -> impl Iterator<Item = (&'c Entry, &'c [u8; 32])> {
        let prefix = match folder {
            "./" => "",
            prefix => prefix,
        };
        let start = self
            .entries
            .partition_point(|entry| entry.path.as_str() < prefix);
        self.entries
            .iter()
            .zip(self.digests.iter())
            .skip(start)
            .take_while(move |(entry, _)| entry.path.starts_with(prefix))
    }

    /// One fingerprint for everything below a folder.
    fn tree(&self, folder: &str) -> String {
        let mut records = Records::new("orch.tree", 1);
        for (entry, digest) in self.below(folder) {
            super::record(&mut records, entry, digest);
        }
        format!("tree {}", short(&records.finish()))
    }
}

fn fingerprint(entry: &Entry, digest: &[u8; 32]) -> String {
    match &entry.kind {
        Kind::Directory => "folder".to_owned(),
        Kind::Symlink { target } => {
            format!("link {}", short(&Sha256Digest::of(target.as_bytes())))
        }
        Kind::File { executable, .. } => {
            let kind = if *executable { "executable" } else { "file" };
            format!("{kind} {}", short(&Sha256Digest::from(*digest)))
        }
    }
}

/// Enough of a hash to see a difference. Nothing is decided by it.
pub fn short(hash: &Sha256Digest) -> String {
    let hex = hash.hex();
    hex.get(..12).unwrap_or(&hex).to_owned()
}

fn kind_of_change(before: &str, after: &str) -> Change {
    let is_file = |kind| matches!(kind, "file" | "executable");
    match (before.split_once(' '), after.split_once(' ')) {
        (Some((before, old)), Some((after, new))) if before != after => {
            match is_file(before) && is_file(after) {
                true if old == new => Change::Mode,
                true => Change::Modified,
                false => Change::Type,
            }
        }
        (Some(_), Some(_)) => Change::Modified,
        _ => Change::Type,
    }
}

/// The folders that have to give way until `paths` need at most `limit` lines. They do not overlap.
fn collapse<'p>(paths: impl Iterator<Item = &'p str>, limit: usize) -> BTreeSet<String> {
    let mut lines = 0_usize;
    // Lines that are in a folder itself, by the folder's path with a `/` at the end.
    let mut own: BTreeMap<&str, usize> = BTreeMap::new();
    for path in paths {
        lines += 1;
        let mut folder = above(path);
        *own.entry(folder).or_default() += 1;
        while !folder.is_empty() {
            folder = above(folder);
            own.entry(folder).or_default();
        }
    }
    let mut collapsed: BTreeSet<String> = BTreeSet::new();
    let depth = |folder: &str| folder.matches('/').count();
    let deepest = own
        .keys()
        .map(|folder| depth(folder))
        .max()
        .unwrap_or_default();
    for level in (0..=deepest).rev() {
        if lines <= limit {
            break;
        }
        let mut folders: Vec<(usize, &str)> = own
            .iter()
            .filter(|(folder, _)| depth(folder) == level)
            .map(|(folder, lines)| (*lines, *folder))
            .collect();
        folders.sort_by(|left, right| right.0.cmp(&left.0).then(left.1.cmp(right.1)));
        for (count, folder) in folders {
            let mut weight = count;
            if lines > limit && count > 1 {
                let name = if folder.is_empty() { "./" } else { folder };
                collapsed.retain(|below| !folder.is_empty() && !below.starts_with(folder));
                collapsed.insert(name.to_owned());
                lines -= count - 1;
                weight = 1;
            }
            // What is left of it counts for the folder above.
            if !folder.is_empty() {
                *own.entry(above(folder)).or_default() += weight;
            }
        }
    }
    collapsed
}

/// Is one of `folders` around `path`? `known` remembers answers for the parents of paths.
fn is_inside<'p>(
    path: &'p str,
    folders: &BTreeSet<String>,
    known: &mut HashMap<&'p str, &'p str>,
) -> bool {
    if folders.is_empty() {
        return false;
    }
    if folders.contains("./") {
        return true;
    }
    let parent = above(path);
    let found = known.entry(parent).or_insert_with(|| {
        let mut folder = parent;
        while !folder.is_empty() && !folders.contains(folder) {
            folder = above(folder);
        }
        folder
    });
    !found.is_empty()
}

/// The folder that a file or a folder is in, with a `/` at the end; empty for the root.
fn above(path: &str) -> &str {
    let inner = path.strip_suffix('/').unwrap_or(path);
    inner
        .rfind('/')
        .and_then(|at| path.get(..=at))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::images::context::Context;

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn contents(root: &Path) -> Contents {
        let context = Context::scan(root, &root.join("Dockerfile")).unwrap();
        context.contents(None).unwrap()
    }

    /// `path change` for what a change of a folder with something of everything is said to be.
    fn said(limit: usize, change: impl FnOnce(&Path)) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in ["a/1", "a/b/2", "a/b/3", "a-b/4", "c/5", "6"] {
            write(root, path, path);
        }
        fs::create_dir(root.join("empty")).unwrap();
        symlink("6", root.join("link")).unwrap();
        let before = contents(root).fingerprints(limit);
        assert!(before.len() <= limit, "{before:?}");
        assert_eq!(contents(root).changes_since(&before), []);
        change(root);
        let changes = contents(root).changes_since(&before);
        changes
            .into_iter()
            .map(|change| format!("{} {:?}", change.path, change.change))
            .collect()
    }

    #[test]
    fn each_change_is_called_by_its_name() {
        let executable = fs::Permissions::from_mode(0o755);
        let mode = |root: &Path| fs::set_permissions(root.join("6"), executable).unwrap();
        assert_eq!(said(100, mode), ["6 Mode"]);
        assert_eq!(
            said(100, |root| write(root, "a/b/2", "x")),
            ["a/b/2 Modified"]
        );
        assert_eq!(said(100, |root| write(root, "new/x", "")), ["new/x Added"]);
        let remove = |root: &Path| fs::remove_dir_all(root.join("a/b")).unwrap();
        assert_eq!(said(100, remove), ["a/b/2 Removed", "a/b/3 Removed"]);
        let retarget = |root: &Path| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("a", root.join("link")).unwrap();
        };
        assert_eq!(said(100, retarget), ["link Modified"]);
        let replace = |root: &Path| {
            fs::remove_dir(root.join("empty")).unwrap();
            write(root, "empty", "");
        };
        assert_eq!(said(100, replace), ["empty Type"]);
        assert_eq!(
            said(100, |root| write(root, "empty/x", "")),
            ["empty Removed", "empty/x Added"]
        );
    }

    #[test]
    fn a_context_of_many_files_is_told_by_its_folders() {
        assert_eq!(said(7, |root| write(root, "a/b/9", "")), ["a/b/ Modified"]);
        assert_eq!(said(7, |root| write(root, "a/9", "")), ["a/9 Added"]);
        assert_eq!(said(6, |root| write(root, "a/9", "")), ["a/ Modified"]);
        assert_eq!(said(6, |root| write(root, "a-b/9", "")), ["a-b/9 Added"]);
        let remove = |root: &Path| fs::remove_dir_all(root.join("a")).unwrap();
        assert_eq!(said(6, remove), ["a/ Removed"]);
        assert_eq!(said(1, |root| write(root, "c/5", "x")), ["./ Modified"]);
    }

    proptest::proptest! {
        #[test]
        fn any_folding_fits_and_covers_every_path(
            paths in proptest::collection::btree_set("[ab-]{1,2}(/[ab-]{1,2}){0,3}", 1..60),
            limit in 1_usize..20,
        ) {
            // A file cannot be a folder as well.
            let paths: BTreeSet<&str> = paths
                .iter()
                .map(String::as_str)
                .filter(|path| !paths.iter().any(|other| other.starts_with(&format!("{path}/"))))
                .collect();
            let folders = collapse(paths.iter().copied(), limit);
            let mut known = HashMap::new();
            let plain = paths.iter().filter(|path| !is_inside(path, &folders, &mut known)).count();
            proptest::prop_assert!(plain + folders.len() <= limit);
            for folder in &folders {
                proptest::prop_assert!(!is_inside(folder.trim_end_matches('/'), &folders, &mut HashMap::new()) || folder == "./");
            }
        }
    }
}
