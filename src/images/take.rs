//! Images as a registry has them, for somebody who carries them elsewhere: manifests byte for byte, and blobs as they come.
//!
//! Everything is asked for by digest and compared with it. Boundary: knows what belongs to an image; where its bytes go is the
//! caller's.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt as _;
use serde::Deserialize;

use super::ImageError;
use super::event::Reporter;
use super::hash::is_digest;
use super::registry::retry::Policy;
use super::registry::{Descriptor, RawManifest, Registry, RegistryError};

/// An index in an index is rare, and one below that is a mistake.
const DEEPEST: u32 = 2;
/// More than a manifest has.
const LONGEST_MANIFEST: u64 = 4 * 1024 * 1024;

/// An image, but for the bytes of its blobs.
#[derive(Debug, Clone)]
pub struct Taken {
    /// What the digest names: a manifest, or an index.
    pub top: RawManifest,
    /// Every manifest and index by digest, that one included.
    pub manifests: BTreeMap<String, Bytes>,
    /// Sizes of configurations and layers by digest.
    pub blobs: BTreeMap<String, u64>,
}

/// Why an image could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The receiver of the bytes did not want them.
    #[error("the bytes of {digest} could not be kept")]
    Kept {
        digest: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// As much of a manifest or an index as says what belongs to it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Parts {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Asks what belongs to the image; of an index only what runs on `platform` (`linux/amd64`), or all.
pub async fn ask(
    registry: &dyn Registry,
    repository: &str,
    digest: &str,
    platform: Option<&str>,
) -> Result<Taken, ImageError> {
    let top = manifest(registry, repository, digest).await?;
    let mut taken = Taken {
        top: top.clone(),
        manifests: BTreeMap::from([(digest.to_owned(), top.bytes.clone())]),
        blobs: BTreeMap::new(),
    };
    let mut open = vec![(top, digest.to_owned(), 0)];
    while let Some((raw, digest, depth)) = open.pop() {
        let wrong = |reason: String| RegistryError::Protocol {
            operation: format!("reading the manifest {digest} of {repository}"),
            reason,
        };
        let parts: Parts =
            serde_json::from_slice(&raw.bytes).map_err(|error| wrong(error.to_string()))?;
        let blobs = parts.config.iter().chain(&parts.layers);
        for blob in blobs {
            if !is_digest(&blob.digest) {
                let reason = format!("{:?} is no digest of a blob that can be read", blob.digest);
                return Err(wrong(reason).into());
            }
            let known = taken.blobs.insert(blob.digest.clone(), blob.size);
            if known.is_some_and(|size| size != blob.size) {
                return Err(wrong(format!("{} has two sizes", blob.digest)).into());
            }
        }
        let Some(children) = parts.manifests else {
            if parts.config.is_none() {
                return Err(wrong("it is neither an image nor an index".to_owned()).into());
            }
            continue;
        };
        if depth >= DEEPEST {
            return Err(wrong("indexes in indexes in an index".to_owned()).into());
        }
        let wanted: Vec<Descriptor> = children
            .into_iter()
            .filter(|child| platform.is_none_or(|platform| runs_on(child, platform)))
            .collect();
        if wanted.is_empty() {
            let platform = platform.unwrap_or("any platform");
            return Err(wrong(format!("it has no image for {platform}: build the component for the nodes' platform, or pin another image")).into());
        }
        for child in wanted {
            if taken.manifests.contains_key(&child.digest) {
                continue;
            }
            let raw = manifest(registry, repository, &child.digest).await?;
            let bytes = raw.bytes.clone();
            taken.manifests.insert(child.digest.clone(), bytes);
            open.push((raw, child.digest, depth + 1));
        }
    }
    Ok(taken)
}

/// Whether an entry of an index is for this platform. One that names none is for all.
fn runs_on(child: &Descriptor, platform: &str) -> bool {
    let Some(named) = child.other.get("platform") else {
        return true;
    };
    let named = Platform::deserialize(named);
    named.is_ok_and(|named| format!("{}/{}", named.os, named.architecture) == platform)
}

async fn manifest(
    registry: &dyn Registry,
    repository: &str,
    digest: &str,
) -> Result<RawManifest, ImageError> {
    let wrong = |reason: String| RegistryError::Protocol {
        operation: format!("reading the manifest {digest} of {repository}"),
        reason,
    };
    if !is_digest(digest) {
        return Err(wrong("only `sha256:` with 64 hexadecimal digits is read".to_owned()).into());
    }
    let raw = registry.get_manifest(repository, digest).await?;
    let raw = raw.ok_or_else(|| {
        wrong(
            "the registry does not have it: run `orch images push --pin`, or pin the image anew"
                .to_owned(),
        )
    })?;
    if raw.digest() != digest {
        return Err(wrong(format!("its bytes have digest {}", raw.digest())).into());
    }
    if raw.bytes.len() as u64 > LONGEST_MANIFEST {
        return Err(wrong("it is too long".to_owned()).into());
    }
    Ok(raw)
}

/// Gives a blob's bytes to `keep`, each once, in order. A stream that breaks is asked for anew, and what `keep` has of it is
/// passed over; whoever keeps the bytes compares them with the digest.
pub async fn blob(
    registry: &dyn Registry,
    repository: &str,
    (digest, size): (&str, u64),
    (policy, reporter): (Policy, &dyn Reporter),
    mut keep: impl FnMut(&[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), TakeError> {
    let mut kept = 0_u64;
    let mut attempt = 1;
    loop {
        let received = receive(registry, repository, (digest, size), &mut kept, &mut keep).await;
        match received {
            Err(TakeError::Image(ImageError::Registry(error))) => policy
                .wait(attempt, error, reporter)
                .await
                .map_err(ImageError::from)?,
            other => return other,
        }
        attempt += 1;
    }
}

async fn receive(
    registry: &dyn Registry,
    repository: &str,
    (digest, size): (&str, u64),
    kept: &mut u64,
    keep: &mut impl FnMut(&[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<(), TakeError> {
    let protocol = |reason: String| {
        ImageError::from(RegistryError::Protocol {
            operation: format!("reading blob {digest} of {repository}"),
            reason,
        })
    };
    let stream = registry.get_blob(repository, digest).await;
    let stream = stream.map_err(ImageError::from)?;
    let mut stream = stream.ok_or_else(|| {
        protocol("the registry does not have it: run `orch images push`".to_owned())
    })?;
    let mut position = 0_u64;
    while let Some(chunk) = stream.try_next().await.map_err(ImageError::from)? {
        let end = position.saturating_add(chunk.len() as u64);
        if end > size {
            return Err(protocol(format!(
                "it is longer than the {size} bytes that its manifest gives"
            ))
            .into());
        }
        // What came before the stream broke is not wanted twice.
        let known = usize::try_from(kept.saturating_sub(position)).unwrap_or(usize::MAX);
        if let Some(new) = chunk
            .get(known.min(chunk.len())..)
            .filter(|new| !new.is_empty())
        {
            keep(new).map_err(|source| TakeError::Kept {
                digest: digest.to_owned(),
                source,
            })?;
            *kept = end;
        }
        position = end;
    }
    if position != size {
        let reason = format!("it ended after {position} of {size} bytes");
        return Err(protocol(reason).into());
    }
    Ok(())
}
