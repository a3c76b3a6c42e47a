//! Documents about an image as OCI artifacts: the manifests that carry them and the lists that lead to them.
//!
//! Pure: values into bytes. An artifact is an image manifest with `subject` (image specification 1.1). Where a registry keeps no
//! lists of referrers, clients keep one under a tag made of the subject's digest (distribution specification 1.1, "Referrers
//! Tag Schema").

use std::collections::BTreeMap;

use bytes::Bytes;
use oci_distribution::manifest::{OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use serde::{Deserialize, Serialize};

use crate::images::hash::Sha256Digest;
use crate::images::registry::{Descriptor, RawManifest};

/// Media type of a configuration that says nothing.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Its bytes.
const EMPTY_BYTES: &[u8] = b"{}";

/// An image manifest of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it carries, if that is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, from the bottom.
    pub layers: Vec<Descriptor>,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Those in the list.
    pub manifests: Vec<Descriptor>,
    /// Fields of others, which are kept.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A manifest and the blobs that it points to.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The manifest.
    pub manifest: RawManifest,
    /// The blobs, each under its digest.
    pub blobs: Vec<Bytes>,
    /// The entry that lists of referrers have for it.
    pub descriptor: Descriptor,
}

/// Points to `bytes`.
pub fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Sha256Digest::of(bytes).to_string(),
        size: bytes.len() as u64,
        artifact_type: None,
        annotations: BTreeMap::new(),
        other: BTreeMap::new(),
    }
}

/// A document about `subject`. Its media type is the artifact's type as well.
pub fn document(
    subject: &RawManifest,
    media_type: &str,
    document: Bytes,
    annotations: BTreeMap<String, String>,
) -> Result<Artifact, serde_json::Error> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        artifact_type: Some(media_type.to_owned()),
        config: describe(EMPTY, EMPTY_BYTES),
        layers: vec![describe(media_type, &document)],
        subject: Some(describe(&subject.media_type, &subject.bytes)),
        annotations: annotations.clone(),
    };
    let manifest = manifest.raw()?;
    let descriptor = Descriptor {
        artifact_type: Some(media_type.to_owned()),
        annotations,
        ..describe(&manifest.media_type, &manifest.bytes)
    };
    Ok(Artifact {
        manifest,
        blobs: vec![Bytes::from_static(EMPTY_BYTES), document],
        descriptor,
    })
}

/// The tag under which clients list what refers to `digest`.
pub fn referrers_tag(digest: &str) -> String {
    digest.replacen(':', "-", 1)
}

impl Manifest {
    /// The manifest's bytes.
    pub fn raw(&self) -> Result<RawManifest, serde_json::Error> {
        Ok(RawManifest {
            media_type: OCI_IMAGE_MEDIA_TYPE.to_owned(),
            bytes: serde_json::to_vec(self)?.into(),
        })
    }
}

impl Index {
    /// A list of nothing.
    pub fn empty() -> Self {
        Self {
            schema_version: 2,
            media_type: Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned()),
            manifests: Vec::new(),
            other: BTreeMap::new(),
        }
    }

    /// Lists `descriptor` as well. False if it was listed already.
    pub fn join(&mut self, descriptor: &Descriptor) -> bool {
        let there = |other: &Descriptor| other.digest == descriptor.digest;
        if self.manifests.iter().any(there) {
            return false;
        }
        self.manifests.push(descriptor.clone());
        true
    }

    /// The index's bytes.
    pub fn raw(&self) -> Result<RawManifest, serde_json::Error> {
        Ok(RawManifest {
            media_type: OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned(),
            bytes: serde_json::to_vec(self)?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> RawManifest {
        RawManifest {
            media_type: OCI_IMAGE_MEDIA_TYPE.to_owned(),
            bytes: Bytes::from_static(b"{\"image\":1}"),
        }
    }

    #[test]
    fn an_artifact_has_the_shape_of_the_specification() {
        let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let made = document(
            &subject(),
            "application/spdx+json",
            Bytes::from_static(b"{\"spdx\":1}"),
            annotations,
        )
        .unwrap();
        let text = String::from_utf8(made.manifest.bytes.to_vec()).unwrap();
        let subject_digest = subject().digest();
        let layer = Sha256Digest::of(b"{\"spdx\":1}");
        assert_eq!(
            text,
            format!(
                "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\
                 \"artifactType\":\"application/spdx+json\",\
                 \"config\":{{\"mediaType\":\"application/vnd.oci.empty.v1+json\",\"digest\":\
                 \"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\",\"size\":2}},\
                 \"layers\":[{{\"mediaType\":\"application/spdx+json\",\"digest\":\"{layer}\",\"size\":10}}],\
                 \"subject\":{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\
                 \"digest\":\"{subject_digest}\",\"size\":11}},\"annotations\":{{\"a\":\"b\"}}}}"
            )
        );
        assert_eq!(made.descriptor.digest, made.manifest.digest());
    }

    #[test]
    fn a_list_takes_each_once_and_keeps_what_others_wrote() {
        let theirs = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"x","digest":"sha256:aa","size":1,"platform":{"os":"linux"}}],"annotations":{"k":"v"}}"#;
        let mut index: Index = serde_json::from_str(theirs).unwrap();
        let ours = describe("y", b"ours");
        assert!(index.join(&ours));
        assert!(!index.join(&ours));
        let text = String::from_utf8(index.raw().unwrap().bytes.to_vec()).unwrap();
        assert!(text.contains(r#""platform":{"os":"linux"}"#), "{text}");
        assert!(text.contains(r#""annotations":{"k":"v"}"#), "{text}");
        assert_eq!(index.manifests.len(), 2);
    }

    #[test]
    fn the_tag_is_the_digest_with_a_dash() {
        assert_eq!(referrers_tag("sha256:ab"), "sha256-ab");
    }
}
