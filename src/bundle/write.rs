//! Makes a bundle: announced first, then member after member as they come, and visible only when all of them were right.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::contents::{Contents, Member};
use super::tape::Tape;
use super::{BundleError, CHECKSUM, CONTENTS, LONGEST_CONTENTS, TRAILER, io};

/// What most of a bundle is made of is compressed already; more effort gains next to nothing.
const LEVEL: i32 = 3;
/// The compressor is fed pieces of this size, however they come: what it makes must depend on the bytes alone.
const PIECE: usize = 128 * 1024;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub size: u64,
    /// Of the file.
    pub sha256: String,
    /// SHA-256 of `bundle.json`, and so a name for all that is in the bundle.
    pub id: String,
}

/// A bundle that is being made.
pub struct Writer {
    tape: Tape<Even<zstd::Encoder<'static, Summed<NamedTempFile>>>>,
    target: PathBuf,
    id: String,
    members: std::vec::IntoIter<Member>,
    current: Option<(Member, Sha256)>,
}

impl Writer {
    /// Opens a file beside `target`.
    pub fn create(target: &Path, contents: &Contents) -> Result<Self, BundleError> {
        let refused = |(path, reason)| BundleError::Refused { path, reason };
        contents.check().map_err(refused)?;
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let writing = || format!("write {}", target.display());
        let file = tempfile::Builder::new()
            .prefix(".orch-bundle-")
            .tempfile_in(folder)
            .map_err(io(writing()))?;
        let bytes = contents.to_bytes();
        if bytes.len() as u64 > LONGEST_CONTENTS {
            return Err(refused((CONTENTS.to_owned(), "it is too long".to_owned())));
        }
        let id = hex::encode(Sha256::digest(&bytes));
        let open = || -> io::Result<_> {
            let mut encoder = zstd::Encoder::new(Summed::new(file), LEVEL)?;
            encoder.include_checksum(true)?;
            let mut tape = Tape::new(Even::new(encoder));
            let checksum = format!("{id}  {CONTENTS}\n");
            for (path, bytes) in [(CHECKSUM, checksum.as_bytes()), (CONTENTS, &bytes)] {
                tape.begin(path, bytes.len() as u64, false)?;
                tape.data(bytes)?;
                tape.end()?;
            }
            Ok(tape)
        };
        Ok(Self {
            tape: open().map_err(io(writing()))?,
            target: target.to_owned(),
            id,
            members: contents.members.clone().into_iter(),
            current: None,
        })
    }

    /// Goes on to the next member that was announced.
    pub fn begin(&mut self) -> Result<Option<Member>, BundleError> {
        let Some(member) = self.members.next() else {
            return Ok(None);
        };
        self.tape
            .begin(&member.path, member.size, member.executable)
            .map_err(io(format!("write {} into the bundle", member.path)))?;
        self.current = Some((member.clone(), Sha256::new()));
        Ok(Some(member))
    }

    /// Bytes of the member.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        let writing = format!("write {}", self.target.display());
        if let Some((member, hasher)) = &mut self.current {
            hasher.update(bytes);
            if bytes.len() as u64 > self.tape.open() {
                return Err(BundleError::Changed {
                    path: member.path.clone(),
                    reason: format!("it is longer than {} bytes", member.size),
                });
            }
        }
        self.tape.data(bytes).map_err(io(writing))
    }

    /// Ends the member, which must be what was announced.
    pub fn end(&mut self) -> Result<(), BundleError> {
        let Some((member, hasher)) = self.current.take() else {
            return Ok(());
        };
        let changed = |reason: String| BundleError::Changed {
            path: member.path.clone(),
            reason,
        };
        let found = hex::encode(hasher.finalize());
        if found != member.sha256 {
            return Err(changed(format!(
                "it has sha256 {found}, not {}",
                member.sha256
            )));
        }
        self.tape.end().map_err(|error| changed(error.to_string()))
    }

    /// The member's bytes from a file.
    pub fn file(&mut self, path: &Path) -> Result<(), BundleError> {
        let reading = || format!("read {}", path.display());
        let mut file = File::open(path).map_err(io(reading()))?;
        let mut buffer = vec![0; PIECE];
        loop {
            let read = file.read(&mut buffer).map_err(io(reading()))?;
            match buffer.get(..read) {
                Some(piece) if !piece.is_empty() => self.data(piece)?,
                _ => return self.end(),
            }
        }
    }

    /// Makes the bundle visible under its name. All members must have been written.
    pub fn finish(mut self) -> Result<Written, BundleError> {
        if let Some(member) = self.members.next() {
            return Err(BundleError::Refused {
                path: member.path,
                reason: "it was announced and not written".to_owned(),
            });
        }
        let close = |tape: Tape<Even<zstd::Encoder<'static, Summed<NamedTempFile>>>>| {
            let mut summed = tape.finish()?.finish()?.finish()?;
            let sum = summed.hasher.clone().finalize();
            summed.write_all(&[TRAILER.as_slice(), &sum].concat())?;
            let (size, sha256) = (summed.size, hex::encode(summed.hasher.finalize()));
            let file = summed.inner;
            // `tempfile` makes private files, and there is no secret in this one.
            file.as_file()
                .set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.as_file().sync_all()?;
            file.persist(&self.target).map_err(|error| error.error)?;
            let parent = self
                .target
                .parent()
                .filter(|path| !path.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok((size, sha256))
        };
        let (size, sha256) =
            close(self.tape).map_err(io(format!("write {}", self.target.display())))?;
        Ok(Written {
            size,
            sha256,
            id: self.id,
        })
    }
}

/// Passes on pieces of one size.
struct Even<W> {
    inner: W,
    pending: Vec<u8>,
}

impl<W: Write> Even<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            pending: Vec::with_capacity(PIECE),
        }
    }

    fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&self.pending)?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for Even<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.pending.len());
        self.pending
            .extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if self.pending.len() == PIECE {
            self.inner.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts and hashes what it passes on.
pub(super) struct Summed<W> {
    pub(super) inner: W,
    pub(super) size: u64,
    pub(super) hasher: Sha256,
}

impl<W> Summed<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            size: 0,
            hasher: Sha256::new(),
        }
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.size += written as u64;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
