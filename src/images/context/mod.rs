//! What a build sees: the files of a component's folder, filtered and normalised.
//!
//! One pass, [`Context::visit`], yields every entry in a fixed order with a fixed shape. Hashing is that pass;
//! staging the files for the builder is that pass with a [`stage::Stage`] listening. So a name can only ever stand for the
//! bytes that were built. Boundary: reads the component's folder, knows nothing of Dockerfiles, engines or registries.

pub mod ignore;
pub mod stage;
mod walk;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::images::hash::{Records, Sha256Digest};

/// Time stamp of every file in a context and `SOURCE_DATE_EPOCH` of every build: 2020-01-01T00:00:00Z, in seconds.
/// A constant because a commit's or a file's own time would give equal sources different digests.
pub const SOURCE_DATE_EPOCH: u64 = 1_577_836_800;

/// How many bytes of a file are read at once.
const CHUNK: usize = 128 * 1024;

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
        /// Length in bytes when the folder was listed.
        size: u64,
    },
    /// A symbolic link, never followed.
    Symlink {
        /// Where it points, as written.
        target: String,
    },
}

/// The listing of a component's folder after `.dockerignore`.
#[derive(Debug, Clone)]
pub struct Context {
    /// The folder.
    pub root: PathBuf,
    /// Sorted by path, parents before children.
    pub entries: Vec<Entry>,
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

/// A visitor for those who want the hash alone.
#[derive(Debug)]
pub struct HashOnly;

impl Visitor for HashOnly {
    fn entry(&mut self, _entry: &Entry) -> Result<(), ContextError> {
        Ok(())
    }
    fn content(&mut self, _bytes: &[u8]) -> Result<(), ContextError> {
        Ok(())
    }
    fn end(&mut self, _entry: &Entry) -> Result<(), ContextError> {
        Ok(())
    }
}

impl Context {
    /// Lists `root`, filtered by `<dockerfile>.dockerignore` if there is one, otherwise by `<root>/.dockerignore`.
    pub fn scan(root: &Path, dockerfile: &Path) -> Result<Self, ContextError> {
        let matcher = ignore::Matcher::for_build(root, dockerfile)?;
        let entries = walk::walk(root, &matcher)?;
        Ok(Self {
            root: root.to_owned(),
            entries,
        })
    }

    /// Sum of the file sizes in bytes, and the number of files.
    pub fn size(&self) -> (u64, usize) {
        let sizes = self.entries.iter().filter_map(|entry| match entry.kind {
            Kind::File { size, .. } => Some(size),
            _ => None,
        });
        sizes.fold((0, 0), |(bytes, files), size| (bytes + size, files + 1))
    }

    /// SHA-256 over the context's records.
    pub fn hash(&self) -> Result<Sha256Digest, ContextError> {
        self.visit(&mut HashOnly)
    }

    /// Reads everything once, shows it to `visitor` and answers with the SHA-256 over path-sorted, length-prefixed records.
    pub fn visit(&self, visitor: &mut impl Visitor) -> Result<Sha256Digest, ContextError> {
        let mut records = Records::new("orch.context", 1);
        let mut buffer = vec![0; CHUNK];
        for entry in &self.entries {
            visitor.entry(entry)?;
            match &entry.kind {
                Kind::Directory => records.fields(&[b"directory", entry.path.as_bytes()]),
                Kind::Symlink { target } => {
                    records.fields(&[b"symlink", entry.path.as_bytes(), target.as_bytes()])
                }
                Kind::File { executable, size } => {
                    let digest =
                        read_file(&self.root.join(&entry.path), *size, &mut buffer, visitor)?;
                    let mode: &[u8] = if *executable { b"0755" } else { b"0644" };
                    records.fields(&[b"file", entry.path.as_bytes(), mode, &digest]);
                }
            }
            visitor.end(entry)?;
        }
        Ok(records.finish())
    }
}

fn read_file(
    path: &Path,
    size: u64,
    buffer: &mut [u8],
    visitor: &mut impl Visitor,
) -> Result<[u8; 32], ContextError> {
    let read = |source| ContextError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let mut hasher = Sha256::new();
    let mut total = 0;
    loop {
        let count = file.read(buffer).map_err(read)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        let chunk = buffer.get(..count).unwrap_or_default();
        hasher.update(chunk);
        visitor.content(chunk)?;
    }
    if total != size {
        return Err(ContextError::Changed {
            path: path.to_owned(),
        });
    }
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests;
