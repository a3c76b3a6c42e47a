//! OpenSSH's lists of known hosts, read only: which keys they have for a host, and what they say of one.
//!
//! Boundary: text and names; no network, no files. Lines that nobody can read are no entries, as in OpenSSH.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use russh::keys::PublicKey;
use sha1::Sha1;

use super::shell;

/// What a line says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marker {
    Plain,
    Revoked,
    CertificateAuthority,
}

/// A line that is about the host in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) marker: Marker,
    pub(super) key: PublicKey,
    pub(super) place: Place,
}

/// Where a line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    file: Arc<PathBuf>,
    line: usize,
}

impl Place {
    /// The command that removes a host from this list.
    pub(super) fn removal(&self, name: &str) -> String {
        let file = self.file.to_string_lossy();
        shell::words(["ssh-keygen", "-R", name, "-f", &file])
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The name under which a host is listed.
pub(super) fn name_with_port(host: &str, port: u16) -> String {
    if port == 22 {
        return host.to_lowercase();
    }
    format!("[{}]:{port}", host.to_lowercase())
}

/// The entries of one file for a host.
pub(super) fn entries(text: &str, file: &Path, name: &str) -> Vec<Entry> {
    let file = Arc::new(file.to_owned());
    let numbered = text.lines().zip(1..);
    numbered
        .filter_map(|(text, line)| {
            let (marker, key) = parse(text, name)?;
            let file = Arc::clone(&file);
            Some(Entry {
                marker,
                key,
                place: Place { file, line },
            })
        })
        .collect()
}

fn parse(line: &str, name: &str) -> Option<(Marker, PublicKey)> {
    let mut words = line.split_ascii_whitespace();
    let mut names = words.next()?;
    let marker = match names {
        comment if comment.starts_with('#') => return None,
        "@revoked" => Marker::Revoked,
        "@cert-authority" => Marker::CertificateAuthority,
        unknown if unknown.starts_with('@') => return None,
        _ => Marker::Plain,
    };
    if marker != Marker::Plain {
        names = words.next()?;
    }
    if !matches(names, name) {
        return None;
    }
    let (algorithm, key) = (words.next()?, words.next()?);
    let key = PublicKey::from_openssh(&format!("{algorithm} {key}")).ok()?;
    Some((marker, key))
}

/// Whether a line's first field is about this name.
fn matches(names: &str, name: &str) -> bool {
    if let Some(hashed) = names.strip_prefix("|1|") {
        return is_hash_of(hashed, name).unwrap_or(false);
    }
    let mut found = false;
    for pattern in names.split(',') {
        let (pattern, negated) = match pattern.strip_prefix('!') {
            Some(pattern) => (pattern, true),
            None => (pattern, false),
        };
        if glob(pattern.to_lowercase().as_bytes(), name.as_bytes()) {
            if negated {
                return false;
            }
            found = true;
        }
    }
    found
}

fn is_hash_of(hashed: &str, name: &str) -> Option<bool> {
    let (salt, hash) = hashed.split_once('|')?;
    let (salt, hash) = (STANDARD.decode(salt).ok()?, STANDARD.decode(hash).ok()?);
    let mac = Hmac::<Sha1>::new_from_slice(&salt).ok()?;
    Some(mac.chain_update(name).verify_slice(&hash).is_ok())
}

/// `*` and `?` as OpenSSH has them. Takes time in proportion to both lengths, whatever the pattern.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += 1;
            }
            Some(byte) if text.get(t) == Some(byte) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                // The last star takes in one byte more.
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    p = star_at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    fn found(line: &str, name: &str) -> Vec<Marker> {
        entries(line, Path::new("/known"), name)
            .into_iter()
            .map(|entry| entry.marker)
            .collect()
    }

    #[test]
    fn names_patterns_ports_and_markers() {
        assert_eq!(
            found(&format!("one,two {A} comment"), "two"),
            [Marker::Plain]
        );
        assert_eq!(found(&format!("one {A}"), "two"), []);
        assert_eq!(
            found(&format!("*.lan,!bad.lan {A}"), "good.lan"),
            [Marker::Plain]
        );
        assert_eq!(found(&format!("*.lan,!bad.lan {A}"), "bad.lan"), []);
        assert_eq!(found(&format!("10.0.0.? {A}"), "10.0.0.7"), [Marker::Plain]);
        assert_eq!(found(&format!("[one]:2222 {A}"), "one"), []);
        let name = name_with_port("ONE", 2222);
        assert_eq!(found(&format!("[one]:2222\t{A}"), &name), [Marker::Plain]);
        assert_eq!(found(&format!("@revoked * {A}"), "one"), [Marker::Revoked]);
        assert_eq!(
            found(&format!("@cert-authority *.lan {A}"), "a.lan"),
            [Marker::CertificateAuthority]
        );
        for line in [
            "",
            "#one",
            "@other one x y",
            "one",
            "one ssh-ed25519",
            "one ssh-ed25519 AAAA",
            "|1|x one",
        ] {
            assert_eq!(found(line, "one"), [], "{line}");
        }
        assert_eq!(found(&format!("# {A}\n\none {A}"), "one"), [Marker::Plain]);
    }

    #[test]
    fn hashed_names() {
        // Written by `ssh-keygen -H`.
        let line = "|1|O33ESRMWPVkMYIwJ1Uw+n877jTo=|nuuC5vEqXlEZ/8BXQR7m619W6Ak= ssh-ed25519 \
                    AAAAC3NzaC1lZDI1NTE5AAAAILIG2T/B0l0gaqj3puu510tu9N1OkQ4znY3LYuEm5zCF";
        assert_eq!(found(line, "example.com"), [Marker::Plain]);
        assert_eq!(found(line, "example.org"), []);
    }

    #[test]
    fn a_pattern_of_many_stars_is_no_work() {
        let pattern = "*a".repeat(2000);
        assert!(!glob(pattern.as_bytes(), "a".repeat(1999).as_bytes()));
        assert!(glob(pattern.as_bytes(), "a".repeat(2000).as_bytes()));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC{0,200}", name in "\\PC{0,20}") {
            entries(&text, Path::new("/known"), &name);
        }

        #[test]
        fn lines_that_are_almost_right(
            names in "[|1a*?!,\\[\\]:/+=]{0,30}",
            key in "[A-Za-z0-9+/=]{0,80}",
        ) {
            entries(&format!("{names} ssh-ed25519 {key}"), Path::new("/known"), "a");
        }
    }
}
