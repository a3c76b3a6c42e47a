//! Sections of executables (ELF, of either width and byte order), found by name. Nothing else of a file is read.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

/// How an ELF file starts.
pub const MAGIC: [u8; 4] = *b"\x7fELF";
/// The longest list of names of sections that is read, in bytes. A compiler that keeps every function apart writes megabytes.
const NAMES_LIMIT: u64 = 16 * 1024 * 1024;

/// Where a header has its fields: offset and length.
struct Layout {
    /// Lengths of the header and of a section's entry.
    header: usize,
    entry: usize,
    sections: (usize, usize),
    entry_size: (usize, usize),
    count: (usize, usize),
    names: (usize, usize),
    /// In a section's entry.
    offset: (usize, usize),
    size: (usize, usize),
}

const NARROW: Layout = Layout {
    header: 0x34,
    entry: 0x28,
    sections: (0x20, 4),
    entry_size: (0x2e, 2),
    count: (0x30, 2),
    names: (0x32, 2),
    offset: (0x10, 4),
    size: (0x14, 4),
};
const WIDE: Layout = Layout {
    header: 0x40,
    entry: 0x40,
    sections: (0x28, 8),
    entry_size: (0x3a, 2),
    count: (0x3c, 2),
    names: (0x3e, 2),
    offset: (0x18, 8),
    size: (0x20, 8),
};

/// The contents of the first section of each name; nothing where there is none, where it lies beyond the file's end, or where
/// this is no whole ELF file. A section that has more than `limit` bytes is an error.
pub fn sections<const N: usize>(
    file: &mut (impl Read + Seek),
    wanted: [&str; N],
    limit: u64,
) -> io::Result<[Option<Vec<u8>>; N]> {
    let mut found = [const { None }; N];
    let Some(headers) = Headers::read(file)? else {
        return Ok(found);
    };
    // Remembered apart from what was found: a file may have as many sections of a name that lie beyond its end as it wants.
    let mut seen = [false; N];
    for entry in headers.entries() {
        let wanted = wanted.iter().zip(&mut seen).zip(&mut found);
        for ((name, seen), content) in wanted {
            if *seen || !headers.is_named(entry, name) {
                continue;
            }
            *seen = true;
            let Some((offset, size)) = headers.place(entry) else {
                continue;
            };
            if size > limit {
                return Err(io::Error::other(format!(
                    "its section {name} has more than {limit} bytes"
                )));
            }
            *content = read(file, offset, size)?;
        }
    }
    Ok(found)
}

/// A file's list of sections, and their names.
struct Headers {
    layout: &'static Layout,
    is_big_endian: bool,
    table: Vec<u8>,
    names: Vec<u8>,
}

impl Headers {
    fn read(file: &mut (impl Read + Seek)) -> io::Result<Option<Self>> {
        let Some(start) = read(file, 0, 6)?.filter(|start| start.starts_with(&MAGIC)) else {
            return Ok(None);
        };
        let layout = match start.get(4) {
            Some(1) => &NARROW,
            Some(2) => &WIDE,
            _ => return Ok(None),
        };
        let is_big_endian = start.get(5) == Some(&2);
        let Some(header) = read(file, 0, layout.header as u64)? else {
            return Ok(None);
        };
        let field = |place| number(&header, place, is_big_endian).unwrap_or_default();
        let entry = layout.entry as u64;
        if field(layout.entry_size) != entry {
            return Ok(None);
        }
        // The count has 16 bits.
        let length = field(layout.count) * entry;
        let Some(table) = read(file, field(layout.sections), length)? else {
            return Ok(None);
        };
        let mut headers = Self {
            layout,
            is_big_endian,
            table,
            names: Vec::new(),
        };
        let index = usize::try_from(field(layout.names)).unwrap_or(usize::MAX);
        let place = headers
            .entries()
            .nth(index)
            .and_then(|entry| headers.place(entry));
        let Some((offset, size)) = place.filter(|(_, size)| *size <= NAMES_LIMIT) else {
            return Ok(None);
        };
        headers.names = read(file, offset, size)?.unwrap_or_default();
        Ok(Some(headers))
    }

    fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.table.chunks_exact(self.layout.entry)
    }

    /// Offset and size of a section.
    fn place(&self, entry: &[u8]) -> Option<(u64, u64)> {
        let field = |place| number(entry, place, self.is_big_endian);
        Some((field(self.layout.offset)?, field(self.layout.size)?))
    }

    /// Is that the name of a section? No more of the names is looked at than that takes: they may be one name of many megabytes
    /// that every section has.
    fn is_named(&self, entry: &[u8], wanted: &str) -> bool {
        let start = number(entry, (0, 4), self.is_big_endian).and_then(|at| at.try_into().ok());
        let name = start.and_then(|start: usize| self.names.get(start..));
        name.and_then(|name| name.strip_prefix(wanted.as_bytes()))
            .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == 0))
    }
}

fn number(bytes: &[u8], (at, length): (usize, usize), is_big_endian: bool) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(length)?)?;
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    Some(if is_big_endian {
        bytes.iter().fold(0, add)
    } else {
        bytes.iter().rev().fold(0, add)
    })
}

