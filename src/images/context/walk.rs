//! Lists a folder the way Docker's client does before it sends one. Folders are read by all processors that are free.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::ignore::{Matcher, ParentMatches};
use super::threads::{More, Threads};
use super::{ContextError, Entry, Kind, Stamp};

/// With fewer folders than this waiting, a second thread costs more than it gives.
const WORTH_A_THREAD: usize = 8;

/// A folder that is still to be read.
#[derive(Default)]
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
    let mut waiting = vec![Folder::default()];
    while waiting.len() < WORTH_A_THREAD {
        let Some(folder) = waiting.pop() else {
            return Ok(sorted(found));
        };
        read_folder(root, &folder, matcher, &mut found, &mut waiting)?;
    }
    let queue = Queue::new(waiting);
    let results = queue.empty(Threads::shared(), |folder, found, below| {
        read_folder(root, folder, matcher, found, below)
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

/// A folder in the hands of a thread. The others wait for what is below it, so that they must hear of it even if this thread
/// ends by an error or a panic.
struct Taken<'q> {
    queue: &'q Queue,
    folder: Folder,
    below: Vec<Folder>,
    is_read: bool,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.busy -= 1;
        state.failed |= !self.is_read;
        state.waiting.append(&mut self.below);
        drop(state);
        self.queue.changed.notify_all();
    }
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

    /// Reads all folders. Gives what each thread found, or where it failed.
    fn empty(
        &self,
        threads: &Threads,
        read: impl Fn(&Folder, &mut Found, &mut Vec<Folder>) -> Result<(), ContextError> + Sync,
    ) -> Vec<Result<Found, ContextError>> {
        threads.share(usize::MAX, |more| self.work(more, &read))
    }

    /// Reads folders until none waits and nobody can bring one.
    fn work(
        &self,
        more: &mut More<'_>,
        read: impl Fn(&Folder, &mut Found, &mut Vec<Folder>) -> Result<(), ContextError>,
    ) -> Result<Found, ContextError> {
        let mut found = Found::default();
        while let Some(mut taken) = self.take() {
            more();
            read(&taken.folder, &mut found, &mut taken.below)?;
            taken.is_read = true;
        }
        Ok(found)
    }

    fn take(&self) -> Option<Taken<'_>> {
        let mut state = self.state();
        loop {
            if state.failed {
                return None;
            }
            if let Some(folder) = state.waiting.pop() {
                state.busy += 1;
                return Some(Taken {
                    queue: self,
                    folder,
                    below: Vec::new(),
                    is_read: false,
                });
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_panic_in_one_thread_does_not_leave_the_others_waiting() {
        let (alive, ended) = channel::<()>();
        let walking = thread::spawn(move || {
            let _alive = alive;
            // The only folder is in the hands of the thread that panics; the other can but wait.
            let queue = Queue::new(vec![Folder::default()]);
            queue
                .empty(&Threads::new(2), |_, _, _| panic!("as asked"))
                .len()
        });
        let patience = Duration::from_secs(20);
        assert_eq!(
            ended.recv_timeout(patience),
            Err(RecvTimeoutError::Disconnected)
        );
        assert!(walking.join().is_err());
    }
}
