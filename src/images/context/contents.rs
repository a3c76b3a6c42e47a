//! The digests of all files of a context, read by all processors that are free.
//!
//! Who reads which file is left to chance; what comes of it is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::stat_cache::StatCache;
use super::threads::{More, Threads};
use super::{CHUNK, Context, ContextError, Entry, Kind, NO_DIGEST, read_file, record, records};
use crate::images::hash::Sha256Digest;

/// From this size on a file is begun before all others, so that the last one to be read is a small one.
const LARGE: u64 = 4 * 1024 * 1024;

/// How many files a thread takes at once.
const BATCH: usize = 16;

/// Digests by index into the listing, or the first file that could not be read.
type Read = Result<Vec<(usize, [u8; 32])>, (usize, ContextError)>;

/// What a context holds, file by file.
#[derive(Debug, Clone)]
pub struct Contents {
    pub(super) entries: Arc<Vec<Entry>>,
    /// One for each entry; only those of files mean something.
    pub(super) digests: Arc<Vec<[u8; 32]>>,
    hash: Sha256Digest,
    read: (u64, usize),
}

impl PartialEq for Contents {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Contents {}

impl Default for Contents {
    /// Of a context without anything in it.
    fn default() -> Self {
        Self {
            entries: Arc::default(),
            digests: Arc::default(),
            hash: records().finish(),
            read: (0, 0),
        }
    }
}

impl Contents {
    /// SHA-256 over path-sorted, length-prefixed records.
    pub fn hash(&self) -> Sha256Digest {
        self.hash
    }

    /// Bytes and files that were read; the others are known from an earlier run.
    pub fn read(&self) -> (u64, usize) {
        self.read
    }
}

pub(super) fn read(context: &Context, cache: Option<&StatCache>) -> Result<Contents, ContextError> {
    let entries = &context.entries;
    let mut digests = vec![NO_DIGEST; entries.len()];
    let known = cache.map(|cache| cache.load(context));
    let mut missing = match &known {
        Some(known) => known.fill(entries, &mut digests),
        None => (0..entries.len())
            .filter(
                |index| matches!(entries.get(*index), Some(entry) if stamp_size(entry).is_some()),
            )
            .collect(),
    };
    let size = |index: &usize| entries.get(*index).and_then(stamp_size).unwrap_or_default();
    let bytes = missing.iter().map(size).sum();
    let files = missing.len();
    // The sort is stable and `false` comes first: large files to the front, the rest as listed.
    missing.sort_by_key(|index| size(index) < LARGE);
    for (index, digest) in read_files(context, &missing, bytes)? {
        if let Some(slot) = digests.get_mut(index) {
            *slot = digest;
        }
    }
    if let Some(cache) = cache.filter(|_| files > 0) {
        cache.store(context, &digests);
    }
    let mut all = records();
    for (entry, digest) in entries.iter().zip(&digests) {
        record(&mut all, entry, digest);
    }
    Ok(Contents {
        entries: Arc::clone(entries),
        digests: Arc::new(digests),
        hash: all.finish(),
        read: (bytes, files),
    })
}

fn stamp_size(entry: &Entry) -> Option<u64> {
    match &entry.kind {
        Kind::File { stamp, .. } => Some(stamp.size),
        Kind::Directory | Kind::Symlink { .. } => None,
    }
}

/// Reads the files at `indexes`, which hold `bytes` in all, with as many threads as that is worth.
fn read_files(
    context: &Context,
    indexes: &[usize],
    bytes: u64,
) -> Result<Vec<(usize, [u8; 32])>, ContextError> {
    let worth = indexes.len() / (BATCH * 2) + usize::try_from(bytes / LARGE).unwrap_or(usize::MAX);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results = Threads::shared().share(worth, |more| {
        read_some(context, indexes, &next, &stop, more)
    });
    let mut read = Vec::with_capacity(indexes.len());
    let mut first: Option<(usize, ContextError)> = None;
    for result in results {
        match result {
            Ok(some) => read.extend(some),
            Err(error) if first.as_ref().is_none_or(|first| error.0 < first.0) => {
                first = Some(error)
            }
            Err(_) => {}
        }
    }
    match first {
        Some((_, error)) => Err(error),
        None => Ok(read),
    }
}

/// One thread's share: what it gets hold of until there is no more.
fn read_some(
    context: &Context,
    indexes: &[usize],
    next: &AtomicUsize,
    stop: &AtomicBool,
    more: &mut More<'_>,
) -> Read {
    let mut read = Vec::new();
    let mut buffer = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        let start = next.fetch_add(BATCH, Ordering::Relaxed);
        let end = indexes.len().min(start.saturating_add(BATCH));
        let Some(batch) = indexes.get(start..end).filter(|batch| !batch.is_empty()) else {
            break;
        };
        more();
        for index in batch {
            let Some(Entry {
                path,
                kind: Kind::File { stamp, .. },
            }) = context.entries.get(*index)
            else {
                continue;
            };
            match read_file(&context.root.join(path), stamp, &mut buffer, |_| Ok(())) {
                Ok(digest) => read.push((*index, digest)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err((*index, error));
                }
            }
        }
    }
    Ok(read)
}
