//! Signatures of images in the form that cosign keeps: an image under the tag `sha256-<digest>.sig` whose layers are what was
//! signed ("simple signing") and whose annotations are the signatures.
//!
//! Pure: values into bytes. Signatures of others in the same place are kept.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oci_distribution::manifest::{IMAGE_CONFIG_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use serde::{Deserialize, Serialize};

use super::artifact::{Manifest, describe, referrers_tag};
use super::key::{PrivateKey, PublicKey};
use crate::images::registry::Descriptor;

/// Media type of what is signed.
pub const PAYLOAD_MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Where the signature over a layer is.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What a payload is, in its own words.
const PAYLOAD_TYPE: &str = "cosign container image signature";
/// Docker Hub, as manifests call it and as cosign does.
const HUB: (&str, &str) = ("docker.io/", "index.docker.io/");

/// What is signed.
#[derive(Debug, Serialize, Deserialize)]
struct Payload {
    critical: Critical,
    optional: Option<serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Signed,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Signed {
    docker_manifest_digest: String,
}

/// A payload and a signature over it, found or made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What is signed, byte for byte.
    pub payload: Bytes,
    /// ASN.1.
    pub signature: Vec<u8>,
}

/// The tag that signatures of `digest` are under.
pub fn tag(digest: &str) -> String {
    format!("{}.sig", referrers_tag(digest))
}

/// Signs that the image in `repository` has `digest`.
pub fn sign(
    key: &PrivateKey,
    repository: &str,
    digest: &str,
) -> Result<Signature, serde_json::Error> {
    let docker_reference = match repository.strip_prefix(HUB.0) {
        Some(path) => format!("{}{path}", HUB.1),
        None => repository.to_owned(),
    };
    let payload = serde_json::to_vec(&Payload {
        critical: Critical {
            identity: Identity { docker_reference },
            image: Signed {
                docker_manifest_digest: digest.to_owned(),
            },
            kind: PAYLOAD_TYPE.to_owned(),
        },
        optional: None,
    })?;
    Ok(Signature {
        signature: key.sign(&payload),
        payload: payload.into(),
    })
}

/// Does the signature say that the owner of `key` signed the image with `digest`?
pub fn vouches(key: &PublicKey, digest: &str, signature: &Signature) -> bool {
    if !key.verifies(&signature.payload, &signature.signature) {
        return false;
    }
    let payload: Result<Payload, _> = serde_json::from_slice(&signature.payload);
    payload.is_ok_and(|payload| {
        payload.critical.kind == PAYLOAD_TYPE
            && payload.critical.image.docker_manifest_digest == digest
    })
}

/// The signature that a layer's annotation holds.
pub fn annotated(layer: &Descriptor) -> Option<Vec<u8>> {
    let text = layer.annotations.get(SIGNATURE_ANNOTATION)?;
    STANDARD.decode(text).ok()
}

/// The layer that holds a signature.
pub fn layer(signature: &Signature) -> Descriptor {
    let mut layer = describe(PAYLOAD_MEDIA_TYPE, &signature.payload);
    let text = STANDARD.encode(&signature.signature);
    layer
        .annotations
        .insert(SIGNATURE_ANNOTATION.to_owned(), text);
    layer
}

/// Is `layer` the one that was `wanted`? Signatures of one payload differ in their annotations alone, and whoever writes the
/// image again may add some.
pub fn holds(layer: &Descriptor, wanted: &Descriptor) -> bool {
    let kept = |(key, value): (&String, &String)| layer.annotations.get(key) == Some(value);
    layer.digest == wanted.digest && wanted.annotations.iter().all(kept)
}

/// An image of cosign's with one more layer, and the configuration that lists all of them.
pub fn collect(
    existing: Option<Manifest>,
    layer: Descriptor,
) -> Result<(Manifest, Bytes), serde_json::Error> {
    let (mut layers, annotations) = existing.map_or_else(Default::default, |manifest| {
        (manifest.layers, manifest.annotations)
    });
    layers.push(layer);
    let config = configuration(&layers)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        artifact_type: None,
        config: describe(IMAGE_CONFIG_MEDIA_TYPE, &config),
        layers,
        subject: None,
        annotations,
    };
    Ok((manifest, config))
}

/// cosign's configuration: an image without system or history, whose uncompressed layers are the layers.
fn configuration(layers: &[Descriptor]) -> Result<Bytes, serde_json::Error> {
    #[derive(Serialize)]
    struct Configuration<'a> {
        architecture: &'a str,
        created: &'a str,
        history: Vec<BTreeMap<&'a str, &'a str>>,
        os: &'a str,
        rootfs: Rootfs<'a>,
        config: BTreeMap<&'a str, &'a str>,
    }
    #[derive(Serialize)]
    struct Rootfs<'a> {
        #[serde(rename = "type")]
        kind: &'a str,
        diff_ids: Vec<&'a str>,
    }
    let never = "0001-01-01T00:00:00Z";
    let configuration = Configuration {
        architecture: "",
        created: never,
        history: vec![BTreeMap::from([("created", never)]); layers.len()],
        os: "",
        rootfs: Rootfs {
            kind: "layers",
            diff_ids: layers.iter().map(|layer| layer.digest.as_str()).collect(),
        },
        config: BTreeMap::new(),
    };
    Ok(serde_json::to_vec(&configuration)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::attest::key::KeyFile;
    use p256::pkcs8::{EncodePrivateKey as _, LineEnding};

    const DIGEST: &str = "sha256:aa";

    fn key(seed: u8) -> PrivateKey {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = p256::ecdsa::SigningKey::from_slice(&[seed; 32]).unwrap();
        std::fs::write(&path, key.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap();
        let key = KeyFile {
            path,
            password_file: None,
        };
        key.open().unwrap()
    }

    #[test]
    fn the_payload_is_what_cosign_writes() {
        let made = sign(&key(1), "docker.io/me/app", DIGEST).unwrap();
        assert_eq!(
            made.payload,
            Bytes::from_static(
                br#"{"critical":{"identity":{"docker-reference":"index.docker.io/me/app"},"image":{"docker-manifest-digest":"sha256:aa"},"type":"cosign container image signature"},"optional":null}"#
            )
        );
        assert_eq!(made, sign(&key(1), "docker.io/me/app", DIGEST).unwrap());
    }

    #[test]
    fn a_signature_vouches_for_one_digest_and_by_one_key() {
        let made = sign(&key(1), "r.example/me/app", DIGEST).unwrap();
        assert!(vouches(&key(1).public(), DIGEST, &made));
        assert!(!vouches(&key(2).public(), DIGEST, &made));
        assert!(!vouches(&key(1).public(), "sha256:bb", &made));
        // Something else that the same key signed, an attestation for example.
        let payload = Bytes::from_static(b"{}");
        let other = Signature {
            signature: key(1).sign(&payload),
            payload,
        };
        assert!(!vouches(&key(1).public(), DIGEST, &other));
    }

    #[test]
    fn signatures_of_others_stay() {
        let (first, second) = (
            sign(&key(1), "me/app", DIGEST).unwrap(),
            sign(&key(2), "me/app", DIGEST).unwrap(),
        );
        let (manifest, _) = collect(None, layer(&first)).unwrap();
        let (manifest, config) = collect(Some(manifest), layer(&second)).unwrap();
        assert_eq!(manifest.layers.len(), 2);
        assert_eq!(annotated(&manifest.layers[0]).unwrap(), first.signature);
        assert_eq!(annotated(&manifest.layers[1]).unwrap(), second.signature);
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        assert_eq!(config["history"].as_array().unwrap().len(), 2);
    }
}
