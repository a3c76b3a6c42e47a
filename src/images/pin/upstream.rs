//! Digests of images that nobody here builds: each tag is asked for once, with one request, all at the same time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::try_join_all;
use oci_distribution::Reference;

use super::{ImageScalar, Manifest, Ours, Problem, is_pinned, originals, ours};
use crate::images::ImageError;
use crate::images::destination::CONCURRENT_REQUESTS;
use crate::images::event::Reporter;
use crate::images::reference;
use crate::images::registry::http::{Endpoint, HttpRegistry};
use crate::images::registry::limit::Limited;
use crate::images::registry::meter::Meter;
use crate::images::registry::retry::{Policy, Retrying};
use crate::images::registry::{Registry, RegistryError, credentials};

/// How registries are asked.
pub struct Asking {
    /// How patiently.
    pub policy: Policy,
    /// Without TLS, also where that is not this machine.
    pub plain_http: bool,
    /// The certificate of a further CA that is trusted.
    pub ca_file: Option<PathBuf>,
    /// Told of repetitions.
    pub reporter: Arc<dyn Reporter>,
    /// Counts requests.
    pub meter: Arc<Meter>,
}

/// Is an image's digest to be found out? With `update`, also that of one that has a digest beside its tag.
pub(super) fn is_wanted(image: &str, ours: &Ours, update: bool) -> bool {
    let settled = if update && ours::has_tag(image) {
        false
    } else {
        is_pinned(image)
    };
    !settled && ours.component_of(image).is_none() && !ours.keeps(image)
}

/// Image without its digest -> the digest that its registry has for it now.
pub(super) async fn resolve(
    wanted: &[(&Manifest, &ImageScalar)],
    asking: &Asking,
) -> Result<BTreeMap<String, String>, ImageError> {
    let mut clients: BTreeMap<String, Arc<dyn Registry>> = BTreeMap::new();
    // The same image may be written in several ways, and stand in many files.
    let mut questions: BTreeMap<String, (Reference, &Manifest, &ImageScalar)> = BTreeMap::new();
    for (manifest, image) in wanted {
        let text = originals::without_digest(&image.value);
        let reference: Reference = reference::parse(text).map_err(|_| {
            let image_text = image.value.clone();
            manifest.fault(image, Problem::NotReference { image: image_text })
        })?;
        if !clients.contains_key(reference.registry()) {
            let registry = reference.registry().to_owned();
            let client = asking.client(&registry)?;
            clients.insert(registry, client);
        }
        questions
            .entry(reference.whole())
            .or_insert((reference, manifest, image));
    }
    let asked = questions
        .into_iter()
        .map(|(whole, (reference, manifest, image))| {
            let client = clients.get(reference.registry()).cloned();
            async move {
                let digest = match client {
                    Some(client) => {
                        let tag = reference.tag().unwrap_or("latest");
                        client.head_manifest(reference.repository(), tag).await?
                    }
                    None => None,
                };
                let absent = || {
                    let problem = Problem::Absent {
                        image: originals::without_digest(&image.value).to_owned(),
                        registry: reference.registry().to_owned(),
                    };
                    ImageError::Pin(manifest.fault(image, problem))
                };
                Ok::<_, ImageError>((whole, digest.ok_or_else(absent)?))
            }
        });
    let answers: BTreeMap<String, String> = try_join_all(asked).await?.into_iter().collect();
    let digests = wanted.iter().filter_map(|(_, image)| {
        let text = originals::without_digest(&image.value);
        let reference: Reference = reference::parse(text).ok()?;
        Some((text.to_owned(), answers.get(&reference.whole())?.clone()))
    });
    Ok(digests.collect())
}

impl Asking {
    /// A client that is patient and modest.
    pub fn client(&self, registry: &str) -> Result<Arc<dyn Registry>, RegistryError> {
        let client = HttpRegistry::new(
            Endpoint::of(registry, self.plain_http)?.trusting(self.ca_file.clone()),
            credentials::find(registry)?,
            [],
            Arc::clone(&self.meter),
        )?;
        let limited = Limited::new(client, CONCURRENT_REQUESTS);
        Ok(Arc::new(Retrying::new(
            limited,
            self.policy,
            Arc::clone(&self.reporter),
        )))
    }
}
