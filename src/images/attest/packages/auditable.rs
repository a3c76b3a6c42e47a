//! Rust's packages in executables that `cargo auditable` built: JSON, compressed with zlib, in the section `.dep-v0`.

use std::io::Read as _;

use flate2::read::ZlibDecoder;
use serde::Deserialize;

use super::{Origin, Package, linkable, purl};

/// The section.
pub const SECTION: &str = ".dep-v0";
/// The longest list that is read, in bytes. A package takes about a hundred.
const LIMIT: u64 = 16 * 1024 * 1024;
/// The most needs of packages for packages that a list may have. Cargo's own is a list of some thousand.
const NEEDS_LIMIT: usize = 100_000;

#[derive(Deserialize)]
struct List {
    packages: Vec<Linked>,
}

#[derive(Deserialize)]
struct Linked {
    name: String,
    version: String,
    /// `build` where it only helped to build; left out otherwise.
    #[serde(default)]
    kind: String,
    /// Places in the list.
    #[serde(default)]
    dependencies: Vec<usize>,
}

impl Linked {
    fn purl(&self) -> String {
        purl("cargo", "", &self.name, &self.version, &[])
    }

    fn is_in(&self) -> bool {
        self.kind != "build"
    }
}

/// The packages in the executable at `place`, or what is wrong with its section.
pub fn parse(section: &[u8], place: &str) -> Result<Vec<Package>, String> {
    let mut text = Vec::new();
    let mut decoder = ZlibDecoder::new(section).take(LIMIT + 1);
    let read = decoder.read_to_end(&mut text);
    read.map_err(|error| format!("its section {SECTION} is not compressed with zlib ({error})"))?;
    if text.len() as u64 > LIMIT {
        return Err(format!("its section {SECTION} has more than {LIMIT} bytes"));
    }
    let list: List = serde_json::from_slice(&text)
        .map_err(|error| format!("its section {SECTION} is no list of packages ({error})"))?;
    let all = list.packages.iter();
    linkable(all.map(|linked| (linked.name.as_str(), linked.version.as_str())))
        .map_err(|reason| format!("its section {SECTION} lists {reason}"))?;
    let needs: usize = list
        .packages
        .iter()
        .map(|linked| linked.dependencies.len())
        .sum();
    if needs > NEEDS_LIMIT {
        return Err(format!(
            "its section {SECTION} has more than {NEEDS_LIMIT} needs of packages for packages"
        ));
    }
    // Of each once, however many need it.
    let purls: Vec<Option<String>> = list
        .packages
        .iter()
        .map(|linked| linked.is_in().then(|| linked.purl()))
        .collect();
    let linked = list.packages.iter().zip(&purls);
    let package = |(linked, own): (&Linked, &Option<String>)| {
        let needs = linked.dependencies.iter();
        let needs = needs.filter_map(|index| purls.get(*index)?.clone());
        Some(Package {
            needs: needs.collect(),
            ..Package::new(
                &linked.name,
                &linked.version,
                own.clone()?,
                (Origin::Linked, place),
            )
        })
    };
    Ok(linked.filter_map(package).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{LENGTH_LIMIT, LINKED_LIMIT};
    use super::*;
    use std::io::{Write as _, copy, repeat};

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_is_linked_in_is_found_and_what_only_helped_to_build_is_not() {
        let list = r#"{"packages":[
            {"name":"app","version":"0.1.0","source":"local","dependencies":[1,2],"root":true},
            {"name":"cc","version":"1.0.0","source":"crates.io","kind":"build"},
            {"name":"serde","version":"1.0.200","source":"crates.io"}],"format":1}"#;
        let found = parse(&zlib(list.as_bytes()), "usr/bin/app").unwrap();
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(purls, ["pkg:cargo/app@0.1.0", "pkg:cargo/serde@1.0.200"]);
        assert_eq!(
            found[0].needs.iter().collect::<Vec<_>>(),
            ["pkg:cargo/serde@1.0.200"]
        );
    }

    #[test]
    fn what_is_no_list_is_an_error_that_says_so() {
        let bomb = {
            let mut encoder =
                flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            copy(&mut repeat(b' ').take(LIMIT + 2), &mut encoder).unwrap();
            encoder.finish().unwrap()
        };
        let many = |count: usize, fields: &str| {
            let package = format!(r#"{{"name":"a","version":"1"{fields}}}"#);
            let list = vec![package; count].join(",");
            zlib(format!(r#"{{"packages":[{list}]}}"#).as_bytes())
        };
        let needs = |count: usize| format!(r#","dependencies":[{}]"#, vec!["0"; count].join(","));
        let long = "1".repeat(LENGTH_LIMIT + 1);
        let long = format!(r#"{{"packages":[{{"name":"a","version":"{long}"}}]}}"#);
        assert_eq!(parse(&many(100, &needs(1000)), "x").unwrap().len(), 100);
        for (section, word) in [
            (b"nonsense".to_vec(), "zlib"),
            (zlib(b"{}"), "no list"),
            (bomb, "more than"),
            (many(LINKED_LIMIT + 1, ""), "more than 20000 packages"),
            (many(101, &needs(1000)), "more than 100000 needs"),
            (zlib(long.as_bytes()), "more than 512 bytes"),
        ] {
            let error = parse(&section, "x").unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
