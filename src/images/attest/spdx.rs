//! Lists of packages as SPDX 2.3 documents in JSON.
//!
//! Equal inputs give equal bytes: the time is that of every build, the namespace follows from the digest and the content, and
//! everything is sorted.

use std::collections::BTreeSet;

use serde::Serialize;

use super::packages::os::Distribution;
use super::packages::{Origin, Package, Packages, purl};
use super::{SOURCE, epoch};
use crate::images::hash::{Records, Sha256Digest};

/// Media type of the document.
pub const MEDIA_TYPE: &str = "application/spdx+json";

/// SPDX's word for "nobody says so".
const NOASSERTION: &str = "NOASSERTION";
/// Identifier of the document itself.
const DOCUMENT: &str = "SPDXRef-DOCUMENT";
/// Identifier of the image.
const IMAGE: &str = "SPDXRef-Image";
/// Identifier of the distribution.
const SYSTEM: &str = "SPDXRef-OperatingSystem";

/// What an SBOM is made from.
#[derive(Debug, Clone)]
pub struct Bom {
    /// `docker.io/namespace/name`.
    pub repository: String,
    /// Digest of the image's manifest.
    pub digest: String,
    /// `linux/amd64`.
    pub platform: String,
    /// What it is made from, if it says so.
    pub distribution: Option<Distribution>,
    /// Its packages.
    pub packages: Packages,
    /// What is in it and could not be read.
    pub remarks: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    document_namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    creation_info: CreationInfo,
    packages: Vec<Entry>,
    relationships: Vec<Relationship>,
}

#[derive(Serialize)]
struct CreationInfo {
    created: String,
    creators: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_info: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    supplier: Option<String>,
    download_location: &'static str,
    files_analyzed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<String>,
    license_concluded: &'static str,
    license_declared: &'static str,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    primary_package_purpose: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<Reference>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    reference_category: &'static str,
    reference_type: &'static str,
    reference_locator: String,
}

#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
struct Relationship {
    spdx_element_id: String,
    relationship_type: &'static str,
    related_spdx_element: String,
}

impl Bom {
    /// The document's bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut entries = vec![self.image()];
        entries.extend(self.distribution.as_ref().map(system));
        entries.extend(self.packages.iter().map(entry));
        let hex = self.digest.rsplit(':').next().unwrap_or_default();
        let mut document = Document {
            spdx_version: "SPDX-2.3",
            data_license: "CC0-1.0",
            id: DOCUMENT,
            name: format!("{}@{}", self.repository, self.digest),
            document_namespace: String::new(),
            comment: (!self.remarks.is_empty()).then(|| self.remarks.join("\n")),
            creation_info: CreationInfo {
                created: epoch(),
                creators: vec![format!("Tool: orch-{}", env!("CARGO_PKG_VERSION"))],
            },
            packages: entries,
            relationships: self.relationships(),
        };
        // Two documents about one image must not share a namespace unless they are equal.
        let content = Sha256Digest::of(&serde_json::to_vec(&document)?).hex();
        let content = content.get(..16).unwrap_or_default();
        document.document_namespace = format!(
            "{SOURCE}/spdx/{}/{hex}/{content}",
            self.repository.rsplit('/').next().unwrap_or_default()
        );
        let mut bytes = serde_json::to_vec_pretty(&document)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn image(&self) -> Entry {
        let name = self.repository.rsplit('/').next().unwrap_or_default();
        let (os, arch) = self.platform.split_once('/').unwrap_or_default();
        let qualifiers = [
            ("repository_url", self.repository.as_str()),
            ("arch", arch),
            ("os", os),
        ];
        Entry {
            version_info: Some(self.digest.clone()),
            checksums: checksum(self.digest.strip_prefix("sha256:")),
            primary_package_purpose: Some("CONTAINER"),
            external_refs: reference(purl("oci", "", name, &self.digest, &qualifiers)),
            ..plain(IMAGE.to_owned(), self.repository.clone())
        }
    }

