//! Brings documents and signatures to the images in a registry, and finds them there.
//!
//! Everything looks first: what is there is neither made nor sent again, and the image itself is never touched.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::TryStreamExt;
use oci_distribution::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE;

use super::artifact::{Artifact, Index, Manifest, referrers_tag};
use super::dsse;
use super::key::{PrivateKey, PublicKey};
use super::signature::{self, Signature};
use super::{provenance, spdx};
use crate::images::event::Reporter;
use crate::images::hash::{Sha256Digest, is_digest};
use crate::images::registry::retry::Policy;
use crate::images::registry::upload::upload;
use crate::images::registry::{Blob, BlobSource, Descriptor, RawManifest, Registry, RegistryError};

/// How often what is under a tag is written when somebody else writes it at the same time.
const WRITE_ATTEMPTS: u32 = 5;
/// The largest payload of a signature that is read, in bytes.
const PAYLOAD_LIMIT: u64 = 1024 * 1024;
/// The largest document in an envelope that is read, in bytes. A thousand packages take less than one of them.
const DOCUMENT_LIMIT: u64 = 64 * 1024 * 1024;

/// The most signatures or statements that are read of one image. Whoever may push can add some.
const LAYERS_LIMIT: usize = 1000;

/// One repository of a registry.
pub struct Store<'a> {
    /// The registry.
    pub registry: &'a dyn Registry,
    /// The repository's path in it.
    pub repository: String,
    /// How patiently broken uploads are resumed.
    pub policy: Policy,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
}

/// What refers to an image.
#[derive(Debug)]
pub struct Referrers {
    /// The list.
    pub entries: Vec<Descriptor>,
    /// Clients keep the list, because the registry does not.
    pub by_tag: bool,
}

impl Referrers {
    /// Those with this type and these annotations, among others.
    pub fn all(&self, artifact_type: &str, annotations: &[(&str, &str)]) -> Vec<&Descriptor> {
        let fits = |entry: &&Descriptor| {
            let wanted = |(key, value): &(&str, &str)| {
                entry
                    .annotations
                    .get(*key)
                    .is_some_and(|found| found == value)
            };
            entry.artifact_type.as_deref() == Some(artifact_type) && annotations.iter().all(wanted)
        };
        self.entries.iter().filter(fits).collect()
    }
}

