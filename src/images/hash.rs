//! Names made from contents: SHA-256 over records that cannot be confused with one another.
//!
//! Every field is preceded by its length and every record by its number of fields, so no two different inputs give the same
//! byte stream. A label and a version open the stream: a change of format is a change of every name.

use std::fmt;

use sha2::{Digest, Sha256};

/// A SHA-256 sum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// The sum of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl From<[u8; 32]> for Sha256Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Sha256Digest {
    /// The OCI form, `sha256:<64 hex>`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// An append-only list of records under one hash.
#[derive(Debug, Clone)]
pub struct Records {
    hasher: Sha256,
    /// Fields are short; the hasher likes long pieces.
    pending: Vec<u8>,
}

/// How many bytes are collected before they are hashed.
const PENDING: usize = 16 * 1024;

impl Records {
    /// Opens a list of the given kind and format version.
    pub fn new(label: &str, version: u32) -> Self {
        let mut records = Self {
            hasher: Sha256::new(),
            pending: Vec::with_capacity(PENDING),
        };
        records.fields(&[label.as_bytes(), version.to_string().as_bytes()]);
        records
    }

    /// Appends one record.
    pub fn fields(&mut self, fields: &[&[u8]]) {
        self.append(&(fields.len() as u64).to_le_bytes());
        for field in fields {
            self.append(&(field.len() as u64).to_le_bytes());
            self.append(field);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.pending.len() + bytes.len() > PENDING {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
        if bytes.len() > PENDING {
            self.hasher.update(bytes);
        } else {
            self.pending.extend_from_slice(bytes);
        }
    }

    /// The hash of everything appended.
    pub fn finish(mut self) -> Sha256Digest {
        self.hasher.update(&self.pending);
        Sha256Digest(self.hasher.finalize().into())
    }
}

/// The tag that names an image by its input hash: `in-` and the first 12 hexadecimal digits.
pub fn tag(input: &Sha256Digest) -> String {
    let hex = input.hex();
    format!("in-{}", hex.get(..12).unwrap_or(&hex))
}

/// Is it a digest in the OCI form, `sha256:<64 hex>` in lower case?
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && are_hex_digits(hex))
}

/// Does a tag look like one that [`tag`] makes?
pub fn is_input_tag(tag: &str) -> bool {
    let digits = tag.strip_prefix("in-").unwrap_or_default();
    digits.len() == 12 && are_hex_digits(digits)
}

fn are_hex_digits(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(records: &[&[&[u8]]]) -> Sha256Digest {
        let mut list = Records::new("test", 1);
        for record in records {
            list.fields(record);
        }
        list.finish()
    }

    #[test]
    fn moving_a_byte_across_a_border_changes_the_hash() {
        assert_ne!(digest(&[&[b"ab", b"c"]]), digest(&[&[b"a", b"bc"]]));
        assert_ne!(digest(&[&[b"a", b"b"]]), digest(&[&[b"a"], &[b"b"]]));
        assert_ne!(digest(&[&[b"a"]]), digest(&[&[b"a"], &[]]));
    }

    #[test]
    fn a_digest_is_the_sum_of_something() {
        let digest = Sha256Digest::of(b"").to_string();
        assert!(is_digest(&digest));
        let traversal = format!("sha256:{}", "../".repeat(22).get(..64).unwrap());
        let upper = format!("sha256:{}", "A".repeat(64));
        for text in [
            "",
            "latest",
            &digest[..70],
            &digest[7..],
            &traversal,
            &upper,
        ] {
            assert!(!is_digest(text), "{text}");
        }
    }

    #[test]
    fn a_tag_is_twelve_digits_of_the_sum() {
        assert_eq!(tag(&Sha256Digest::of(b"")), "in-e3b0c44298fc");
        assert!(is_input_tag("in-e3b0c44298fc"));
        assert!(!is_input_tag("e3b0c44298fc"));
    }
}
