//! Which images in manifests stand for components.
//!
//! Not every image whose last part is a component's name: `node:22` is somebody else's, also where there is a component `node`.

use std::collections::BTreeMap;

use oci_distribution::Reference;

use crate::images::destination::{DOCKER_HUB, Destination};
use crate::images::hash::is_input_tag;
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

    /// The component that an image in a manifest stands for: the bare name, a repository that is ours, or a tag that we make.
    pub fn component_of(&self, image: &str) -> Option<&str> {
        if let Some(component) = self.named(image) {
            return Some(component);
        }
        let reference: Reference = image.parse().ok()?;
        let (registry, repository) = (reference.registry(), reference.repository());
        let whole = format!("{registry}/{repository}");
        if let Some(component) = self.repositories.get(&whole) {
            return Some(component);
        }
        // Another namespace is that of a colleague or of an earlier login.
        let known = registry == DOCKER_HUB || registry == self.registry || is_local(registry);
        let made_here = known && reference.tag().is_some_and(is_input_tag);
        self.named(repository.rsplit('/').next()?)
            .filter(|_| made_here)
    }

    /// The component that somebody may have meant by an image that is not ours.
    pub(super) fn candidate(&self, image: &str) -> Option<&str> {
        let reference: Reference = image.parse().ok()?;
        self.named(reference.repository().rsplit('/').next()?)
    }

    fn named(&self, name: &str) -> Option<&str> {
        let found = self.components.iter().find(|component| *component == name);
        found.map(String::as_str)
    }
}

fn is_local(registry: &str) -> bool {
    LOCAL
        .iter()
        .any(|name| registry == *name || registry.starts_with(&format!("{name}:")))
}
