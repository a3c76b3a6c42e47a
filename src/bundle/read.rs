//! Reads a bundle from its first byte to its last, and takes nothing that was not announced.
//!
//! `bundle.json` says what follows, so that each header has one form in which it may come and is compared with that byte for
//! byte: links, paths that lead elsewhere, members that come twice or were never announced have no way in. What a visitor is
//! given of a member counts only once [`Visitor::end`] is called: then its size and checksum were right.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::contents::{Contents, Member, SCHEMA, is_sha256};
use super::tape::{BLOCK, Tape, padding};
use super::{BundleError, CHECKSUM, CONTENTS, LONGEST_CONTENTS, TRAILER, TRAILER_LENGTH};

/// How each bundle begins: zstd's magic number, a frame with a checksum and without a dictionary, the writer's window.
const BEGINNING: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58];
const PIECE: usize = 128 * 1024;
/// Length of [`CHECKSUM`]: the sum, two spaces, the name, a line's end.
const CHECKSUM_LENGTH: u64 = 64 + 2 + CONTENTS.len() as u64 + 1;

/// What a bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    pub contents: Contents,
    /// SHA-256 of `bundle.json`.
    pub id: String,
}

/// Receives a bundle's members in their order.
pub trait Visitor {
    /// A member begins. What it is was announced, and no byte of it was looked at yet.
    fn begin(&mut self, member: &Member) -> Result<(), BundleError>;
    /// Some of its bytes.
    fn data(&mut self, bytes: &[u8]) -> Result<(), BundleError>;
    /// All of them came, and they were the right ones.
    fn end(&mut self) -> Result<(), BundleError>;
}

/// Reads what a bundle announces, and nothing of the rest.
pub fn peek(bundle: &Path) -> Result<Announced, BundleError> {
    let mut reading = Reading::new(bundle, open(bundle)?);
    reading.announced()
}

/// Reads a whole bundle.
pub fn read(bundle: &Path, visitor: &mut dyn Visitor) -> Result<Announced, BundleError> {
    let mut reading = Reading::new(bundle, open(bundle)?);
    let announced = reading.members(visitor)?;
    let mut rest = reading.stream.finish();
    let end = "the end";
    match rest.read(&mut [0]) {
        Ok(0) => {}
        Ok(_) => return Err(damaged(bundle, end, "something follows it")),
        Err(error) => return Err(failed(bundle, end, error)),
    }
    let Summed { inner, hasher } = rest.into_inner();
    let mut trailer = Vec::new();
    let mut file = inner.into_inner();
    file.read_to_end(&mut trailer)
        .map_err(|error| failed(bundle, end, error))?;
    let sum = hasher.finalize();
    if trailer != [TRAILER.as_slice(), &sum].concat() {
        let reason = format!(
            "its last 32 bytes are not the sha256 of all before ({})",
            hex::encode(sum)
        );
        return Err(damaged(bundle, end, reason));
    }
    Ok(announced)
}

/// Reads the archive inside a bundle: the same as [`read`] without the compression.
pub fn read_archive(
    bundle: &Path,
    archive: impl Read,
    visitor: &mut dyn Visitor,
) -> Result<Announced, BundleError> {
    Reading::new(bundle, archive).members(visitor)
}

type Decoder = zstd::Decoder<'static, BufReader<Summed<io::Take<File>>>>;

/// Hashes what is read through it.
struct Summed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

fn open(bundle: &Path) -> Result<Decoder, BundleError> {
    let opening = |source| BundleError::Io {
        operation: format!("read {}", bundle.display()),
        source,
    };
    let mut file = File::open(bundle).map_err(opening)?;
    let mut beginning = [0; BEGINNING.len()];
    let is_bundle = match file.read_exact(&mut beginning) {
        Ok(()) => beginning == BEGINNING,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(opening(error)),
    };
    if !is_bundle {
        return Err(damaged(bundle, "the beginning", "this is no bundle"));
    }
    io::Seek::rewind(&mut file).map_err(opening)?;
    let length = file.metadata().map_err(opening)?.len();
    let summed = Summed {
        inner: file.take(length.saturating_sub(TRAILER_LENGTH)),
        hasher: Sha256::new(),
    };
    let decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(PIECE, summed));
    Ok(decoder.map_err(opening)?.single_frame())
}

fn damaged(bundle: &Path, member: &str, reason: impl Into<String>) -> BundleError {
    BundleError::Damaged {
        bundle: bundle.to_owned(),
        member: member.to_owned(),
        reason: reason.into(),
    }
}

/// What the operating system cannot read is no damage; what the decompressor cannot, is.
fn failed(bundle: &Path, member: &str, error: io::Error) -> BundleError {
    if error.raw_os_error().is_some() {
        return BundleError::Io {
            operation: format!("read {} ({member})", bundle.display()),
            source: error,
        };
    }
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the file ends in the middle of it".to_owned(),
        _ => format!("it cannot be decompressed ({error})"),
    };
    damaged(bundle, member, reason)
}

struct Reading<'a, R> {
    bundle: &'a Path,
    stream: R,
}

impl<'a, R: Read> Reading<'a, R> {
    fn new(bundle: &'a Path, stream: R) -> Self {
        Self { bundle, stream }
    }

