//! Rust's packages: `Cargo.lock`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Origin, Package, purl};

/// crates.io, as lock files name it.
const CRATES_IO: [&str; 2] = [
    "registry+https://github.com/rust-lang/crates.io-index",
    "sparse+https://index.crates.io/",
];

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

impl Locked {
    fn purl(&self) -> String {
        let source = self.source.as_deref().unwrap_or_default();
        let (key, value) = match source.split_once('+') {
            _ if source.is_empty() || CRATES_IO.contains(&source) => ("", String::new()),
            Some(("git", url)) => ("vcs_url", git(url)),
            Some((_, url)) => ("repository_url", without_credentials(url)),
            None => ("repository_url", without_credentials(source)),
        };
        purl("cargo", "", &self.name, &self.version, &[(key, &value)])
    }
}

/// The packages of a lock file found at `place`, or where it is wrong and how.
pub fn parse(text: &str, place: &str) -> Result<Vec<Package>, String> {
    let lock: Lock = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .unwrap_or_default()
            .chars()
            .count()
            + 1;
        format!("{place}:{line}:{column}: {}", error.message())
    })?;
    // `name`, `name version` or `name version (source)`, as much as it takes to say which.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for locked in &lock.package {
        let Locked { name, version, .. } = locked;
        let source = locked.source.as_deref().unwrap_or_default();
        for key in [
            name.clone(),
            format!("{name} {version}"),
            format!("{name} {version} ({source})"),
        ] {
            names.insert(key, locked.purl());
        }
    }
    let package = |locked: &Locked| Package {
        sha256: locked.checksum.clone().filter(|sum| is_sha256(sum)),
        needs: locked
            .dependencies
            .iter()
            .filter_map(|name| names.get(name).cloned())
            .collect(),
        ..Package::new(
            &locked.name,
            &locked.version,
            locked.purl(),
            (Origin::Locked, place),
        )
    };
    Ok(lock.package.iter().map(package).collect())
}

/// `git+https://host/path@commit`, from `https://host/path?branch=x#commit`.
fn git(url: &str) -> String {
    let (place, commit) = url.split_once('#').unwrap_or((url, ""));
    let place = without_credentials(place.split('?').next().unwrap_or(place));
    if commit.is_empty() {
        format!("git+{place}")
    } else {
        format!("git+{place}@{commit}")
    }
}

/// The URL without user and password.
fn without_credentials(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else {
        return String::new();
    };
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_sources_checksums_and_dependencies_are_read() {
        let sum = "a".repeat(64);
        let text = format!(
            "version = 4\n\
             [[package]]\nname = \"app\"\nversion = \"0.1.0\"\ndependencies = [\"serde\", \"rand 0.8.5\", \"forked\"]\n\
             [[package]]\nname = \"serde\"\nversion = \"1.0.200\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{sum}\"\n\
             [[package]]\nname = \"rand\"\nversion = \"0.8.5\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"nonsense\"\n\
             [[package]]\nname = \"rand\"\nversion = \"0.9.0\"\nsource = \"sparse+https://me:hush@crates.example/index/\"\n\
             [[package]]\nname = \"forked\"\nversion = \"2.0.0\"\nsource = \"git+https://me:hush@git.example/forked?branch=main#0123abc\"\n"
        );
        let found = parse(&text, "Cargo.lock").unwrap();
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:cargo/app@0.1.0",
                "pkg:cargo/serde@1.0.200",
                "pkg:cargo/rand@0.8.5",
                "pkg:cargo/rand@0.9.0?repository_url=https:%2F%2Fcrates.example%2Findex%2F",
                "pkg:cargo/forked@2.0.0?vcs_url=git%2Bhttps:%2F%2Fgit.example%2Fforked%400123abc",
            ]
        );
        assert_eq!(found[0].needs.len(), 3);
        assert!(found[0].needs.contains("pkg:cargo/rand@0.8.5"));
        assert_eq!(found[1].sha256.as_ref(), Some(&sum));
        assert_eq!(found[2].sha256, None);
        assert!(!format!("{found:?}").contains("hush"));
    }

    #[test]
    fn a_broken_lock_says_where() {
        let error = parse("[[package]]\nname = 1\n", "Cargo.lock").unwrap_err();
        assert!(error.starts_with("Cargo.lock:2:8: "), "{error}");
    }
}
