//! The OCI image layout that containerd imports: its index, its blobs, and the names that its images get.
//!
//! A pod names an image as `repository:tag@sha256:...`. The kubelet's runtime drops the tag where there is a digest and looks for
//! the name `repository@sha256:...`, so that is what each image is called here, and by its tag as well. The index's own digests
//! are those of the registry: manifests are kept byte for byte.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::contents::{Contents, Image, Member};

/// The file that makes a folder an image layout.
pub const MARKER: &str = "oci-layout";
/// The file that lists the images.
pub const INDEX: &str = "index.json";

/// containerd's own annotation for the name under which it stores an image.
const NAME: &str = "io.containerd.image.name";

/// Path of a blob in the layout.
pub fn blob(hex: &str) -> String {
    format!("blobs/sha256/{hex}")
}

/// The name that a runtime looks for.
pub fn name(image: &Image) -> String {
    format!("{}@{}", image.repository, image.digest)
}

/// The bytes of [`MARKER`].
pub fn marker() -> Vec<u8> {
    json!({"imageLayoutVersion": "1.0.0"})
        .to_string()
        .into_bytes()
}

/// The bytes of [`INDEX`].
pub fn index(images: &[Image]) -> Vec<u8> {
    let mut entries: Vec<(String, Value)> = Vec::new();
    for image in images {
        let tagged = image
            .tag
            .iter()
            .map(|tag| format!("{}:{tag}", image.repository));
        for name in std::iter::once(name(image)).chain(tagged) {
            let entry = json!({
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": image.size,
                "annotations": { NAME: name },
            });
            entries.push((name, entry));
        }
    }
    // Two tags of one digest have the name without a tag in common.
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    entries.dedup_by(|a, b| a.0 == b.0);
    let manifests: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    index.to_string().into_bytes()
}

/// Whether a member may be in the layout: a blob under its own digest, or one of the two files, with exactly their bytes.
pub(super) fn check_member(name: &str, member: &Member, contents: &Contents) -> Result<(), String> {
    let expected = match name {
        MARKER => marker(),
        INDEX => index(&contents.images),
        _ if name == blob(&member.sha256) => return Ok(()),
        _ => return Err("is no part of an image layout, or not named by its checksum".to_owned()),
    };
    let sum = hex::encode(Sha256::digest(&expected));
    if sum != member.sha256 || expected.len() as u64 != member.size {
        return Err("does not list the images that bundle.json lists".to_owned());
    }
    Ok(())
}
