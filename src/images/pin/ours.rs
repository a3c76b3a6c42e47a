//! Which images in manifests stand for components.
//!
//! Not every image whose last part is a component's name: `node:22` is somebody else's, also where there is a component `node`.

use std::collections::BTreeMap;

use oci_distribution::Reference;

use super::PinError;
use crate::images::destination::{DOCKER_HUB, Destination};
use crate::images::hash::is_input_tag;
use crate::images::lock::Lock;
use crate::images::reference;

/// Names of this machine, where the only registries are our own.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The components and the places that their images are at or were.
#[derive(Debug, Clone)]
pub struct Ours {
    components: Vec<String>,
    registry: String,
    /// Repository -> component: where images go now, where the lock says that they went, and what the map says.
    repositories: BTreeMap<String, String>,
    kept: Kept,
}

/// Images of others that may stay without a digest: references as written, with or without a tag.
#[derive(Debug, Clone, Default)]
pub struct Kept(Vec<String>);

impl Kept {
    /// What `--keep` and `images.keep` name.
    pub fn new(images: &[String]) -> Result<Self, PinError> {
        let wrong = images.iter().find(|image| reference::parse(image).is_err());
        match wrong {
            Some(image) => Err(PinError::Repository {
                option: "--keep",
                text: image.clone(),
            }),
            None => Ok(Self(images.to_vec())),
        }
    }

    /// Shall this image stay what it is?
    pub fn keeps(&self, image: &str) -> bool {
        let Ok(reference) = reference::parse(image) else {
            return false;
        };
        self.0.iter().any(|kept| {
            let Ok(wanted) = reference::parse(kept) else {
                return false;
            };
            (wanted.registry(), wanted.repository())
                == (reference.registry(), reference.repository())
                && (!has_tag(kept) || wanted.tag() == reference.tag())
        })
    }
}

impl Ours {
    /// `components` are all that exist.
    pub fn new(components: Vec<String>, destination: &Destination, lock: &Lock) -> Self {
        let mut ours = Self::nowhere(components, lock);
        ours.registry.clone_from(&destination.registry);
        let now = ours
            .components
            .iter()
            .map(|name| (destination.repository(name), name.clone()));
        ours.repositories.extend(now.collect::<Vec<_>>());
        ours
    }

    /// The components where nobody says at which registry: known are the places that the lock names.
    pub fn nowhere(components: Vec<String>, lock: &Lock) -> Self {
        let before = lock
            .components
            .iter()
            .filter(|(name, _)| components.contains(name))
            .map(|(name, entry)| (entry.repository.clone(), name.clone()));
        Self {
            repositories: before.collect(),
            registry: DOCKER_HUB.to_owned(),
            components,
            kept: Kept::default(),
        }
    }

    /// Is there a component of this name?
    pub fn is_component(&self, name: &str) -> bool {
        self.named(name).is_some()
    }

    /// Are there no components?
    pub fn is_empty(&self) -> bool {
        self.components.is_empty()
    }

    /// Adds what the user says: `map` is repository -> component, `keep` are images to leave alone, with or without a tag.
    pub fn with(
        mut self,
        map: &BTreeMap<String, String>,
        keep: &[String],
    ) -> Result<Self, PinError> {
        for (written, component) in map {
            if self.named(component).is_none() {
                return Err(PinError::MapTarget {
                    repository: written.clone(),
                    component: component.clone(),
                    candidates: self.nearest(component),
                });
            }
            // With a tag, it would stand for the repository's other images as well.
            let repository = repository_of(written).filter(|_| !has_tag(written));
            let repository = repository.ok_or_else(|| PinError::Repository {
                option: "--map",
                text: written.clone(),
            })?;
            let other = self
                .repositories
                .insert(repository.clone(), component.clone())
                .filter(|other| other != component);
            if let Some(other) = other {
                return Err(PinError::TwoComponents {
                    repository,
                    first: other,
                    second: component.clone(),
                });
            }
        }
        self.kept = Kept::new(keep)?;
        for image in keep {
            let whole = repository_of(image);
            let component = whole.and_then(|whole| self.repositories.get(&whole));
            let component = component.map(String::as_str);
            if let Some(component) = self.named(image).or(component) {
                return Err(PinError::KeptComponent {
                    image: image.clone(),
                    component: component.to_owned(),
                });
            }
        }
        Ok(self)
    }

    /// All components, for messages: the one that resembles `image` most comes first.
    pub(super) fn nearest(&self, image: &str) -> String {
        by_resemblance(image, self.components.iter().map(String::as_str).collect())
    }

    /// Shall this image stay what it is?
    pub fn keeps(&self, image: &str) -> bool {
        self.kept.keeps(image)
    }

    /// The component that an image in a manifest stands for: the bare name, a repository that is ours, or a tag that we make.
    pub fn component_of(&self, image: &str) -> Option<&str> {
        if let Some(component) = self.named(image) {
            return Some(component);
        }
        let reference: Reference = reference::parse(image).ok()?;
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

    /// The component that an image stands for if it is one that was pinned or tagged by us.
    pub(super) fn pinned_component(&self, image: &str) -> Option<&str> {
        let reference: Reference = reference::parse(image).ok()?;
        let made = reference.digest().is_some() || reference.tag().is_some_and(is_input_tag);
        self.component_of(image).filter(|_| made)
    }

    /// The component that is called as an image that is not ours.
    pub(super) fn namesake(&self, image: &str) -> Option<&str> {
        let reference: Reference = reference::parse(image).ok()?;
        self.named(reference.repository().rsplit('/').next()?)
    }

    fn named(&self, name: &str) -> Option<&str> {
        let found = self.components.iter().find(|component| *component == name);
        found.map(String::as_str)
    }
}

/// A repository in full, e.g. `docker.io/acme/web`; a tag or digest in `text` counts for nothing.
pub(super) fn repository_of(text: &str) -> Option<String> {
    let reference: Reference = reference::parse(text).ok()?;
    Some(format!(
        "{}/{}",
        reference.registry(),
        reference.repository()
    ))
}

/// Does a reference name its tag?
pub(super) fn has_tag(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    name.rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'))
}

/// The repository as written: without tag and digest.
pub(super) fn name_of(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or_default();
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

fn last_part(image: &str) -> &str {
    name_of(image).rsplit('/').next().unwrap_or_default()
}

/// `names` for messages, the one that resembles `image` most first.
pub(super) fn by_resemblance(image: &str, mut names: Vec<&str>) -> String {
    let wanted = last_part(image);
    names.sort_by_cached_key(|name| distance(wanted, last_part(name)));
    if names.is_empty() {
        "there are none".to_owned()
    } else {
        names.join(", ")
    }
}

/// How many letters have to be typed, deleted or replaced to make one name of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut next = vec![index + 1];
        for ((replaced, pair), expected) in row.iter().zip(row.iter().skip(1)).zip(&other) {
            let left = next.last().copied().unwrap_or_default();
            let replaced = replaced + usize::from(letter != *expected);
            next.push(replaced.min(pair + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

fn is_local(registry: &str) -> bool {
    LOCAL
        .iter()
        .any(|name| registry == *name || registry.starts_with(&format!("{name}:")))
}