    fn damaged(&self, member: &str, reason: impl Into<String>) -> BundleError {
        damaged(self.bundle, member, reason)
    }

    fn exactly(&mut self, member: &str, bytes: &mut [u8]) -> Result<(), BundleError> {
        let read = self.stream.read_exact(bytes);
        read.map_err(|error| failed(self.bundle, member, error))
    }

    fn zeros(&mut self, member: &str, count: usize) -> Result<(), BundleError> {
        let mut block = [0; 2 * BLOCK as usize];
        let block = block.get_mut(..count).unwrap_or_default();
        self.exactly(member, block)?;
        if block.iter().any(|byte| *byte != 0) {
            return Err(self.damaged(member, "something follows it that should be zeros"));
        }
        Ok(())
    }

    fn header(&mut self, member: &str) -> Result<tar::Header, BundleError> {
        let mut header = tar::Header::new_ustar();
        self.exactly(member, header.as_mut_bytes())?;
        Ok(header)
    }

    /// Compares a header with the only form that it may have.
    fn same(
        &self,
        found: &tar::Header,
        path: &str,
        size: u64,
        executable: bool,
    ) -> Result<(), BundleError> {
        let mut expected = Vec::with_capacity(BLOCK as usize);
        let made = Tape::new(&mut expected).begin(path, size, executable);
        if made.is_ok() && expected == found.as_bytes() {
            return Ok(());
        }
        let name = String::from_utf8_lossy(&found.path_bytes()).into_owned();
        let kind = found.entry_type();
        Err(self.damaged(
            path,
            format!(
                "it was announced here, and there is {name:?} of type {kind:?} with another header"
            ),
        ))
    }

    /// A small member that only this reader looks at.
    fn small(&mut self, path: &str, longest: u64) -> Result<Vec<u8>, BundleError> {
        let header = self.header(path)?;
        let size = header.size().ok().filter(|size| *size <= longest);
        let Some(size) = size else {
            return Err(self.damaged(path, "it is not as long as it may be"));
        };
        self.same(&header, path, size, false)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.exactly(path, &mut bytes)?;
        self.zeros(path, padding(size))?;
        Ok(bytes)
    }

    fn announced(&mut self) -> Result<Announced, BundleError> {
        let checksum = self.small(CHECKSUM, CHECKSUM_LENGTH)?;
        let bytes = self.small(CONTENTS, LONGEST_CONTENTS)?;
        let id = hex::encode(Sha256::digest(&bytes));
        if checksum != format!("{id}  {CONTENTS}\n").as_bytes() {
            let expected = String::from_utf8_lossy(&checksum);
            let expected = expected.get(..64).filter(|sum| is_sha256(sum));
            let expected = expected.unwrap_or("something else").to_owned();
            return Err(self.damaged(
                CONTENTS,
                format!("it has sha256 {id}, {CHECKSUM} says {expected}"),
            ));
        }
        // The rest of the list may be another one in another format.
        let format = serde_json::from_slice::<serde_json::Value>(&bytes);
        let format = format.ok().and_then(|value| value.get("schema")?.as_u64());
        if let Some(found) = format.filter(|found| *found != SCHEMA) {
            return Err(BundleError::Format {
                bundle: self.bundle.to_owned(),
                found,
            });
        }
        let contents: Contents = serde_json::from_slice(&bytes)
            .map_err(|error| self.damaged(CONTENTS, error.to_string()))?;
        // What is unpacked is written anew, under the same checksum.
        if contents.to_bytes() != bytes {
            return Err(self.damaged(CONTENTS, "it is not written as orch writes it"));
        }
        contents
            .check()
            .map_err(|(member, reason)| self.damaged(CONTENTS, format!("{member}: {reason}")))?;
        Ok(Announced { contents, id })
    }

    fn members(&mut self, visitor: &mut dyn Visitor) -> Result<Announced, BundleError> {
        let announced = self.announced()?;
        let mut buffer = vec![0; PIECE];
        for member in &announced.contents.members {
            let header = self.header(&member.path)?;
            self.same(&header, &member.path, member.size, member.executable)?;
            visitor.begin(member)?;
            let mut hasher = Sha256::new();
            let mut left = member.size;
            while left > 0 {
                let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let piece = buffer.get_mut(..length).unwrap_or_default();
                self.exactly(&member.path, piece)?;
                hasher.update(&*piece);
                visitor.data(piece)?;
                left -= length as u64;
            }
            let found = hex::encode(hasher.finalize());
            if found != member.sha256 {
                return Err(self.damaged(
                    &member.path,
                    format!("it has sha256 {found}, {CONTENTS} says {}", member.sha256),
                ));
            }
            self.zeros(&member.path, padding(member.size))?;
            visitor.end()?;
        }
        self.zeros("the end", 2 * BLOCK as usize)?;
        // Also what closes the frame is read and held against its checksum.
        match self.stream.read(&mut [0]) {
            Ok(0) => Ok(announced),
            Ok(_) => Err(self.damaged("the end", "something follows it")),
            Err(error) => Err(failed(self.bundle, "the end", error)),
        }
    }
}
