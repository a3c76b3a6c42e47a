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
        let images = index.manifests.iter().filter_map(|child| {
            let field = |name: &str| {
                let platform = child.other.get("platform")?;
                Some(platform.get(name)?.as_str()?.to_owned())
            };
            let parts = [field("os"), field("architecture"), field("variant")];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            // What builders put beside images is marked as being for no platform.
            let image = parts.first().is_some_and(|os| os != "unknown");
            image.then_some(async move {
                Ok::<_, ImageError>(Platform {
                    manifest: store.image(&child.digest).await?,
                    platform: parts.join("/"),
                })
            })
        });
        try_join_all(images).await
    }
}

fn not_an_image(image: &str, reason: &str) -> AttestError {
    AttestError::Image {
        image: image.to_owned(),
        reason: format!("its manifest is none of an image ({reason})"),
    }
}