/// A part of the file, if it has that part.
fn read(file: &mut (impl Read + Seek), offset: u64, size: u64) -> io::Result<Option<Vec<u8>>> {
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| {
            let mut bytes = Vec::new();
            file.take(size).read_to_end(&mut bytes)?;
            Ok((bytes.len() as u64 == size).then_some(bytes))
        })
        .or_else(|error| match error.kind() {
            ErrorKind::InvalidInput => Ok(None),
            _ => Err(error),
        })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::Cursor;

    /// A file with these sections, after a section without a name as every file has it.
    fn file(layout: &'static Layout, is_big_endian: bool, sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0];
        let mut content = Vec::new();
        let mut table = Vec::new();
        let put = |bytes: &mut [u8], (at, length): (usize, usize), value: usize| {
            let value = (value as u64).to_be_bytes();
            let field = &mut bytes[at..at + length];
            field.copy_from_slice(&value[8 - length..]);
            if !is_big_endian {
                field.reverse();
            }
        };
        let mut add = |name: &str, bytes: &[u8], names: &mut Vec<u8>| {
            let mut entry = vec![0; layout.entry];
            put(&mut entry, (0, 4), names.len());
            names.extend([name.as_bytes(), &[0]].concat());
            put(&mut entry, layout.offset, layout.header + content.len());
            put(&mut entry, layout.size, bytes.len());
            content.extend(bytes);
            table.extend(entry);
        };
        add("", b"", &mut names);
        for (name, bytes) in sections {
            add(name, bytes, &mut names);
        }
        let mut all = names.clone();
        all.extend(b".names\0");
        add(".names", &all, &mut names);
        let mut header = vec![0; layout.header];
        header[..4].copy_from_slice(&MAGIC);
        header[4] = if layout.sections.1 == 8 { 2 } else { 1 };
        header[5] = if is_big_endian { 2 } else { 1 };
        put(&mut header, layout.sections, layout.header + content.len());
        put(&mut header, layout.entry_size, layout.entry);
        put(&mut header, layout.count, sections.len() + 2);
        put(&mut header, layout.names, sections.len() + 1);
        [header, content, table].concat()
    }

    /// A program with these sections.
    pub fn program(sections: &[(&str, &[u8])]) -> Vec<u8> {
        file(&WIDE, false, sections)
    }

    #[test]
    fn sections_are_found_in_files_of_either_width_and_byte_order() {
        for layout in [&NARROW, &WIDE] {
            for is_big_endian in [false, true] {
                let sections = [
                    (".text", b"code".as_slice()),
                    (".a", b"one"),
                    (".a", b"two"),
                ];
                let bytes = file(layout, is_big_endian, &sections);
                let found = super::sections(&mut Cursor::new(&bytes), [".a", ".b"], 3).unwrap();
                assert_eq!(found, [Some(b"one".to_vec()), None]);
                let error = super::sections(&mut Cursor::new(&bytes), [".text"], 3).unwrap_err();
                assert!(error.to_string().contains("more than 3 bytes"), "{error}");
            }
        }
    }

    #[test]
    fn the_program_that_runs_this_has_code() {
        let mut own = std::fs::File::open("/proc/self/exe").unwrap();
        let [code, none] = sections(&mut own, [".text", ".nonsense"], u64::MAX).unwrap();
        assert!(!code.unwrap().is_empty());
        assert_eq!(none, None);
    }

    /// Counts what is read of a file.
    struct Counting<R> {
        inner: R,
        bytes: usize,
    }

    impl<R: Read> Read for Counting<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.inner.read(buffer)?;
            self.bytes += count;
            Ok(count)
        }
    }

    impl<R: Seek> Seek for Counting<R> {
        fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
            self.inner.seek(position)
        }
    }

    #[test]
    fn a_section_beyond_the_end_is_looked_for_once() {
        let sections = vec![(".a", b"".as_slice()); 1000];
        let mut bytes = file(&WIDE, false, &sections);
        // Every one of them is as long as the file and starts in it.
        let table = bytes.len() - 1002 * WIDE.entry;
        for entry in 1..=1000 {
            let at = table + entry * WIDE.entry + WIDE.size.0;
            let size = bytes.len() as u64;
            bytes[at..at + 8].copy_from_slice(&size.to_le_bytes());
        }
        let mut counting = Counting {
            inner: Cursor::new(&bytes),
            bytes: 0,
        };
        let found = super::sections(&mut counting, [".a"], u64::MAX).unwrap();
        assert_eq!(found, [None]);
        // The list, the names, and one section.
        let read = counting.bytes;
        assert!(read < 4 * bytes.len(), "{read} of {}", bytes.len());
    }

    #[test]
    fn a_name_is_compared_and_not_searched_for_its_end() {
        // About as many sections as there may be, all of one name that is very long.
        let name = "x".repeat(4 * 1024 * 1024);
        let mut bytes = file(&WIDE, false, &[(&name, b"")]);
        let of_names = bytes.split_off(bytes.len() - WIDE.entry);
        let entry = bytes.split_off(bytes.len() - WIDE.entry);
        let more = 60_000_u16;
        bytes.extend(entry.repeat(usize::from(more)));
        bytes.extend(of_names);
        bytes[WIDE.count.0..WIDE.count.0 + 2].copy_from_slice(&(more + 2).to_le_bytes());
        bytes[WIDE.names.0..WIDE.names.0 + 2].copy_from_slice(&(more + 1).to_le_bytes());
        // To search each for its end is to read a quarter of a terabyte: that would not come to an end here.
        let found = sections(&mut Cursor::new(&bytes), [".a", "xx"], 3).unwrap();
        assert_eq!(found, [None, None]);
    }

    #[test]
    fn what_is_cut_off_or_wrong_anywhere_is_no_section() {
        let whole = file(&WIDE, false, &[(".a", b"one")]);
        for length in 0..whole.len() {
            let found = sections(&mut Cursor::new(&whole[..length]), [".a"], 3).unwrap();
            assert_eq!(found, [None], "{length}");
        }
        for at in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] = 0xff;
            // Whatever comes of it, it comes.
            let _ = sections(&mut Cursor::new(&wrong), [".a"], 3);
        }
    }
}
