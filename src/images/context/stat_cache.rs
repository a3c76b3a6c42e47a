//! Digests of files from earlier runs, believed as long as the file system says that nobody wrote to them since.
//!
//! One file for each context. It can be deleted at any time: what is missing, damaged or made by another version is as good as no
//! cache, never an error. Programs that run at the same time replace each other's file as a whole.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Context, Entry, Kind, Stamp};
use crate::files;
use crate::images::hash::{Records, Sha256Digest};

/// Opens every cache file. A change of format is a change of these bytes.
const MAGIC: &[u8; 16] = b"orch stat cache1";

/// The bytes before the records: [`MAGIC`] and the SHA-256 of all that follows.
const HEADER: usize = MAGIC.len() + 32;

/// Bytes of a [`Stamp`] in the file.
const STAMP: usize = 56;

/// A file that was changed so recently may be changed again without a visible difference: the coarsest clocks of file systems in
/// use tick every two seconds. Such a file is read again the next time.
const RACY: Duration = Duration::from_secs(3);

/// Where digests are kept from run to run.
#[derive(Debug, Clone)]
pub struct StatCache {
    folder: PathBuf,
    /// Believe what is there?
    believe: bool,
    started: SystemTime,
}

/// What an earlier run knew about one context.
#[derive(Debug)]
pub(super) struct Known {
    bytes: Vec<u8>,
}

impl StatCache {
    /// Keeps one file a context in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            believe: true,
            started: SystemTime::now(),
        }
    }

    /// Reads every file again and remembers the result.
    pub fn rehash(mut self) -> Self {
        self.believe = false;
        self
    }

    /// What is known about a context; nothing, if that cannot be said for sure.
    pub(super) fn load(&self, context: &Context) -> Known {
        let bytes = match self.believe {
            true => fs::read(self.file(context)).unwrap_or_default(),
            false => Vec::new(),
        };
        let (head, body) = bytes.split_at_checked(HEADER).unwrap_or_default();
        let sum = Sha256Digest::of(body);
        match head.strip_prefix(MAGIC) {
            Some(expected) if expected == sum.as_bytes() => Known { bytes },
            _ => Known { bytes: Vec::new() },
        }
    }

    /// Remembers digests. That it cannot be written costs the next run time and this one nothing.
    pub(super) fn store(&self, context: &Context, digests: &[[u8; 32]]) {
        let racy = self.started.checked_sub(RACY).unwrap_or(UNIX_EPOCH);
        let racy = racy.duration_since(UNIX_EPOCH).unwrap_or_default();
        let racy = (
            i64::try_from(racy.as_secs()).unwrap_or(i64::MAX),
            i64::from(racy.subsec_nanos()),
        );
        let mut bytes = vec![0; HEADER];
        for (entry, digest) in context.entries.iter().zip(digests) {
            let Kind::File { stamp, .. } = &entry.kind else {
                continue;
            };
            let Ok(length) = u32::try_from(entry.path.len()) else {
                continue;
            };
            if stamp.modified >= racy || stamp.changed >= racy {
                continue;
            }
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(entry.path.as_bytes());
            bytes.extend_from_slice(&stamp.bytes());
            bytes.extend_from_slice(digest);
        }
        self.write(context, bytes);
    }

    /// Completes the header of `bytes` and replaces the file.
    fn write(&self, context: &Context, mut bytes: Vec<u8>) {
        let (head, body) = bytes.split_at_mut(HEADER);
        let (magic, sum) = head.split_at_mut(MAGIC.len());
        magic.copy_from_slice(MAGIC);
        sum.copy_from_slice(Sha256Digest::of(body).as_bytes());
        let path = self.file(context);
        let written = fs::create_dir_all(&self.folder).and_then(|()| files::replace(&path, &bytes));
        if written.is_err() {
            // Half of the time a full disk: the least that can be done is not to take up room.
            let _ = fs::remove_file(path);
        }
    }

    /// Two Dockerfiles with ignore files of their own see two contexts in one folder.
    fn file(&self, context: &Context) -> PathBuf {
        let root = fs::canonicalize(&context.root).unwrap_or_else(|_| context.root.clone());
        let mut name = Records::new("orch.stat-cache", 1);
        name.fields(&[
            root.as_os_str().as_bytes(),
            context.dockerfile.as_os_str().as_bytes(),
        ]);
        let name = name.finish().hex();
        self.folder.join(name.get(..32).unwrap_or(&name))
    }
}

impl Known {
    /// Fills in the digests of unchanged files. The indexes of the others.
    pub(super) fn fill(&self, entries: &[Entry], digests: &mut [[u8; 32]]) -> Vec<usize> {
        let mut missing = Vec::new();
        let mut records = Cursor::new(&self.bytes);
        let mut record = records.next();
        for (index, (entry, slot)) in entries.iter().zip(digests).enumerate() {
            let Kind::File { stamp, .. } = &entry.kind else {
                continue;
            };
            // Both are sorted by path.
            while record.is_some_and(|record| record.path < entry.path.as_bytes()) {
                record = records.next();
            }
            match record {
                Some(known)
                    if known.path == entry.path.as_bytes() && known.stamp == stamp.bytes() =>
                {
                    slot.copy_from_slice(known.digest);
                }
                _ => missing.push(index),
            }
        }
        missing
    }
}

/// One file of a cache.
#[derive(Clone, Copy)]
struct Record<'a> {
    path: &'a [u8],
    stamp: &'a [u8],
    digest: &'a [u8],
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(bytes.get(HEADER..).unwrap_or_default())
    }
}

impl<'a> Iterator for Cursor<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (path, rest) = rest.split_at_checked(length)?;
        let (stamp, rest) = rest.split_at_checked(STAMP)?;
        let (digest, rest) = rest.split_at_checked(32)?;
        self.0 = rest;
        Some(Record {
            path,
            stamp,
            digest,
        })
    }
}

impl Stamp {
    fn bytes(&self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        let fields = [
            self.size,
            self.device,
            self.inode,
            self.modified.0.cast_unsigned(),
            self.modified.1.cast_unsigned(),
            self.changed.0.cast_unsigned(),
            self.changed.1.cast_unsigned(),
        ];
        for (slot, field) in bytes.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
impl StatCache {
    /// A cache of a run that began at another time.
    pub(super) fn at(mut self, started: SystemTime) -> Self {
        self.started = started;
        self
    }

    /// A file with a right header and anything after it.
    pub(super) fn write_body(&self, context: &Context, body: &[u8]) {
        self.write(context, [&[0; HEADER], body].concat());
    }
}
