//! Lists a folder the way Docker's client does before it sends one.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::ignore::{Matcher, ParentMatches};
use super::{ContextError, Entry, Kind};

/// Every entry below `root` that `matcher` lets through, sorted by path.
pub(super) fn walk(root: &Path, matcher: &Matcher) -> Result<Vec<Entry>, ContextError> {
    let mut entries = Vec::new();
    walk_folder(root, "", matcher, &ParentMatches::default(), &mut entries)?;
    entries.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(entries)
}

/// Appends what is below `prefix`. True when anything was appended.
fn walk_folder(
    root: &Path,
    prefix: &str,
    matcher: &Matcher,
    parent: &ParentMatches,
    entries: &mut Vec<Entry>,
) -> Result<bool, ContextError> {
    let folder = root.join(prefix);
    let read = |source| ContextError::Read {
        path: folder.clone(),
        source,
    };
    let mut any = false;
    for item in fs::read_dir(&folder).map_err(read)? {
        let item = item.map_err(read)?;
        let name = item.file_name();
        // An ignored entry may be called anything, so the patterns come before the name's encoding.
        let shown = name.to_string_lossy();
        let path = if prefix.is_empty() {
            shown.into_owned()
        } else {
            format!("{prefix}/{shown}")
        };
        let (excluded, matches) = matcher.excludes(&path, parent);
        let kind = item.file_type().map_err(read)?;
        let skipped = if kind.is_dir() {
            excluded && !matcher.may_include_below(&path)
        } else {
            excluded || kind.is_socket()
        };
        if skipped {
            continue;
        }
        if name.to_str().is_none() {
            return Err(ContextError::Name { path: item.path() });
        }
        if kind.is_dir() {
            let below = walk_folder(root, &path, matcher, &matches, entries)?;
            // Docker sends an excluded folder only as the way to a file that a `!` brought back.
            if !excluded || below {
                entries.push(Entry {
                    path,
                    kind: Kind::Directory,
                });
                any = true;
            }
            continue;
        }
        entries.push(Entry {
            kind: entry_kind(&item)?,
            path,
        });
        any = true;
    }
    Ok(any)
}

fn entry_kind(item: &fs::DirEntry) -> Result<Kind, ContextError> {
    let path = item.path();
    let read = |source| ContextError::Read {
        path: path.clone(),
        source,
    };
    let metadata = item.metadata().map_err(read)?;
    if metadata.is_symlink() {
        let target = fs::read_link(&path).map_err(read)?;
        let target = target
            .to_str()
            .ok_or_else(|| ContextError::Name { path: path.clone() })?;
        return Ok(Kind::Symlink {
            target: target.to_owned(),
        });
    }
    if !metadata.is_file() {
        return Err(ContextError::Kind { path });
    }
    let executable = metadata.permissions().mode() & 0o111 != 0;
    Ok(Kind::File {
        executable,
        size: metadata.len(),
    })
}
