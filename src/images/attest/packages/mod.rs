//! Packages: what an image's databases say is installed, what its executables say is linked in, and what lock files of its
//! sources say goes in.
//!
//! Every reader takes bytes and gives packages with their package URL (purl). Boundary: no files, no archives, no documents.

pub mod apk;
pub mod auditable;
pub mod cargo;
pub mod dpkg;
pub mod gobuild;
pub mod golang;
pub mod npm;
pub mod os;
pub mod python;

use std::collections::{BTreeMap, BTreeSet};

/// The most packages that are taken from one executable. The largest have some thousand.
const LINKED_LIMIT: usize = 20_000;
/// The longest name and the longest version that are taken from an executable, in bytes.
const LENGTH_LIMIT: usize = 512;

/// How a package is known to belong to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A database in the image lists it.
    Installed,
    /// An executable in the image says that it was built from it.
    Linked,
    /// A lock file beside the Dockerfile lists it; whether its code was linked in is not known.
    Locked,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version, if it has one.
    pub version: Option<String>,
    /// Package URL, its identity.
    pub purl: String,
    /// Who makes the package.
    pub supplier: Option<String>,
    /// SHA-256 of the package's archive, in hexadecimal digits.
    pub sha256: Option<String>,
    /// Where it was found and how it belongs there.
    pub found: BTreeSet<(Origin, String)>,
    /// purls of what it needs.
    pub needs: BTreeSet<String>,
}

impl Package {
    /// A package of which no more is known than where it is. An empty version is none.
    pub fn new(name: &str, version: &str, purl: String, (origin, place): (Origin, &str)) -> Self {
        Self {
            name: name.to_owned(),
            version: Some(version.to_owned()).filter(|version| !version.is_empty()),
            purl,
            supplier: None,
            sha256: None,
            found: BTreeSet::from([(origin, place.to_owned())]),
            needs: BTreeSet::new(),
        }
    }

    /// What its texts take in memory, in bytes.
    pub fn size(&self) -> usize {
        let optional = [&self.version, &self.supplier, &self.sha256];
        let texts = optional
            .into_iter()
            .flatten()
            .chain([&self.name, &self.purl])
            .chain(self.found.iter().map(|(_, place)| place))
            .chain(&self.needs);
        texts.map(String::len).sum()
    }
}

/// Packages by purl. What is found twice is one package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packages(BTreeMap<String, Package>);

impl Packages {
    /// Adds one.
    pub fn add(&mut self, package: Package) {
        match self.0.get_mut(&package.purl) {
            Some(known) => {
                known.found.extend(package.found);
                known.needs.extend(package.needs);
                known.sha256 = known.sha256.take().or(package.sha256);
            }
            None => {
                self.0.insert(package.purl.clone(), package);
            }
        }
    }

    /// All of them, sorted by purl.
    pub fn iter(&self) -> impl Iterator<Item = &Package> {
        self.0.values()
    }

    /// The one with this purl.
    pub fn get(&self, purl: &str) -> Option<&Package> {
        self.0.get(purl)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Are these the names and versions of packages that one executable may have? If not, what is wrong. An image says what it wants,
/// and a document names every package several times.
fn linkable<'a>(packages: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), String> {
    for (index, (name, version)) in packages.enumerate() {
        if index >= LINKED_LIMIT {
            return Err(format!("more than {LINKED_LIMIT} packages"));
        }
        if name.len() > LENGTH_LIMIT || version.len() > LENGTH_LIMIT {
            return Err(format!(
                "a package whose name or version has more than {LENGTH_LIMIT} bytes"
            ));
        }
    }
    Ok(())
}

/// A package URL: `pkg:kind/namespace/name@version?qualifiers`. Empty parts and qualifiers are left out.
pub fn purl(
    kind: &str,
    namespace: &str,
    name: &str,
    version: &str,
    qualifiers: &[(&str, &str)],
) -> String {
    let mut text = format!("pkg:{kind}/");
    for part in namespace.split('/').filter(|part| !part.is_empty()) {
        text.push_str(&encode(part));
        text.push('/');
    }
    text.push_str(&encode(name));
    if !version.is_empty() {
        text.push('@');
        text.push_str(&encode(version));
    }
    let sorted: BTreeMap<_, _> = qualifiers
        .iter()
        .copied()
        .filter(|(_, value)| !value.is_empty())
        .collect();
    for (index, (key, value)) in sorted.into_iter().enumerate() {
        text.push(if index == 0 { '?' } else { '&' });
        text.push_str(&format!("{key}={}", encode(value)));
    }
    text
}

/// Percent-encoding as the package URL specification wants it.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The fields of an RFC 822-like paragraph, continuation lines left out.
fn fields(paragraph: &str) -> BTreeMap<&str, &str> {
    let lines = paragraph
        .lines()
        .filter(|line| !line.starts_with([' ', '\t']));
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect()
}

/// Text between blank lines.
fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n")
        .map(|paragraph| paragraph.trim_matches('\n'))
        .filter(|paragraph| !paragraph.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purls_are_encoded_as_their_specification_says() {
        assert_eq!(
            purl(
                "deb",
                "debian",
                "libstdc++6",
                "1:12.2.0-14+deb12u1",
                &[("distro", "debian-12"), ("arch", "amd64"), ("upstream", "")]
            ),
            "pkg:deb/debian/libstdc%2B%2B6@1:12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12"
        );
        assert_eq!(purl("cargo", "", "serde", "", &[]), "pkg:cargo/serde");
        assert_eq!(
            purl("golang", "golang.org/x", "net", "v0.1.0", &[]),
            "pkg:golang/golang.org/x/net@v0.1.0"
        );
    }

    #[test]
    fn what_is_found_twice_is_one_package() {
        let package = |origin, place: &str, sha256: Option<&str>| Package {
            sha256: sha256.map(str::to_owned),
            ..Package::new("a", "", "pkg:cargo/a".to_owned(), (origin, place))
        };
        let mut packages = Packages::default();
        packages.add(package(Origin::Locked, "Cargo.lock", None));
        packages.add(package(Origin::Installed, "usr/bin/a", Some("aa")));
        assert_eq!(packages.len(), 1);
        let merged = packages.get("pkg:cargo/a").unwrap();
        assert_eq!(merged.found.len(), 2);
        assert_eq!(merged.sha256.as_deref(), Some("aa"));
    }
}
