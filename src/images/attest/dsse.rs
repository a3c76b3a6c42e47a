//! Signed statements in the form that `cosign verify-attestation` reads: DSSE envelopes as layers of an image under the tag
//! `sha256-<digest>.att`.
//!
//! Pure: values into bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::artifact::{describe, referrers_tag};
use super::key::{PrivateKey, PublicKey};
use super::provenance::STATEMENT_TYPE;
use super::signature::SIGNATURE_ANNOTATION;
use crate::images::registry::Descriptor;

/// Media type of an envelope.
pub const MEDIA_TYPE: &str = "application/vnd.dsse.envelope.v1+json";
/// What an envelope holds.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Annotation: what the statement in an envelope states.
pub const PREDICATE_ANNOTATION: &str = "predicateType";
/// What a statement with an SPDX document states.
pub const SPDX_PREDICATE: &str = "https://spdx.dev/Document";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signed>,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// The tag that signed statements about `digest` are under.
pub fn tag(digest: &str) -> String {
    format!("{}.att", referrers_tag(digest))
}

/// An SPDX document as the predicate of a statement about an image.
pub fn spdx_statement(
    repository: &str,
    digest: &str,
    document: &[u8],
) -> Result<Vec<u8>, serde_json::Error> {
    let document: Value = serde_json::from_slice(document)?;
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
    serde_json::to_vec(&json!({
        "_type": STATEMENT_TYPE,
        "subject": [{"name": repository, "digest": {algorithm: hex}}],
        "predicateType": SPDX_PREDICATE,
        "predicate": document,
    }))
}

/// A signed statement, ready to be stored.
pub fn seal(key: &PrivateKey, statement: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Envelope {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: STANDARD.encode(statement),
        signatures: vec![Signed {
            keyid: String::new(),
            sig: STANDARD.encode(key.sign(&encoding(statement))),
        }],
    })
}

/// The statement in an envelope, if the owner of `key` signed it.
pub fn open(key: &PublicKey, envelope: &[u8]) -> Option<Vec<u8>> {
    let envelope: Envelope = serde_json::from_slice(envelope).ok()?;
    let statement = STANDARD.decode(&envelope.payload).ok()?;
    let signed = encoding(&statement);
    let by_key = |signature: &Signed| {
        let bytes = STANDARD.decode(&signature.sig);
        bytes.is_ok_and(|bytes| key.verifies(&signed, &bytes))
    };
    let good = envelope.payload_type == PAYLOAD_TYPE && envelope.signatures.iter().any(by_key);
    good.then_some(statement)
}

/// The layer that holds an envelope.
pub fn layer(envelope: &[u8], predicate: &str) -> Descriptor {
    let mut layer = describe(MEDIA_TYPE, envelope);
    // cosign wants the annotation to be there; the signature itself is in the envelope.
    layer
        .annotations
        .insert(SIGNATURE_ANNOTATION.to_owned(), String::new());
    layer
        .annotations
        .insert(PREDICATE_ANNOTATION.to_owned(), predicate.to_owned());
    layer
}

/// What is signed: DSSE's pre-authentication encoding.
fn encoding(statement: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {PAYLOAD_TYPE} {} ",
        PAYLOAD_TYPE.len(),
        statement.len()
    );
    [head.as_bytes(), statement].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::pkcs8::{EncodePrivateKey as _, LineEnding};

    fn key(seed: u8) -> PrivateKey {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = p256::ecdsa::SigningKey::from_slice(&[seed; 32]).unwrap();
        std::fs::write(&path, key.to_pkcs8_pem(LineEnding::LF).unwrap().as_bytes()).unwrap();
        PrivateKey::read(&path, || Ok(None)).unwrap()
    }

    #[test]
    fn an_envelope_opens_for_the_key_that_sealed_it() {
        let envelope = seal(&key(1), b"{}").unwrap();
        assert_eq!(open(&key(1).public(), &envelope), Some(b"{}".to_vec()));
        assert_eq!(open(&key(2).public(), &envelope), None);
        let text = String::from_utf8(envelope).unwrap();
        let forged = text.replace(&STANDARD.encode("{}"), &STANDARD.encode("[]"));
        assert_eq!(open(&key(1).public(), forged.as_bytes()), None);
        assert_eq!(open(&key(1).public(), b"nonsense"), None);
    }

    #[test]
    fn what_is_signed_is_the_specifications_encoding() {
        assert_eq!(
            encoding(b"hello"),
            b"DSSEv1 28 application/vnd.in-toto+json 5 hello"
        );
    }
}