    fn relationships(&self) -> Vec<Relationship> {
        let relation = |from: &str, kind, to: &str| Relationship {
            spdx_element_id: from.to_owned(),
            relationship_type: kind,
            related_spdx_element: to.to_owned(),
        };
        let mut relations = BTreeSet::from([relation(DOCUMENT, "DESCRIBES", IMAGE)]);
        if self.distribution.is_some() {
            relations.insert(relation(IMAGE, "CONTAINS", SYSTEM));
        }
        for package in self.packages.iter() {
            let own = id(package);
            for (origin, _) in &package.found {
                relations.insert(match origin {
                    Origin::Installed | Origin::Linked => relation(IMAGE, "CONTAINS", &own),
                    Origin::Locked => relation(IMAGE, "DEPENDS_ON", &own),
                });
            }
            let needs = package.needs.iter();
            for other in needs.filter_map(|purl| self.packages.get(purl)) {
                relations.insert(relation(&own, "DEPENDS_ON", &id(other)));
            }
        }
        relations.into_iter().collect()
    }
}

fn plain(id: String, name: String) -> Entry {
    Entry {
        id,
        name,
        version_info: None,
        supplier: None,
        download_location: NOASSERTION,
        files_analyzed: false,
        checksums: Vec::new(),
        source_info: None,
        license_concluded: NOASSERTION,
        license_declared: NOASSERTION,
        copyright_text: NOASSERTION,
        primary_package_purpose: None,
        external_refs: Vec::new(),
    }
}

fn system(distribution: &Distribution) -> Entry {
    let version = Some(distribution.version.clone()).filter(|version| !version.is_empty());
    let name = Some(&distribution.name).filter(|name| !name.is_empty());
    Entry {
        version_info: version,
        source_info: name.cloned(),
        primary_package_purpose: Some("OPERATING-SYSTEM"),
        ..plain(SYSTEM.to_owned(), distribution.id.clone())
    }
}

fn entry(package: &Package) -> Entry {
    let places = package.found.iter().map(|(origin, place)| match origin {
        Origin::Installed => format!("installed in the image, according to /{place}"),
        Origin::Linked => format!("linked into /{place}"),
        Origin::Locked => format!("locked by {place} in the build context"),
    });
    Entry {
        version_info: package.version.clone(),
        supplier: package.supplier.as_deref().and_then(supplier),
        checksums: checksum(package.sha256.as_deref()),
        source_info: Some(places.collect::<Vec<_>>().join("; ")),
        external_refs: reference(package.purl.clone()),
        ..plain(id(package), package.name.clone())
    }
}

/// `Name <mail>` in SPDX's form. Nobody says whether that is a person; distributions' maintainers are teams as a rule.
fn supplier(text: &str) -> Option<String> {
    let text = text.replace(['(', ')'], "");
    let name = match text.split_once('<') {
        Some((name, mail)) => format!("{} ({})", name.trim(), mail.trim_end_matches('>').trim()),
        None => text.trim().to_owned(),
    };
    (!name.trim().is_empty()).then(|| format!("Organization: {}", name.trim()))
}

fn checksum(sha256: Option<&str>) -> Vec<Checksum> {
    let sums = sha256.into_iter().map(|sum| Checksum {
        algorithm: "SHA256",
        checksum_value: sum.to_owned(),
    });
    sums.collect()
}

fn reference(purl: String) -> Vec<Reference> {
    vec![Reference {
        reference_category: "PACKAGE-MANAGER",
        reference_type: "purl",
        reference_locator: purl,
    }]
}

