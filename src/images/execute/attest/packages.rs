//! Reads the images under a digest for their packages.

use futures::future::try_join_all;

use super::Pipeline;
use super::documents::unwritable;
use crate::images::ImageError;
use crate::images::attest::AttestError;
use crate::images::attest::artifact::{Index, Manifest};
use crate::images::attest::sbom::Subject;
use crate::images::attest::store::Store;
use crate::images::event::ImageEvent;
use crate::images::hash::is_digest;
use crate::images::input::Source;
use crate::images::layers::LayerStore;
use crate::images::lock::Entry;
use crate::images::registry::RawManifest;

/// An image of one platform.
pub(super) struct Platform {
    pub(super) manifest: RawManifest,
    pub(super) platform: String,
}

impl Pipeline {
    /// The lists of packages of an image that was pushed, one a platform.
    pub async fn sbom(&self, component: &str) -> Result<Vec<Vec<u8>>, ImageError> {
        let prepared = self.prepare().await?;
        let registry = self.registry(&prepared.selection)?;
        let entry = self.locked(&prepared.lock, component)?;
        let inputs = self.locked_inputs(&prepared);
        self.check_fresh(entry, inputs.get(component), component)?;
        let source = prepared
            .sources
            .iter()
            .find(|source| source.component.name == component);
        let mut documents = Vec::new();
        if let Some(source) = source {
            let store = self.store(component, registry.as_ref());
            let manifest = store.image(&entry.digest).await?;
            for image in self.platforms(&store, source, manifest).await? {
                documents.push(self.list_packages(&store, source, entry, &image).await?);
            }
        }
        Ok(documents)
    }

    pub(super) async fn list_packages(
        &self,
        store: &Store<'_>,
        source: &Source,
        entry: &Entry,
        image: &Platform,
    ) -> Result<Vec<u8>, ImageError> {
        let name = format!("{}@{}", entry.repository, image.manifest.digest());
        let manifest: Manifest = serde_json::from_slice(&image.manifest.bytes)
            .map_err(|error| not_an_image(&name, &error.to_string()))?;
        let cache = LayerStore::new(&self.settings.cache);
        let (policy, reporter) = (self.settings.policy, self.reporter.as_ref());
        let layers = manifest.layers.iter().map(|layer| {
            let cache = &cache;
            async move {
                let wanted = (layer.digest.as_str(), layer.size);
                let (registry, repository) = (store.registry, store.repository.as_str());
                let path = cache.fetch(registry, repository, wanted, policy, reporter);
                Ok::<_, ImageError>((layer.digest.clone(), path.await?))
            }
        });
        let subject = Subject {
            repository: entry.repository.clone(),
            digest: image.manifest.digest(),
            platform: image.platform.clone(),
            layers: try_join_all(layers).await?,
        };
        let context = source.context.clone();
        let bom = tokio::task::spawn_blocking(move || subject.describe(&context))
            .await
            .map_err(|_| AttestError::Interrupted { image: name })??;
        for remark in &bom.remarks {
            self.reporter.event(ImageEvent::Incomplete {
                component: source.component.name.clone(),
                remark: remark.clone(),
            });
        }
        let bytes = bom.to_json();
        Ok(bytes.map_err(unwritable(entry, "list of packages"))?)
    }

    /// The images under a manifest: itself, or those of an index.
    pub(super) async fn platforms(
        &self,
        store: &Store<'_>,
        source: &Source,
        manifest: RawManifest,
    ) -> Result<Vec<Platform>, ImageError> {
        let Ok(index) = serde_json::from_slice::<Index>(&manifest.bytes) else {
            let platform = source.component.platforms.first().cloned();
            return Ok(vec![Platform {
                manifest,
                platform: platform.unwrap_or_default(),
            }]);
        };
        let name = format!("{}@{}", store.repository, manifest.digest());
        let mut images = Vec::new();
        for (digest, platform) in images_of(&name, &index)? {
            images.push(async move {
                Ok::<_, ImageError>(Platform {
                    manifest: store.image(digest).await?,
                    platform,
                })
            });
        }
        try_join_all(images).await
    }
}

/// Digest and platform of each image of the index called `name`.
fn images_of<'a>(name: &str, index: &'a Index) -> Result<Vec<(&'a str, String)>, AttestError> {
    let mut images = Vec::new();
    for child in &index.manifests {
        let field = |name: &str| {
            let platform = child.other.get("platform")?;
            Some(platform.get(name)?.as_str()?.to_owned())
        };
        let parts = [field("os"), field("architecture"), field("variant")];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        // What builders put beside images is marked as being for no platform.
        if parts.first().is_none_or(|os| os == "unknown") {
            continue;
        }
        // It becomes part of a URL.
        if !is_digest(&child.digest) {
            return Err(AttestError::Image {
                image: name.to_owned(),
                reason: format!(
                    "it lists an image with the digest {:?}, and only `sha256:` with 64 hexadecimal digits is read: \
                     build and push the image again",
                    child.digest
                ),
            });
        }
        images.push((child.digest.as_str(), parts.join("/")));
    }
    Ok(images)
}

fn not_an_image(image: &str, reason: &str) -> AttestError {
    AttestError::Image {
        image: image.to_owned(),
        reason: format!("its manifest is none of an image ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(digest: &str, os: &str) -> Index {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"x","digest":"{digest}","size":1,
                "platform":{{"os":"{os}","architecture":"arm64","variant":"v8"}}}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_index_names_its_images_by_digests_and_by_nothing_else() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let index = listed(&digest, "linux");
        let images = images_of("me/app@x", &index).unwrap();
        assert_eq!(images, [(digest.as_str(), "linux/arm64/v8".to_owned())]);
        assert_eq!(images_of("me/app@x", &listed("x", "unknown")).unwrap(), []);
        for wrong in ["latest", "../../other/manifests/x", "sha256:aa", ""] {
            let error = images_of("me/app@x", &listed(wrong, "linux")).unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains("me/app@x") && said.contains(&format!("{wrong:?}")),
                "{said}"
            );
        }
    }
}
