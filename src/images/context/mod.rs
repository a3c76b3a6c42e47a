//! What a build sees: the files of a component's folder, filtered and normalised.
//!
//! Naming reads all files at once and may believe a [`stat_cache::StatCache`] ([`Context::contents`]). Staging for the builder
//! reads every byte in order and hashes it on the way ([`Context::visit`] with a [`stage::Stage`]). Both end in the same records,
//! and a copy with another hash than the name's is not built: a name can only ever stand for the bytes that were built.
//! Boundary: reads the component's folder, knows nothing of Dockerfiles, engines or registries.

mod contents;
pub mod fingerprints;
pub mod ignore;
pub mod stage;
pub mod stat_cache;
pub mod threads;
mod walk;

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

pub use self::contents::Contents;
use self::stat_cache::StatCache;
use crate::images::hash::{Records, Sha256Digest};

/// Time stamp of every file in a context and `SOURCE_DATE_EPOCH` of every build: 2020-01-01T00:00:00Z, in seconds.
/// A constant because a commit's or a file's own time would give equal sources different digests.
pub const SOURCE_DATE_EPOCH: u64 = 1_577_836_800;

/// How many bytes of a file are read at once.
const CHUNK: usize = 256 * 1024;

/// Reading a context failed.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The operating system refused.
    #[error("cannot read {path} of the build context")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Docker's formats and ours are defined over UTF-8 names.
    #[error("{path:?} has a name that is not UTF-8: rename it or list it in .dockerignore")]
    Name {
        /// The path as far as it can be shown.
        path: PathBuf,
    },
    /// A device, pipe or socket.
    #[error(
        "{path} is neither a file, a folder nor a symbolic link: remove it or list it in .dockerignore"
    )]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// A line of .dockerignore that Docker would refuse as well.
    #[error("{file}:{line}: `{pattern}` is not a valid pattern: {reason}")]
    Pattern {
        /// The ignore file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The pattern as written.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody saved a file between naming and building.
    #[error("{path} changed while it was being read: run the command again")]
    Changed {
        /// The file or the context's folder.
        path: PathBuf,
    },
    /// The normalised copy could not be written.
    #[error("cannot write {path}, the normalised copy of the build context")]
    Stage {
        /// The file in the temporary folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// One file, folder or link of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path below the context's root, with `/`.
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

/// What an [`Entry`] is, normalised: no owner, no time, two modes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder, mode 0755.
    Directory,
    /// A file.
    File {
        /// Mode 0755, otherwise 0644.
        executable: bool,
        /// Which file it was when the folder was listed.
        stamp: Stamp,
    },
    /// A symbolic link, never followed.
    Symlink {
        /// Where it points, as written.
        target: String,
    },
}

/// What the file system says of a file without reading it. Nobody can write to a file and leave it as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Length in bytes.
    pub size: u64,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds of the last write.
    modified: (i64, i64),
    /// The same of the last change of anything, which no program can set back.
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            size: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// Is this later look at a file one at the same content? Not asked here are device and inode: some file systems of virtual
    /// machines number their files anew at every look.
    fn is_unwritten_since(&self, before: &Self) -> bool {
        (self.size, self.modified, self.changed) == (before.size, before.modified, before.changed)
    }
}

/// The listing of a component's folder after `.dockerignore`.
#[derive(Debug, Clone)]
pub struct Context {
    /// The folder.
    pub root: PathBuf,
    /// Sorted by path, parents before children.
    pub entries: Arc<Vec<Entry>>,
    /// The Dockerfile whose ignore file may have filtered it.
    dockerfile: PathBuf,
}

/// Sees what is hashed, as it is hashed.
pub trait Visitor {
    /// A new entry begins.
    fn entry(&mut self, entry: &Entry) -> Result<(), ContextError>;
    /// The next bytes of the file that [`Visitor::entry`] announced.
    fn content(&mut self, bytes: &[u8]) -> Result<(), ContextError>;
    /// The entry is complete.
    fn end(&mut self, entry: &Entry) -> Result<(), ContextError>;
}

