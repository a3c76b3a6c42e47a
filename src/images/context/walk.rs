//! Lists a folder the way Docker's client does before it sends one. Folders are read by all processors at once.

use std::collections::HashSet;
use std::fs;
use std::num::NonZero;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::ignore::{Matcher, ParentMatches};
use super::{ContextError, Entry, Kind, Stamp};

/// With fewer folders than this waiting, a second thread costs more than it gives.
const WORTH_A_THREAD: usize = 8;

/// A folder that is still to be read.
struct Folder {
    /// Below the root, with `/`; empty for the root itself.
    path: String,
    matches: ParentMatches,
}

/// What was found so far.
#[derive(Default)]
struct Found {
    entries: Vec<Entry>,
    /// Excluded folders that were entered: Docker sends one only as the way to what a `!` brought back below it.
    ways: Vec<String>,
}

/// Every entry below `root` that `matcher` lets through, sorted by path.
pub(super) fn walk(root: &Path, matcher: &Matcher) -> Result<Vec<Entry>, ContextError> {
    let mut found = Found::default();
    let mut waiting = vec![Folder {
        path: String::new(),
        matches: ParentMatches::default(),
    }];
    while waiting.len() < WORTH_A_THREAD {
        let Some(folder) = waiting.pop() else {
            return Ok(sorted(found));
        };
        read_folder(root, &folder, matcher, &mut found, &mut waiting)?;
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let queue = Queue::new(waiting);
    let results: Vec<Result<Found, ContextError>> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| queue.work(root, matcher)))
            .collect();
        let finished = running.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        finished.collect()
    });
    for result in results {
        let Found { entries, ways } = result?;
        found.entries.extend(entries);
        found.ways.extend(ways);
    }
    Ok(sorted(found))
}

fn sorted(found: Found) -> Vec<Entry> {
    let Found { mut entries, ways } = found;
    if !ways.is_empty() {
        let mut used: HashSet<&str> = HashSet::new();
        for entry in &entries {
            let mut path = entry.path.as_str();
            while let Some((parent, _)) = path.rsplit_once('/') {
                if !used.insert(parent) {
                    break;
                }
                path = parent;
            }
        }
        let used: Vec<Entry> = ways
            .iter()
            .filter(|way| used.contains(way.as_str()))
            .map(|way| Entry {
                path: way.clone(),
                kind: Kind::Directory,
            })
            .collect();
        entries.extend(used);
    }
    entries.sort_unstable_by(|left, right| left.path.cmp(&right.path));
    entries
}

/// Appends what is in one folder, and to `below` the folders in it.
fn read_folder(
    root: &Path,
    folder: &Folder,
    matcher: &Matcher,
    found: &mut Found,
    below: &mut Vec<Folder>,
) -> Result<(), ContextError> {
    let full = root.join(&folder.path);
    let read = |source| ContextError::Read {
        path: full.clone(),
        source,
    };
    for item in fs::read_dir(&full).map_err(read)? {
        let item = item.map_err(read)?;
        let name = item.file_name();
        // An ignored entry may be called anything, so the patterns come before the name's encoding.
        let shown = name.to_string_lossy();
        let mut path = String::with_capacity(folder.path.len() + 1 + shown.len());
        if !folder.path.is_empty() {
            path.push_str(&folder.path);
            path.push('/');
        }
        path.push_str(&shown);
        let (excluded, matches) = matcher.excludes(&path, &folder.matches);
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
            if excluded {
                found.ways.push(path.clone());
            } else {
                found.entries.push(Entry {
                    path: path.clone(),
                    kind: Kind::Directory,
                });
            }
            below.push(Folder { path, matches });
            continue;
        }
        let kind = entry_kind(&item)?;
        found.entries.push(Entry { path, kind });
    }
    Ok(())
}

fn entry_kind(item: &fs::DirEntry) -> Result<Kind, ContextError> {
    let read = |source| ContextError::Read {
        path: item.path(),
        source,
    };
    let metadata = item.metadata().map_err(read)?;
    if metadata.is_symlink() {
        let target = fs::read_link(item.path()).map_err(read)?;
        let target = target
            .to_str()
            .ok_or_else(|| ContextError::Name { path: item.path() })?;
        return Ok(Kind::Symlink {
            target: target.to_owned(),
        });
    }
    if !metadata.is_file() {
        return Err(ContextError::Kind { path: item.path() });
    }
    let executable = metadata.permissions().mode() & 0o111 != 0;
    Ok(Kind::File {
        executable,
        stamp: Stamp::from(&metadata),
    })
}

/// Folders that wait for a thread, and how many threads may still bring more.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: Vec<Folder>,
    busy: usize,
    failed: bool,
}

impl Queue {
    fn new(waiting: Vec<Folder>) -> Self {
        Self {
            state: Mutex::new(State {
                waiting,
                busy: 0,
                failed: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads folders until none waits and nobody can bring one.
    fn work(&self, root: &Path, matcher: &Matcher) -> Result<Found, ContextError> {
        let mut found = Found::default();
        while let Some(folder) = self.take() {
            let mut below = Vec::new();
            let result = read_folder(root, &folder, matcher, &mut found, &mut below);
            let mut state = self.state();
            state.busy -= 1;
            state.failed |= result.is_err();
            state.waiting.extend(below);
            drop(state);
            self.changed.notify_all();
            result?;
        }
        Ok(found)
    }

    fn take(&self) -> Option<Folder> {
        let mut state = self.state();
        loop {
            if state.failed {
                return None;
            }
            if let Some(folder) = state.waiting.pop() {
                state.busy += 1;
                return Some(folder);
            }
            if state.busy == 0 {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
