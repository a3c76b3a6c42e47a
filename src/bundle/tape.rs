//! A tar archive whose bytes depend on names, sizes, modes and contents alone: no times, no owners, no extensions.

use std::io::{self, Write};

/// What a tar archive is counted in.
pub(super) const BLOCK: u64 = 512;

/// Writes members one after the other.
pub(super) struct Tape<W> {
    inner: W,
    /// Bytes that are still to come of the member.
    open: u64,
    padding: usize,
}

impl<W: Write> Tape<W> {
    pub(super) fn new(inner: W) -> Self {
        Self {
            inner,
            open: 0,
            padding: 0,
        }
    }

    /// Announces a member; exactly `size` bytes must follow.
    pub(super) fn begin(&mut self, path: &str, size: u64, executable: bool) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_size(size);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(if executable { 0o755 } else { 0o644 });
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.open = size;
        self.padding = padding(size);
        self.inner.write_all(header.as_bytes())
    }

    /// How many bytes of the member are still to come.
    pub(super) const fn open(&self) -> u64 {
        self.open
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.open.checked_sub(bytes.len() as u64);
        self.open = left.ok_or_else(|| io::Error::other("more bytes than were announced"))?;
        self.inner.write_all(bytes)
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.open > 0 {
            return Err(io::Error::other(format!("{} bytes too few", self.open)));
        }
        self.inner.write_all(&[0; BLOCK as usize][..self.padding])
    }

    /// Writes the mark of the archive's end.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * BLOCK as usize])?;
        Ok(self.inner)
    }
}

/// Zeros after a member's bytes.
pub(super) fn padding(size: u64) -> usize {
    ((BLOCK - size % BLOCK) % BLOCK) as usize
}
