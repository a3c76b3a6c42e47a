//! Which images in manifests stand for components.

use std::collections::BTreeMap;

use oci_distribution::Reference;

use crate::images::destination::{DOCKER_HUB, Destination};
use crate::images::lock::Lock;

/// Names of this machine, where the only registries are our own.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The components and the places that their images are at or were.
#[derive(Debug, Clone)]
pub struct Ours {
    components: Vec<String>,
    registry: String,
    /// Repository -> component: where images go now, and where the lock says that they went.
    repositories: BTreeMap<String, String>,
}

impl Ours {
    /// `components` are all that exist.
    pub fn new(components: Vec<String>, destination: &Destination, lock: &Lock) -> Self {
        let now = components
            .iter()
            .map(|name| (destination.repository(name), name.clone()));
        let before = lock
            .components
            .iter()
            .filter(|(name, _)| components.contains(name))
            .map(|(name, entry)| (entry.repository.clone(), name.clone()));
        Self {
            repositories: before.chain(now).collect(),
            registry: destination.registry.clone(),
            components,
        }
    }

    /// All components, for messages.
    pub(super) fn list(&self) -> String {
        self.components.join(", ")
    }

    /// The component that an image in a manifest stands for.
    pub fn component_of(&self, image: &str) -> Option<&str> {
        let reference: Reference = image.parse().ok()?;
        let (registry, repository) = (reference.registry(), reference.repository());
        let whole = format!("{registry}/{repository}");
        if let Some(component) = self.repositories.get(&whole) {
            return Some(component);
        }
        let known = registry == DOCKER_HUB || registry == self.registry || is_local(registry);
        let last = repository.rsplit('/').next()?;
        self.components
            .iter()
            .map(String::as_str)
            .find(|component| known && *component == last)
    }
}

fn is_local(registry: &str) -> bool {
    LOCAL
        .iter()
        .any(|name| registry == *name || registry.starts_with(&format!("{name}:")))
}