impl Store<'_> {
    /// The image's own manifest.
    pub async fn image(&self, digest: &str) -> Result<RawManifest, RegistryError> {
        let manifest = self.registry.get_manifest(&self.repository, digest).await?;
        manifest.ok_or_else(|| {
            self.protocol(
                &format!("reading {}@{digest}", self.repository),
                "the registry does not have it: run `orch images push`",
            )
        })
    }

    /// What refers to `digest`.
    pub async fn referrers(&self, digest: &str) -> Result<Referrers, RegistryError> {
        match self.registry.referrers(&self.repository, digest).await? {
            Some(entries) => Ok(Referrers {
                entries,
                by_tag: false,
            }),
            None => {
                let mut entries = self.list(digest).await?.manifests;
                entries.retain(|entry| is_digest(&entry.digest));
                Ok(Referrers {
                    entries,
                    by_tag: true,
                })
            }
        }
    }

    /// The first of these entries of `known` whose artifact is there. Nobody takes what was deleted from a list that clients keep.
    pub async fn first_there<'e>(
        &self,
        known: &Referrers,
        entries: Vec<&'e Descriptor>,
    ) -> Result<Option<&'e Descriptor>, RegistryError> {
        for entry in entries {
            if !known.by_tag || self.has(&entry.digest).await? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    async fn has(&self, digest: &str) -> Result<bool, RegistryError> {
        let found = self.registry.head_manifest(&self.repository, digest);
        Ok(found.await?.is_some())
    }

    /// Attaches an artifact to the image with `digest`, of which `known` refer to it already. True if it was not there.
    pub async fn attach(
        &self,
        digest: &str,
        known: &Referrers,
        artifact: &Artifact,
    ) -> Result<bool, RegistryError> {
        let own = &artifact.descriptor.digest;
        let listed = known.entries.iter().any(|entry| entry.digest == *own);
        if listed && !known.by_tag {
            return Ok(false);
        }
        let there = listed && self.has(own).await?;
        if !there {
            for bytes in &artifact.blobs {
                self.send(bytes).await?;
            }
            let put = self
                .registry
                .put_manifest(&self.repository, own, &artifact.manifest);
            if put.await?.subject.is_some() {
                return Ok(true);
            }
        }
        self.join_list(digest, &artifact.descriptor).await?;
        Ok(!there)
    }

    /// Signs the image with `digest`, unless a signature by `key` is there. True if it was not.
    pub async fn sign(
        &self,
        name: &str,
        digest: &str,
        key: &PrivateKey,
    ) -> Result<bool, RegistryError> {
        let operation = format!("signing {}@{digest}", self.repository);
        let broken = |error: serde_json::Error| self.protocol(&operation, &error.to_string());
        let tag = signature::tag(digest);
        let existing = self.signatures_manifest(digest).await?;
        let public = key.public();
        let vouched = self.vouched(existing.as_ref(), digest, &public);
        if vouched.await? == Some(true) {
            return Ok(false);
        }
        let made = signature::sign(key, name, digest).map_err(broken)?;
        let layer = signature::layer(&made);
        self.add(&operation, &tag, existing, (layer, made.payload))
            .await?;
        Ok(true)
    }

    /// Is the image with `digest` signed by the owner of `key`? Nothing: it is not signed at all.
    pub async fn verify(
        &self,
        digest: &str,
        key: &PublicKey,
    ) -> Result<Option<bool>, RegistryError> {
        let manifest = self.signatures_manifest(digest).await?;
        self.vouched(manifest.as_ref(), digest, key).await
    }

    /// Stores a document about `digest` as a statement that `key` signs, unless it did. True if not. The document has to be made
    /// here: whoever may push can put one of any content into the registry.
    pub async fn seal(
        &self,
        name: &str,
        digest: &str,
        (media_type, document): (&str, &[u8]),
        key: &PrivateKey,
    ) -> Result<bool, RegistryError> {
        let operation = format!("signing what is said about {}@{digest}", self.repository);
        let broken = |error: serde_json::Error| self.protocol(&operation, &error.to_string());
        let (predicate, statement) =
            statement(name, digest, media_type, document).map_err(broken)?;
        let tag = dsse::tag(digest);
        let existing = self.signing_manifest(&tag).await?;
        let public = key.public();
        for layer in envelopes(existing.as_ref(), predicate) {
            if self.opened(layer, &public).await?.as_ref() == Some(&statement) {
                return Ok(false);
            }
        }
        let envelope: Bytes = dsse::seal(key, &statement).map_err(broken)?.into();
        let layer = dsse::layer(&envelope, predicate);
        self.add(&operation, &tag, existing, (layer, envelope))
            .await?;
        Ok(true)
    }

    /// The statements about `digest` that state this and that the owner of `key` signed.
    pub async fn sealed(
        &self,
        digest: &str,
        predicate: &str,
        key: &PublicKey,
    ) -> Result<Vec<Vec<u8>>, RegistryError> {
        let manifest = self.signing_manifest(&dsse::tag(digest)).await?;
        let mut statements = Vec::new();
        for layer in envelopes(manifest.as_ref(), predicate) {
            statements.extend(self.opened(layer, key).await?);
        }
        Ok(statements)
    }

    /// The document in the artifact `entry`, if what it states about `digest` is one of these signed statements.
    pub async fn sealed_document(
        &self,
        name: &str,
        digest: &str,
        media_type: &str,
        entry: &Descriptor,
        sealed: &[Vec<u8>],
    ) -> Result<Option<Bytes>, RegistryError> {
        let found = self.registry.get_manifest(&self.repository, &entry.digest);
        let Some(raw) = found.await? else {
            return Ok(None);
        };
        // Anybody may have put it there: what is no document of ours is not worth an error.
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&raw.bytes) else {
            return Ok(None);
        };
        let [layer] = manifest.layers.as_slice() else {
            return Ok(None);
        };
        if !is_digest(&layer.digest) || layer.size > DOCUMENT_LIMIT {
            return Ok(None);
        }
        let Some(bytes) = self.small_blob(layer, DOCUMENT_LIMIT).await? else {
            return Ok(None);
        };
        let stated = statement(name, digest, media_type, &bytes);
        Ok(stated
            .is_ok_and(|(_, statement)| sealed.contains(&statement))
            .then_some(bytes))
    }

    /// The statement in a layer, if the owner of `key` signed it.
    async fn opened(
        &self,
        layer: &Descriptor,
        key: &PublicKey,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        // Base64 makes four bytes of three.
        let envelope = self.small_blob(layer, DOCUMENT_LIMIT * 2).await?;
        Ok(envelope.and_then(|envelope| dsse::open(key, &envelope)))
    }

    /// Puts one more layer into the image of signatures under `tag`.
    async fn add(
        &self,
        operation: &str,
        tag: &str,
        mut existing: Option<Manifest>,
        (layer, bytes): (Descriptor, Bytes),
    ) -> Result<(), RegistryError> {
        let broken = |error: serde_json::Error| self.protocol(operation, &error.to_string());
        self.send(&bytes).await?;
        for _ in 0..WRITE_ATTEMPTS {
            let (manifest, config) = signature::collect(existing, layer.clone()).map_err(broken)?;
            self.bound(operation, tag, &manifest)?;
            self.send(&config).await?;
            let manifest = manifest.raw().map_err(broken)?;
            self.registry
                .put_manifest(&self.repository, tag, &manifest)
                .await?;
            // Another client may have written what it read before over it.
            existing = self.signing_manifest(tag).await?;
            let layers = existing.iter().flat_map(|manifest| &manifest.layers);
            if layers
                .into_iter()
                .any(|other| signature::holds(other, &layer))
            {
                return Ok(());
            }
        }
        Err(self.overtaken(operation))
    }

    async fn signatures_manifest(&self, digest: &str) -> Result<Option<Manifest>, RegistryError> {
        self.signing_manifest(&signature::tag(digest)).await
    }

    async fn signing_manifest(&self, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        let operation = format!("reading the signatures under {}:{tag}", self.repository);
        let Some(raw) = self.registry.get_manifest(&self.repository, tag).await? else {
            return Ok(None);
        };
        let manifest = serde_json::from_slice(&raw.bytes).map_err(|error| {
            let reason = format!("what is there is no image of signatures ({error})");
            self.protocol(&operation, &reason)
        })?;
        self.bound(&operation, tag, &manifest)?;
        Ok(Some(manifest))
    }

    /// Makes sure that an image of signatures is not too long to be read, now or the next time.
    fn bound(&self, operation: &str, tag: &str, manifest: &Manifest) -> Result<(), RegistryError> {
        if manifest.layers.len() <= LAYERS_LIMIT {
            return Ok(());
        }
        let reason = format!(
            "no more than {LAYERS_LIMIT} signatures may be under {}:{tag}: remove that tag, and sign the image again",
            self.repository
        );
        Err(self.protocol(operation, &reason))
    }

    /// Does one of these signatures say that the owner of `key` signed the image? Nothing: there is none.
    async fn vouched(
        &self,
        manifest: Option<&Manifest>,
        digest: &str,
        key: &PublicKey,
    ) -> Result<Option<bool>, RegistryError> {
        // All keys sign the same payload, which is read once.
        let mut payloads: BTreeMap<&str, Vec<(&Descriptor, Vec<u8>)>> = BTreeMap::new();
        for layer in manifest.into_iter().flat_map(|manifest| &manifest.layers) {
            if layer.media_type != signature::PAYLOAD_MEDIA_TYPE {
                continue;
            }
            if let Some(signature) = signature::annotated(layer) {
                let signatures = payloads.entry(&layer.digest).or_default();
                signatures.push((layer, signature));
            }
        }
        let mut verdict = None;
        for signatures in payloads.into_values() {
            let Some((layer, _)) = signatures.first() else {
                continue;
            };
            let Some(payload) = self.small_blob(layer, PAYLOAD_LIMIT).await? else {
                continue;
            };
            for (_, signature) in signatures {
                let payload = payload.clone();
                if signature::vouches(key, digest, &Signature { payload, signature }) {
                    return Ok(Some(true));
                }
                verdict = Some(false);
            }
        }
        Ok(verdict)
    }

    /// A layer's blob in memory, compared with its digest; nothing if the registry lost it.
    async fn small_blob(
        &self,
        layer: &Descriptor,
        limit: u64,
    ) -> Result<Option<Bytes>, RegistryError> {
        let digest = layer.digest.as_str();
        let operation = format!("reading blob {digest:?} of {}", self.repository);
        if !is_digest(digest) {
            let reason = "that is no digest: only `sha256:` with 64 hexadecimal digits is read";
            return Err(self.protocol(&operation, reason));
        }
        let too_large = || self.protocol(&operation, &format!("it has more than {limit} bytes"));
        if layer.size > limit {
            return Err(too_large());
        }
        let Some(mut stream) = self.registry.get_blob(&self.repository, digest).await? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.try_next().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(too_large());
            }
        }
        if Sha256Digest::of(&bytes).to_string() != digest {
            return Err(self.protocol(&operation, "the registry's bytes have another digest"));
        }
        Ok(Some(bytes.into()))
    }

    /// Brings a small blob into the repository, unless it is there.
    async fn send(&self, bytes: &Bytes) -> Result<(), RegistryError> {
        let digest = Sha256Digest::of(bytes).to_string();
        if self.registry.head_blob(&self.repository, &digest).await? {
            return Ok(());
        }
        let blob = Blob {
            source: BlobSource::Memory(bytes.clone()),
            digest,
            size: bytes.len() as u64,
            progress: None,
        };
        let (registry, policy) = (self.registry, self.policy);
        upload(
            registry,
            &self.repository,
            &blob,
            None,
            policy,
            self.reporter,
        )
        .await
        .map(|_| ())
    }

    /// The list that clients keep under a tag.
    async fn list(&self, digest: &str) -> Result<Index, RegistryError> {
        let tag = referrers_tag(digest);
        let operation = format!("reading the list of referrers {}:{tag}", self.repository);
        let Some(raw) = self.registry.get_manifest(&self.repository, &tag).await? else {
            return Ok(Index::empty());
        };
        // GitLab's takes such a tag for the digest in it. An index that is the subject would even be read as a list.
        if raw.digest() == digest {
            let reason = "this registry can neither list what refers to an image nor keep such a list under a tag; only \
                          signatures (--key) can be kept there";
            return Err(self.protocol(&operation, reason));
        }
        let no_index =
            |found: &str| format!("what is there is no index ({found}): remove that tag");
        let essence = raw.media_type.split(';').next().unwrap_or_default();
        if !essence
            .trim()
            .eq_ignore_ascii_case(OCI_IMAGE_INDEX_MEDIA_TYPE)
        {
            return Err(self.protocol(&operation, &no_index(&raw.media_type)));
        }
        serde_json::from_slice(&raw.bytes)
            .map_err(|error| self.protocol(&operation, &no_index(&error.to_string())))
    }

    async fn join_list(&self, digest: &str, entry: &Descriptor) -> Result<(), RegistryError> {
        let tag = referrers_tag(digest);
        let operation = format!("adding to the list of referrers {}:{tag}", self.repository);
        for _ in 0..WRITE_ATTEMPTS {
            // Read again after it was written: another client may have written an older list over it.
            let mut index = self.list(digest).await?;
            if !index.join(entry) {
                return Ok(());
            }
            let raw = index
                .raw()
                .map_err(|error| self.protocol(&operation, &error.to_string()))?;
            self.registry
                .put_manifest(&self.repository, &tag, &raw)
                .await?;
        }
        let index = self.list(digest).await?;
        if index
            .manifests
            .iter()
            .any(|other| other.digest == entry.digest)
        {
            return Ok(());
        }
        Err(self.overtaken(&operation))
    }

    fn overtaken(&self, operation: &str) -> RegistryError {
        let reason = "somebody else keeps writing it: run the command again";
        self.protocol(operation, reason)
    }

    fn protocol(&self, operation: &str, reason: &str) -> RegistryError {
        RegistryError::Protocol {
            operation: operation.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// The layers that hold statements of this kind, each once.
fn envelopes<'a>(manifest: Option<&'a Manifest>, predicate: &str) -> Vec<&'a Descriptor> {
    let mut seen = BTreeSet::new();
    let layers = manifest.into_iter().flat_map(|manifest| &manifest.layers);
    let wanted = layers.filter(|layer| {
        let states = layer.annotations.get(dsse::PREDICATE_ANNOTATION);
        layer.media_type == dsse::MEDIA_TYPE && states.is_some_and(|found| found == predicate)
    });
    wanted
        .filter(|layer| seen.insert(layer.digest.as_str()))
        .collect()
}

/// A document as a statement, and what it states.
fn statement(
    name: &str,
    digest: &str,
    media_type: &str,
    document: &[u8],
) -> Result<(&'static str, Vec<u8>), serde_json::Error> {
    if media_type == spdx::MEDIA_TYPE {
        let statement = dsse::spdx_statement(name, digest, document)?;
        return Ok((dsse::SPDX_PREDICATE, statement));
    }
    Ok((provenance::PREDICATE_TYPE, document.to_vec()))
}