/// Letters, digits, `.` and `-` are all that an identifier may have; the hash keeps what they cannot tell apart.
fn id(package: &Package) -> String {
    let kind = package.purl.strip_prefix("pkg:").unwrap_or_default();
    let kind = kind.split('/').next().unwrap_or_default();
    let name: String = package
        .name
        .chars()
        .map(|character| match character {
            '.' | '-' => character,
            _ if character.is_ascii_alphanumeric() => character,
            _ => '-',
        })
        .collect();
    let mut records = Records::new("orch.spdx", 1);
    records.fields(&[package.purl.as_bytes()]);
    let hash = records.finish().hex();
    format!(
        "SPDXRef-Package-{kind}-{name}-{}",
        hash.get(..12).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::attest::packages::{cargo, dpkg};
    use serde_json::Value;

    fn bom() -> Bom {
        let distribution =
            Distribution::parse(b"ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian 12\"\n");
        let mut packages = Packages::default();
        let status = b"Package: libstdc++6\nStatus: install ok installed\nMaintainer: Debian GCC Maintainers <gcc@example.org>\nVersion: 12.2.0-14\nArchitecture: amd64\n\nPackage: libstdc--6\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n";
        for package in dpkg::parse(status, "var/lib/dpkg/status", distribution.as_ref()) {
            packages.add(package);
        }
        let lock = format!(
            "[[package]]\nname = \"app\"\nversion = \"0.1.0\"\ndependencies = [\"serde\"]\n[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{}\"\n",
            "b".repeat(64)
        );
        for package in cargo::parse(&lock, "Cargo.lock").unwrap() {
            packages.add(package);
        }
        Bom {
            repository: "docker.io/me/app".to_owned(),
            digest: format!("sha256:{}", "c".repeat(64)),
            platform: "linux/amd64".to_owned(),
            distribution,
            packages,
            remarks: Vec::new(),
        }
    }

    fn parsed(bom: &Bom) -> Value {
        serde_json::from_slice(&bom.to_json().unwrap()).unwrap()
    }

    #[test]
    fn equal_inputs_give_equal_bytes_and_others_another_namespace() {
        assert_eq!(bom().to_json().unwrap(), bom().to_json().unwrap());
        let mut other = bom();
        other.remarks.push("x".to_owned());
        assert_ne!(
            parsed(&bom())["documentNamespace"],
            parsed(&other)["documentNamespace"]
        );
        assert_eq!(
            parsed(&bom())["creationInfo"]["created"],
            "2020-01-01T00:00:00Z"
        );
    }

    /// The rules of SPDX 2.3 that a document of ours could break.
    #[test]
    fn the_document_keeps_to_the_specification() {
        let document = parsed(&bom());
        for (field, value) in [
            ("spdxVersion", "SPDX-2.3"),
            ("dataLicense", "CC0-1.0"),
            ("SPDXID", "SPDXRef-DOCUMENT"),
        ] {
            assert_eq!(document[field], value);
        }
        let namespace = document["documentNamespace"].as_str().unwrap();
        assert!(url::Url::parse(namespace).is_ok() && !namespace.contains('#'));
        let mut ids = BTreeSet::from(["SPDXRef-DOCUMENT"]);
        for package in document["packages"].as_array().unwrap() {
            let id = package["SPDXID"].as_str().unwrap();
            let rest = id.strip_prefix("SPDXRef-").unwrap();
            assert!(
                rest.chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')),
                "{id}"
            );
            assert!(ids.insert(id), "{id} twice");
            assert!(!package["name"].as_str().unwrap().is_empty());
            assert_eq!(package["downloadLocation"], "NOASSERTION");
            assert_eq!(package["filesAnalyzed"], false);
            if let Some(supplier) = package["supplier"].as_str() {
                assert_eq!(
                    supplier,
                    "Organization: Debian GCC Maintainers (gcc@example.org)"
                );
            }
            for reference in package["externalRefs"].as_array().into_iter().flatten() {
                assert_eq!(reference["referenceCategory"], "PACKAGE-MANAGER");
                assert!(
                    reference["referenceLocator"]
                        .as_str()
                        .unwrap()
                        .starts_with("pkg:")
                );
            }
        }
        let relations = document["relationships"].as_array().unwrap();
        for relation in relations {
            for end in ["spdxElementId", "relatedSpdxElement"] {
                assert!(ids.contains(relation[end].as_str().unwrap()), "{relation}");
            }
        }
        let count = |kind: &str| {
            let of_kind = relations
                .iter()
                .filter(|relation| relation["relationshipType"] == kind);
            of_kind.count()
        };
        assert_eq!(count("DESCRIBES"), 1);
        assert_eq!(count("CONTAINS"), 3);
        // The image needs both crates, and one of them needs the other.
        assert_eq!(count("DEPENDS_ON"), 3);
    }
}