impl Context {
    /// Lists `root`, filtered by `<dockerfile>.dockerignore` if there is one, otherwise by `<root>/.dockerignore`.
    pub fn scan(root: &Path, dockerfile: &Path) -> Result<Self, ContextError> {
        let matcher = ignore::Matcher::for_build(root, dockerfile)?;
        let entries = walk::walk(root, &matcher)?;
        Ok(Self {
            root: root.to_owned(),
            entries: Arc::new(entries),
            dockerfile: dockerfile.to_owned(),
        })
    }

    /// Sum of the file sizes in bytes, and the number of files.
    pub fn size(&self) -> (u64, usize) {
        let sizes = self.entries.iter().filter_map(|entry| match entry.kind {
            Kind::File { stamp, .. } => Some(stamp.size),
            _ => None,
        });
        sizes.fold((0, 0), |(bytes, files), size| (bytes + size, files + 1))
    }

    /// Reads all files, on all processors that are free, except those that `cache` knows. The answer does not depend on either.
    pub fn contents(&self, cache: Option<&StatCache>) -> Result<Contents, ContextError> {
        contents::read(self, cache)
    }

    /// Reads everything once and in order, shows it to `visitor` and answers with the hash that [`Contents::hash`] has.
    pub fn visit(&self, visitor: &mut impl Visitor) -> Result<Sha256Digest, ContextError> {
        let mut records = records();
        let mut buffer = vec![0; CHUNK];
        for entry in self.entries.iter() {
            visitor.entry(entry)?;
            let digest = match &entry.kind {
                Kind::File { stamp, .. } => {
                    let path = self.root.join(&entry.path);
                    read_file(&path, stamp, &mut buffer, |chunk| visitor.content(chunk))?
                }
                Kind::Directory | Kind::Symlink { .. } => NO_DIGEST,
            };
            record(&mut records, entry, &digest);
            visitor.end(entry)?;
        }
        Ok(records.finish())
    }
}

/// Stands where an entry has no bytes of its own.
const NO_DIGEST: [u8; 32] = [0; 32];

fn records() -> Records {
    Records::new("orch.context", 1)
}

/// The one shape in which an entry becomes part of the hash.
fn record(records: &mut Records, entry: &Entry, digest: &[u8; 32]) {
    let path = entry.path.as_bytes();
    match &entry.kind {
        Kind::Directory => records.fields(&[b"directory", path]),
        Kind::Symlink { target } => records.fields(&[b"symlink", path, target.as_bytes()]),
        Kind::File { executable, .. } => {
            let mode: &[u8] = if *executable { b"0755" } else { b"0644" };
            records.fields(&[b"file", path, mode, digest]);
        }
    }
}

/// The SHA-256 of a file that must still be the one that was listed when its last byte was read.
fn read_file(
    path: &Path,
    stamp: &Stamp,
    buffer: &mut [u8],
    mut content: impl FnMut(&[u8]) -> Result<(), ContextError>,
) -> Result<[u8; 32], ContextError> {
    let read = |source| ContextError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::options()
        .read(true)
        // What became a link or a pipe since it was listed must neither be followed nor waited for.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)
        .map_err(read)?;
    let mut hasher = Sha256::new();
    let mut left = stamp.size;
    while left > 0 {
        let count = file.read(buffer).map_err(read)?;
        if count == 0 {
            break;
        }
        let chunk = buffer.get(..count).unwrap_or_default();
        left = left.saturating_sub(chunk.len() as u64);
        hasher.update(chunk);
        content(chunk)?;
    }
    if !Stamp::from(&file.metadata().map_err(read)?).is_unwritten_since(stamp) {
        return Err(ContextError::Changed {
            path: path.to_owned(),
        });
    }
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests;
