//! What a repository holds: its tags, what they name, and what hangs on that.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use serde::Deserialize;

use super::decide::{Inventory, Links, Roots};
use crate::images::hash::is_input_tag;
use crate::images::registry::{RawManifest, Registry, RegistryError};

/// Manifests that were read. A digest never means anything else, so they are read once.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<String, Option<Links>>);

#[derive(Deserialize)]
struct Parsed {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    config: Option<Descriptor>,
    subject: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
}

/// Reads a repository; nothing if the registry has none of that name.
pub async fn read(
    registry: &dyn Registry,
    repository: &str,
    roots: &Roots,
    known: &mut Known,
) -> Result<Option<Inventory>, RegistryError> {
    let Some(names) = registry.list_tags(repository).await? else {
        return Ok(None);
    };
    let asked = names.into_iter().map(|tag| async move {
        let digest = registry.head_manifest(repository, &tag).await?;
        Ok::<_, RegistryError>(digest.map(|digest| (tag, digest)))
    });
    let tags: BTreeMap<String, String> = try_join_all(asked).await?.into_iter().flatten().collect();
    let mut inventory = Inventory {
        tags,
        manifests: BTreeMap::new(),
    };
    let candidate = |(tag, digest): (&String, &String)| {
        is_input_tag(tag) && !roots.tags.contains_key(tag) && !roots.digests.contains_key(digest)
    };
    // Where nothing can go, nobody needs to know what hangs on what.
    if !inventory.tags.iter().any(candidate) {
        return Ok(Some(inventory));
    }
    let mut waiting: BTreeSet<String> = inventory.tags.values().cloned().collect();
    // An index that is pinned by digest alone has no tag and needs its parts all the same.
    waiting.extend(roots.images.iter().cloned());
    let mut lists_referrers = true;
    while !waiting.is_empty() {
        fetch(registry, repository, &waiting, known).await?;
        let mut next = BTreeSet::new();
        for digest in std::mem::take(&mut waiting) {
            if let Some(Some(links)) = known.0.get(&digest) {
                next.extend(links.children.iter().cloned());
                next.extend(links.subject.iter().cloned());
                if lists_referrers {
                    let referrers = registry.referrers(repository, &digest).await?;
                    // A registry without such lists keeps them under tags, which are known already.
                    lists_referrers = referrers.is_some();
                    next.extend(referrers.into_iter().flatten().map(|item| item.digest));
                }
                inventory.manifests.insert(digest, links.clone());
            }
        }
        next.retain(|digest| !inventory.manifests.contains_key(digest) && !known.is_absent(digest));
        waiting = next;
    }
    Ok(Some(inventory))
}

impl Known {
    fn is_absent(&self, digest: &str) -> bool {
        self.0.get(digest).is_some_and(Option::is_none)
    }

    /// Forgets what was not there: it may be by now.
    pub fn refresh(&mut self) {
        self.0.retain(|_, links| links.is_some());
    }
}

async fn fetch(
    registry: &dyn Registry,
    repository: &str,
    digests: &BTreeSet<String>,
    known: &mut Known,
) -> Result<(), RegistryError> {
    let asked = digests
        .iter()
        .filter(|digest| !known.0.contains_key(*digest))
        .map(|digest| async move {
            let manifest = registry.get_manifest(repository, digest).await?;
            let links = match manifest {
                Some(manifest) => Some(links(repository, digest, &manifest)?),
                None => None,
            };
            Ok::<_, RegistryError>((digest.clone(), links))
        });
    let read = try_join_all(asked).await?;
    known.0.extend(read);
    Ok(())
}

fn links(repository: &str, digest: &str, manifest: &RawManifest) -> Result<Links, RegistryError> {
    let parsed: Parsed =
        serde_json::from_slice(&manifest.bytes).map_err(|error| RegistryError::Protocol {
            operation: format!("reading {repository}@{digest}"),
            reason: format!(
                "this is no image manifest that orch understands ({error}), so that nobody knows what it needs: delete it by \
                 hand, or keep all of {repository}"
            ),
        })?;
    let mut blobs: BTreeMap<String, u64> = parsed
        .layers
        .into_iter()
        .chain(parsed.config)
        .map(|blob| (blob.digest, blob.size))
        .collect();
    blobs.insert(digest.to_owned(), manifest.bytes.len() as u64);
    Ok(Links {
        children: parsed
            .manifests
            .into_iter()
            .map(|child| child.digest)
            .collect(),
        subject: parsed.subject.map(|subject| subject.digest),
        blobs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> RawManifest {
        RawManifest {
            media_type: String::new(),
            bytes: text.to_owned().into(),
        }
    }

    #[test]
    fn what_a_manifest_names_is_read() {
        let text = r#"{"config":{"digest":"c","size":2},"layers":[{"digest":"l","size":3}],
            "subject":{"digest":"s","size":9},"manifests":[{"digest":"m","size":4}]}"#;
        let links = links("a", "d", &manifest(text)).unwrap();
        assert_eq!(links.children, BTreeSet::from(["m".to_owned()]));
        assert_eq!(links.subject.as_deref(), Some("s"));
        assert_eq!(links.blobs["c"] + links.blobs["l"], 5);
        assert!(links.blobs.contains_key("d"));
    }

    #[test]
    fn what_cannot_be_read_stops_everything() {
        let error = links("me/app", "sha256:d", &manifest("<html>")).unwrap_err();
        assert!(error.to_string().contains("me/app@sha256:d"), "{error}");
    }
}
