//! Debian's packages: `/var/lib/dpkg/status`, and distroless images' `status.d`.

use super::os::Distribution;
use super::{Origin, Package, fields, paragraphs, purl};

/// The installed packages of a status file found at `place`.
pub fn parse(bytes: &[u8], place: &str, distribution: Option<&Distribution>) -> Vec<Package> {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    let namespace = distribution.map_or("debian", |known| known.id.as_str());
    let distro = distribution
        .map(Distribution::qualifier)
        .unwrap_or_default();
    let package = |paragraph: &str| {
        let fields = fields(paragraph);
        let (name, version) = (fields.get("Package")?, fields.get("Version")?);
        // Removed packages whose configuration stays are listed, too. Distroless images leave the field out.
        let installed = fields
            .get("Status")
            .is_none_or(|status| status.split(' ').next_back() == Some("installed"));
        if !installed {
            return None;
        }
        // `name (version)`, where the source package has another version.
        let source = fields.get("Source").copied().unwrap_or_default();
        let upstream = match source.split_once(" (") {
            Some((name, version)) => format!("{name}@{}", version.trim_end_matches(')')),
            None => source.to_owned(),
        };
        let architecture = fields.get("Architecture").copied().unwrap_or_default();
        let qualifiers = [
            ("arch", architecture),
            ("distro", distro.as_str()),
            ("upstream", upstream.as_str()),
        ];
        let purl = purl("deb", namespace, name, version, &qualifiers);
        Some(Package {
            supplier: fields.get("Maintainer").map(|text| (*text).to_owned()),
            ..Package::new(name, version, purl, (Origin::Installed, place))
        })
    };
    paragraphs(&text).filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installed_packages_are_found_and_removed_ones_are_not() {
        let status = b"Package: libc6\nStatus: install ok installed\nMaintainer: GNU Libc Maintainers <x@example.org>\nArchitecture: amd64\nSource: glibc\nVersion: 2.36-9+deb12u9\nDescription: GNU C Library\n Package: not a field\n\nPackage: old\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\nPackage: bash\nStatus: install ok installed\nSource: bash (5.2.15-2)\nVersion: 5.2.15-2+b7\nArchitecture: amd64\n";
        let distribution = Distribution::parse(b"ID=debian\nVERSION_ID=12\n").unwrap();
        let found = parse(status, "var/lib/dpkg/status", Some(&distribution));
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12&upstream=glibc",
                "pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64&distro=debian-12&upstream=bash%405.2.15-2",
            ]
        );
        assert_eq!(
            found[0].supplier.as_deref(),
            Some("GNU Libc Maintainers <x@example.org>")
        );
    }

    #[test]
    fn a_paragraph_of_a_distroless_image_has_no_status() {
        let found = parse(
            b"Package: tzdata\nVersion: 2024a-0\nArchitecture: all\n",
            "var/lib/dpkg/status.d/tzdata",
            None,
        );
        assert_eq!(found[0].purl, "pkg:deb/debian/tzdata@2024a-0?arch=all");
    }

    #[test]
    fn nonsense_is_no_package() {
        for text in ["", "\n\n\n", "Package: x\n", ": :\n::", "\u{fffd}"] {
            assert_eq!(parse(text.as_bytes(), "x", None), [], "{text:?}");
        }
    }
}
