//! Takes the time of building out of an image: no layer and no configuration says when it was made, so that equal builds are equal.
//!
//! What is later than [`SOURCE_DATE_EPOCH`] becomes that; what is earlier stays. Everything else in a layer keeps its bytes: its
//! records are copied, not read and written anew. The same for every builder, whose own switches differ or are missing.

use std::io::{self, Read, Write};

use jiff::Timestamp;
use serde_json::Value;

use crate::images::context::SOURCE_DATE_EPOCH;

/// Names what is done here. It must change whenever that does: what the cache keeps is kept under it.
pub(super) const RULES: &str = "times-2";

/// Unit of the tar format.
const BLOCK: usize = 512;
/// Longest extended header that is read into memory, in bytes.
const EXTENDED_LIMIT: u64 = 1024 * 1024;
/// Fields of a header: (offset, length).
const SIZE: (usize, usize) = (124, 12);
const MODIFIED: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
/// Where the header of a GNU sparse file says that its list of pieces goes on in a block of its own, and where such a block does.
const MORE_HOLES: usize = 482;
const STILL_MORE_HOLES: usize = 504;
/// Extended records that only say when.
const MOMENTS: [&[u8]; 4] = [b"mtime", b"atime", b"ctime", b"LIBARCHIVE.creationtime"];

