//! The documents about an image: made from what was built, unless they are there.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::Pipeline;
use super::packages::Platform;
use crate::images::ImageError;
use crate::images::attest::artifact::document;
use crate::images::attest::dsse;
use crate::images::attest::key::PrivateKey;
use crate::images::attest::provenance::{self, Build, COMPONENT};
use crate::images::attest::store::{Referrers, Store};
use crate::images::attest::{
    AttestError, FORMAT, INPUT, PROVENANCE_VERSION, REVISION, SBOM_VERSION, git,
    provenance_annotations, sbom_annotations, spdx,
};
use crate::images::execute::gather::Prepared;
use crate::images::input::{Input, Source};
use crate::images::lock::Entry;
use crate::images::registry::{Descriptor, RawManifest};

/// How many lists of packages are compared with what the key signed. Whoever may push can put any number there.
const CANDIDATES: usize = 16;

/// A document that is at an image.
pub(super) struct Placed {
    /// Digest of its manifest.
    pub(super) digest: String,
    /// It was not there before.
    pub(super) new: bool,
    /// Its bytes, if they were made here or this key signed them before. Others are never signed.
    pub(super) made: Option<Bytes>,
}

impl Placed {
    /// Made by whoever may push.
    fn there(entry: &Descriptor) -> Self {
        Self {
            digest: entry.digest.clone(),
            new: false,
            made: None,
        }
    }
}

impl Pipeline {
    /// The list of packages that is at the image now. With a key, one that is there counts only if this key signed it.
    pub(super) async fn attach_sbom(
        &self,
        store: &Store<'_>,
        source: &Source,
        entry: &Entry,
        image: &Platform,
        key: Option<&PrivateKey>,
    ) -> Result<Placed, ImageError> {
        let digest = image.manifest.digest();
        let known = store.referrers(&digest).await?;
        let wanted = [(INPUT, entry.input.as_str()), (FORMAT, SBOM_VERSION)];
        let enough = known.all(spdx::MEDIA_TYPE, &wanted);
        if let Some(key) = key {
            let public = key.public();
            let sealed = store.sealed(&digest, dsse::SPDX_PREDICATE, &public).await?;
            for there in enough.into_iter().take(CANDIDATES) {
                let name = entry.repository.as_str();
                let found = store.sealed_document(name, &digest, spdx::MEDIA_TYPE, there, &sealed);
                if let Some(made) = found.await? {
                    return Ok(Placed {
                        made: Some(made),
                        ..Placed::there(there)
                    });
                }
            }
        } else if let Some(there) = store.first_there(&known, enough).await? {
            return Ok(Placed::there(there));
        }
        let bytes: Bytes = self
            .list_packages(store, source, entry, image)
            .await?
            .into();
        let artifact = document(
            &image.manifest,
            spdx::MEDIA_TYPE,
            bytes.clone(),
            sbom_annotations(&entry.input),
        );
        let artifact = artifact.map_err(unwritable(entry, "list of packages"))?;
        let new = store.attach(&digest, &known, &artifact).await?;
        Ok(Placed {
            digest: artifact.descriptor.digest,
            new,
            made: Some(bytes),
        })
    }

    pub(super) fn build_of(
        &self,
        prepared: &Prepared,
        inputs: &BTreeMap<String, Input>,
        source: &Source,
        entry: &Entry,
    ) -> Build {
        let component = &source.component;
        let bases = source.references.iter().map(|reference| {
            let dependency = inputs
                .get(reference)
                .filter(|_| source.dependencies.contains(reference));
            let identity = match dependency {
                Some(input) => format!("{COMPONENT}{}", input.hash),
                None => {
                    let known = prepared.bases.known(reference);
                    known.map(|known| known.to_string()).unwrap_or_default()
                }
            };
            (reference.clone(), identity)
        });
        Build {
            repository: entry.repository.clone(),
            digest: entry.digest.clone(),
            component: component.name.clone(),
            dockerfile: shown(&component.context, &component.dockerfile),
            target: component.target.clone(),
            arguments: component.args.keys().cloned().collect(),
            platforms: component.platforms.clone(),
            input: entry.input.clone(),
            parts: entry.parts.clone(),
            bases: bases.collect(),
            checkout: None,
        }
    }
}

/// The provenance that is at the image now. One commit after another may have the same sources: the first that was named stays
/// named, or the statements would pile up. But anybody who may push can write annotations, so with a key only what the key
/// signed counts.
pub(super) async fn attach_provenance(
    store: &Store<'_>,
    source: &Source,
    build: Build,
    manifest: &RawManifest,
    known: &Referrers,
    key: Option<&PrivateKey>,
) -> Result<Placed, ImageError> {
    let checkout = git::checkout(&source.context, &source.component.dockerfile).await;
    let build = Build { checkout, ..build };
    let commit = build.checkout.as_ref().filter(|checkout| !checkout.dirty);
    let commit = commit.map(|checkout| checkout.commit.clone());
    let image = format!("{}@{}", build.repository, build.digest);
    let written = |source| AttestError::Document {
        image: image.clone(),
        document: "provenance",
        source,
    };
    let mut told = Vec::new();
    if let Some(key) = key {
        let (digest, public) = (build.digest.as_str(), key.public());
        let sealed = store.sealed(digest, provenance::PREDICATE_TYPE, &public);
        for statement in sealed.await? {
            let found = build.told_by(&statement).map_err(written)?;
            told.extend(found.map(|found| (statement, found.commit)));
        }
    } else {
        let wanted = [(INPUT, build.input.as_str()), (FORMAT, PROVENANCE_VERSION)];
        let there = known.all(provenance::MEDIA_TYPE, &wanted);
        let (mut enough, unnamed): (Vec<_>, Vec<_>) = there
            .into_iter()
            .partition(|entry| entry.annotations.contains_key(REVISION));
        // Any commit is better than none.
        if commit.is_none() {
            enough.extend(unnamed);
        }
        if let Some(there) = store.first_there(known, enough).await? {
            return Ok(Placed::there(there));
        }
    }
    let named = told.iter().position(|(_, commit)| commit.is_some());
    let enough = named.or_else(|| (commit.is_none() && !told.is_empty()).then_some(0));
    let (bytes, commit) = match enough {
        Some(index) => told.swap_remove(index),
        None => (build.to_json().map_err(written)?, commit),
    };
    let bytes = Bytes::from(bytes);
    let annotations = provenance_annotations(&build.input, commit.as_deref());
    let artifact = document(manifest, provenance::MEDIA_TYPE, bytes.clone(), annotations);
    let artifact = artifact.map_err(written)?;
    let new = store.attach(&build.digest, known, &artifact).await?;
    Ok(Placed {
        digest: artifact.descriptor.digest,
        new,
        made: Some(bytes),
    })
}

/// The Dockerfile's name for people: below the context if it is there, and never a folder of this machine.
fn shown(context: &Path, dockerfile: &Path) -> String {
    let below = dockerfile.strip_prefix(context).ok();
    let name = below.or_else(|| dockerfile.file_name().map(Path::new));
    name.unwrap_or(dockerfile).display().to_string()
}

pub(super) fn unwritable(
    entry: &Entry,
    document: &'static str,
) -> impl Fn(serde_json::Error) -> AttestError {
    let image = entry.pinned();
    move |source| AttestError::Document {
        image: image.clone(),
        document,
        source,
    }
}
