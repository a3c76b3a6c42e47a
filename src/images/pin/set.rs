//! Digests that somebody gives (`--set NAME=REF@DIGEST`), and the images in manifests that they are for.

use std::collections::BTreeMap;

use super::{ImageScalar, Manifest, Ours, PinError, is_pinned, ours};
use crate::images::reference;

/// Names and the references that their images shall get.
#[derive(Debug, Clone, Default)]
pub struct Given {
    references: BTreeMap<String, String>,
    /// Repository in full -> name.
    repositories: BTreeMap<String, String>,
}

impl Given {
    /// `pairs` are names and references with digests. A name is a component's, or a repository or bare name in the manifests.
    pub fn new(pairs: &[(String, String)], ours: &Ours) -> Result<Self, PinError> {
        let mut given = Self::default();
        for (name, reference) in pairs {
            if !is_pinned(reference) || reference::parse(reference).is_err() {
                return Err(PinError::SetDigest {
                    name: name.clone(),
                    text: reference.clone(),
                });
            }
            let other = given.references.insert(name.clone(), reference.clone());
            if other.is_some_and(|other| other != *reference) {
                return Err(PinError::SetTwice { name: name.clone() });
            }
            // A component's name is no repository: Docker Hub's `node` is not the component `node`.
            let own = (!ours.is_component(name) && !ours::has_tag(name))
                .then(|| ours::repository_of(name))
                .flatten();
            // A name with a tag means that image alone, and a repository may hold others.
            let given_before = (!ours::has_tag(name))
                .then(|| ours::repository_of(reference))
                .flatten();
            let repositories = [given_before, own].into_iter().flatten();
            for repository in repositories {
                let other = given.repositories.insert(repository.clone(), name.clone());
                if let Some(first) = other.filter(|other| other != name) {
                    return Err(PinError::TwoComponents {
                        repository,
                        first,
                        second: name.clone(),
                    });
                }
            }
        }
        Ok(given)
    }

    /// Was anything given?
    pub fn is_empty(&self) -> bool {
        self.references.is_empty()
    }

    /// The name that an image was given a reference under, and that reference.
    pub(super) fn find(&self, image: &str, ours: &Ours) -> Option<(&str, &str)> {
        let whole = ours::repository_of(image);
        let name = match (ours.component_of(image), whole) {
            (Some(component), _) if self.references.contains_key(component) => component,
            (_, _) if self.references.contains_key(image) => image,
            (_, Some(whole)) => self.repositories.get(&whole)?,
            _ => return None,
        };
        let (name, reference) = self.references.get_key_value(name)?;
        Some((name, reference))
    }

    /// Names that are in no manifest are typing errors.
    pub(super) fn check_used(
        &self,
        images: &[(&Manifest, &ImageScalar)],
        ours: &Ours,
    ) -> Result<(), PinError> {
        let used: Vec<&str> = images
            .iter()
            .filter_map(|(_, image)| Some(self.find(&image.value, ours)?.0))
            .collect();
        let Some(name) = self
            .references
            .keys()
            .find(|name| !used.contains(&name.as_str()))
        else {
            return Ok(());
        };
        let mut names: Vec<&str> = images
            .iter()
            .map(|(_, image)| {
                ours.component_of(&image.value)
                    .unwrap_or_else(|| ours::name_of(&image.value))
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        Err(PinError::SetUnused {
            name: name.clone(),
            candidates: ours::by_resemblance(name, names),
        })
    }
}
