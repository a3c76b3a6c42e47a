//! Alpine's packages: `/lib/apk/db/installed`.

use super::os::Distribution;
use super::{Origin, Package, fields, paragraphs, purl};

/// The packages of a database found at `place`.
pub fn parse(bytes: &[u8], place: &str, distribution: Option<&Distribution>) -> Vec<Package> {
    let text = String::from_utf8_lossy(bytes);
    let namespace = distribution.map_or("alpine", |known| known.id.as_str());
    let distro = distribution
        .map(Distribution::qualifier)
        .unwrap_or_default();
    let package = |paragraph: &str| {
        let fields = fields(paragraph);
        let (name, version) = (fields.get("P")?, fields.get("V")?);
        let field = |key: &str| fields.get(key).copied().unwrap_or_default();
        let origin = Some(field("o")).filter(|origin| origin != name);
        let qualifiers = [
            ("arch", field("A")),
            ("distro", distro.as_str()),
            ("upstream", origin.unwrap_or_default()),
        ];
        let purl = purl("apk", namespace, name, version, &qualifiers);
        Some(Package {
            supplier: fields.get("m").map(|text| (*text).to_owned()),
            ..Package::new(name, version, purl, (Origin::Installed, place))
        })
    };
    paragraphs(&text).filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found() {
        let database = b"C:Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=\nP:musl\nV:1.2.4_git20230717-r4\nA:x86_64\no:musl\nm:Timo <t@example.org>\nF:lib\nR:ld-musl-x86_64.so.1\n\nP:libcrypto3\nV:3.1.4-r5\nA:x86_64\no:openssl\n\n";
        let distribution = Distribution::parse(b"ID=alpine\nVERSION_ID=3.19.1\n").unwrap();
        let found = parse(database, "lib/apk/db/installed", Some(&distribution));
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:apk/alpine/musl@1.2.4_git20230717-r4?arch=x86_64&distro=alpine-3.19.1",
                "pkg:apk/alpine/libcrypto3@3.1.4-r5?arch=x86_64&distro=alpine-3.19.1&upstream=openssl",
            ]
        );
    }
}