/// Copies a layer's archive.
pub(super) fn copy(source: &mut impl Read, target: &mut impl Write) -> io::Result<()> {
    let mut header = [0; BLOCK];
    // The size of the next file, where its header has no room for it.
    let mut size = None;
    loop {
        if !read_block(source, &mut header)? {
            return Ok(());
        }
        if header.iter().all(|byte| *byte == 0) {
            target.write_all(&header)?;
            io::copy(source, target)?;
            return Ok(());
        }
        check(&header)?;
        let own_size = number(field(&header, SIZE))?;
        match header[KIND] {
            b'x' => {
                if own_size > EXTENDED_LIMIT {
                    return Err(bad("an extended header is too long"));
                }
                let mut records = Vec::new();
                source.take(own_size).read_to_end(&mut records)?;
                io::copy(&mut source.take(padding(own_size)), &mut io::sink())?;
                let kept = records_without_moments(&records, &mut size)?;
                if kept.is_empty() {
                    continue;
                }
                clamp(&mut header)?;
                set_octal(&mut header, SIZE, kept.len() as u64);
                seal(&mut header);
                target.write_all(&header)?;
                target.write_all(&kept)?;
                let zeros = [0; BLOCK];
                let rest = padding(kept.len() as u64) as usize;
                target.write_all(zeros.get(..rest).unwrap_or_default())?;
            }
            kind => {
                if clamp(&mut header)? {
                    seal(&mut header);
                }
                target.write_all(&header)?;
                if kind == b'S' && is_set(&header, MORE_HOLES) {
                    copy_holes(source, target)?;
                }
                // Links, devices and folders have none, whatever the field says.
                let content = match kind {
                    b'1'..=b'6' => 0,
                    b'g' | b'L' | b'K' => own_size,
                    _ => size.take().unwrap_or(own_size),
                };
                if matches!(kind, b'1'..=b'6') {
                    size = None;
                }
                let length = content + padding(content);
                if io::copy(&mut source.take(length), target)? != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
    }
}

/// Copies the blocks that lie between the header and the content of a GNU sparse file; its size does not count them.
fn copy_holes(source: &mut impl Read, target: &mut impl Write) -> io::Result<()> {
    let mut block = [0; BLOCK];
    loop {
        source.read_exact(&mut block)?;
        target.write_all(&block)?;
        if !is_set(&block, STILL_MORE_HOLES) {
            return Ok(());
        }
    }
}

/// A configuration with the layers' new diffIDs and without times and marks of the machine that made it.
pub(super) fn configuration(bytes: &[u8], diff_ids: &[String]) -> serde_json::Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(bytes)?;
    if let Some(config) = config.as_object_mut() {
        // What the classic builder says of the container it worked in, and podman of the image below.
        for mark in ["container", "container_config", "parent"] {
            config.shift_remove(mark);
        }
    }
    if let Some(inner) = config.get_mut("config").and_then(Value::as_object_mut) {
        inner.shift_remove("Image");
        inner.shift_remove("Hostname");
    }
    if let Some(list) = config.pointer_mut("/rootfs/diff_ids") {
        *list = serde_json::json!(diff_ids);
    }
    let history = config.get_mut("history").and_then(Value::as_array_mut);
    for step in history.into_iter().flatten() {
        if let Some(created) = step.get_mut("created") {
            clamp_moment(created);
        }
        let comment = step.get("comment").and_then(Value::as_str);
        if comment.is_some_and(names_an_intermediate_image)
            && let Some(step) = step.as_object_mut()
        {
            step.shift_remove("comment");
        }
    }
    if let Some(created) = config.get_mut("created") {
        clamp_moment(created);
    }
    serde_json::to_vec(&config)
}

/// Podman's `FROM <ID>`: of an image that was there while it built, and nowhere else.
fn names_an_intermediate_image(comment: &str) -> bool {
    let id = comment.trim_end().strip_prefix("FROM ");
    id.is_some_and(|id| id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn clamp_moment(moment: &mut Value) {
    let epoch = Timestamp::from_second(SOURCE_DATE_EPOCH as i64).unwrap_or_default();
    let parsed: Option<Timestamp> = moment.as_str().and_then(|text| text.parse().ok());
    if parsed.is_some_and(|parsed| parsed > epoch) {
        *moment = Value::String(epoch.to_string());
    }
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// False at the end of the source.
fn read_block(source: &mut impl Read, block: &mut [u8; BLOCK]) -> io::Result<bool> {
    match super::export::read_up_to(source, block)? {
        0 => Ok(false),
        BLOCK => Ok(true),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn field(header: &[u8; BLOCK], (start, length): (usize, usize)) -> &[u8] {
    header.get(start..start + length).unwrap_or_default()
}

fn is_set(block: &[u8; BLOCK], at: usize) -> bool {
    block.get(at).is_some_and(|byte| *byte != 0)
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// An octal number, or a binary one as GNU writes what octal has no room for.
fn number(field: &[u8]) -> io::Result<u64> {
    if let Some((first, rest)) = field.split_first().filter(|(first, _)| *first & 0x80 != 0) {
        // Negative numbers are times before 1970.
        if first & 0x40 != 0 {
            return Ok(0);
        }
        return rest
            .iter()
            .try_fold(u64::from(first & 0x3f), |value, byte| {
                Some(value.checked_mul(256)? + u64::from(*byte))
            })
            .ok_or_else(|| bad("a number in a header is too large"));
    }
    let text = std::str::from_utf8(field).map_err(|_| bad("a header is no tar header"))?;
    let digits = text.trim_matches(['\0', ' ']);
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| bad("a header is no tar header"))
}

fn set_octal(header: &mut [u8; BLOCK], (start, length): (usize, usize), value: u64) {
    let text = format!("{value:0width$o}\0", width = length - 1);
    if let Some(field) = header.get_mut(start..start + length) {
        field.copy_from_slice(text.as_bytes());
    }
}

fn sum(header: &[u8; BLOCK]) -> u64 {
    let (start, length) = CHECKSUM;
    let counted = header.iter().enumerate().map(|(at, byte)| {
        let own = (start..start + length).contains(&at);
        u64::from(if own { b' ' } else { *byte })
    });
    counted.sum()
}

fn check(header: &[u8; BLOCK]) -> io::Result<()> {
    if number(field(header, CHECKSUM))? == sum(header) {
        return Ok(());
    }
    Err(bad("a header's checksum is wrong"))
}

fn seal(header: &mut [u8; BLOCK]) {
    let text = format!("{:06o}\0 ", sum(header));
    let (start, length) = CHECKSUM;
    if let Some(field) = header.get_mut(start..start + length) {
        field.copy_from_slice(text.as_bytes());
    }
}

/// True when the time had to be changed.
fn clamp(header: &mut [u8; BLOCK]) -> io::Result<bool> {
    let later = number(field(header, MODIFIED))? > SOURCE_DATE_EPOCH;
    if later {
        set_octal(header, MODIFIED, SOURCE_DATE_EPOCH);
    }
    Ok(later)
}

/// The `<length> <key>=<value>\n` records that say something else than a time. A file's size among them goes to `size`.
fn records_without_moments(mut records: &[u8], size: &mut Option<u64>) -> io::Result<Vec<u8>> {
    let wrong = || bad("an extended header is damaged");
    let mut kept = Vec::new();
    while !records.is_empty() {
        let digits = records
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(wrong)?;
        let length: usize = records
            .get(..digits)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(wrong)?;
        let (record, rest) = records.split_at_checked(length).ok_or_else(wrong)?;
        let pair = record.get(digits + 1..).ok_or_else(wrong)?;
        let equals = pair
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(wrong)?;
        let (key, value) = pair.split_at(equals);
        if key == b"size" {
            let text = std::str::from_utf8(value).map_err(|_| wrong())?;
            let text = text.trim_matches(['=', '\n']);
            *size = Some(text.parse().map_err(|_| wrong())?);
        }
        if !MOMENTS.contains(&key) {
            kept.extend_from_slice(record);
        }
        records = rest;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(time: u64, name: &str, content: &[u8], extended: &[(&str, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let pairs = extended.iter().map(|(key, value)| (*key, value.as_bytes()));
        archive.append_pax_extensions(pairs).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_mtime(time);
        archive.append_data(&mut header, name, content).unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        link.set_mtime(time);
        archive
            .append_link(&mut link, "link", "l".repeat(150))
            .unwrap();
        archive.into_inner().unwrap()
    }

    fn copied(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut result = Vec::new();
        copy(&mut &*bytes, &mut result).map(|()| result)
    }

    #[test]
    fn what_differs_in_time_alone_becomes_equal() {
        let long = "n".repeat(90);
        let extended = |time: &'static str| [("mtime", time), ("SCHILY.xattr.user.a", "b")];
        let one = archive(1_700_000_000, &long, b"content", &extended("1700000000.5"));
        let two = archive(1_800_000_000, &long, b"content", &extended("1800000000.25"));
        assert_ne!(one, two);
        let (one, two) = (copied(&one).unwrap(), copied(&two).unwrap());
        assert_eq!(one, two);
        let mut read = tar::Archive::new(one.as_slice());
        let mut entries = read.entries().unwrap();
        let mut file = entries.next().unwrap().unwrap();
        assert_eq!(file.header().mtime().unwrap(), SOURCE_DATE_EPOCH);
        assert_eq!(file.header().mode().unwrap(), 0o4755);
        let extensions = file.pax_extensions().unwrap().unwrap();
        let keys: Vec<String> = extensions
            .map(|pair| pair.unwrap().key().unwrap().to_owned())
            .collect();
        assert_eq!(keys, ["SCHILY.xattr.user.a"]);
        let link = entries.next().unwrap().unwrap();
        assert_eq!(link.link_name().unwrap().unwrap().as_os_str().len(), 150);
    }

    #[test]
    fn what_is_old_keeps_every_byte() {
        let bytes = archive(1_000_000_000, "file", &[1; 1500], &[]);
        assert_eq!(copied(&bytes).unwrap(), bytes);
        let timed = archive(1_000_000_000, "file", b"", &[("mtime", "1000000000.5")]);
        assert_eq!(
            copied(&timed).unwrap(),
            archive(1_000_000_000, "file", b"", &[])
        );
    }

    #[test]
    fn a_sparse_file_keeps_its_list_of_pieces() {
        let sparse = |time: u64| {
            let mut header = tar::Header::new_gnu();
            header.set_path("sparse").unwrap();
            header.set_entry_type(tar::EntryType::GNUSparse);
            header.set_size(700);
            header.set_mtime(time);
            header.as_mut_bytes()[MORE_HOLES] = 1;
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            let mut pieces = [7; BLOCK];
            pieces[STILL_MORE_HOLES] = 1;
            bytes.extend_from_slice(&pieces);
            pieces[STILL_MORE_HOLES] = 0;
            bytes.extend_from_slice(&pieces);
            bytes.extend_from_slice(&[8; 2 * BLOCK]);
            bytes.extend(archive(time, "file", b"content", &[]));
            bytes
        };
        let old = sparse(1_000_000_000);
        assert!(copied(&old).unwrap() == old);
        let (one, two) = (sparse(1_700_000_000), sparse(1_800_000_000));
        assert!(copied(&one).unwrap() == copied(&two).unwrap());
        assert!(copied(&one[..2 * BLOCK]).is_err());
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        let good = archive(1, "file", &[1; 1500], &[]);
        for bad in [&good[..600], &good[..100], &[7; 512], &good[1..]] {
            assert!(copied(bad).is_err());
        }
    }

    #[test]
    fn a_configuration_loses_its_times_and_nothing_else() {
        let text = r#"{"architecture":"amd64","created":"2026-01-02T03:04:05.6Z","container":"abc","config":{"Hostname":"x",
            "Env":["A=b"]},"history":[{"created":"2019-01-01T00:00:00Z","comment":"FROM localhost/base:1"},{"created":"2026-01-02T03:04:05Z","created_by":"RUN",
            "comment":"FROM bd33b37fc4d0"}],"parent":"sha256:x","rootfs":{"type":"layers","diff_ids":["sha256:a"]}}"#;
        let bytes = configuration(text.as_bytes(), &["sha256:b".to_owned()]).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            r#"{"architecture":"amd64","created":"2020-01-01T00:00:00Z","config":{"Env":["A=b"]},"history":[{"created":"2019-01-01T00:00:00Z","comment":"FROM localhost/base:1"},{"created":"2020-01-01T00:00:00Z","created_by":"RUN"}],"rootfs":{"type":"layers","diff_ids":["sha256:b"]}}"#
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0_usize..2048, byte: u8) {
            let mut bytes = archive(1_700_000_000, "file", b"content", &[("size", "7")]);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = copied(&bytes);
        }
    }
}
