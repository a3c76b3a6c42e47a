//! Which components a run is about: those named, otherwise those that manifests use, otherwise all. And what they are built on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::ImageError;
use super::component::{Component, ComponentError};
use super::dockerfile::Dockerfile;
use super::input::InputError;
use super::pin::{Manifest, Ours};

/// A run's components.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Those that go to the registry, by name.
    pub published: BTreeSet<String>,
    /// Those and everything they are built on.
    pub components: Vec<Component>,
    /// Base images of all components there are, selected or not.
    pub all_bases: BTreeSet<String>,
}

/// Selects out of `components`, which were found in `folder`.
pub fn select(
    components: &[Component],
    folder: &Path,
    names: &[String],
    manifests: &[Manifest],
    ours: &Ours,
) -> Result<Selection, ImageError> {
    let known: BTreeMap<&str, &Component> = components
        .iter()
        .map(|component| (component.name.as_str(), component))
        .collect();
    if let Some(name) = names.iter().find(|name| !known.contains_key(name.as_str())) {
        return Err(ImageError::Component(ComponentError::Unknown {
            name: name.clone(),
            folder: folder.display().to_string(),
            known: known.keys().copied().collect::<Vec<_>>().join(", "),
        }));
    }
    let published: BTreeSet<String> = if !names.is_empty() {
        names.iter().cloned().collect()
    } else if manifests.is_empty() {
        known.keys().map(|name| (*name).to_owned()).collect()
    } else {
        let images = manifests.iter().flat_map(|manifest| &manifest.images);
        images
            .filter_map(|image| ours.component_of(&image.value))
            .map(str::to_owned)
            .collect()
    };
    let mut references: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut all_bases = BTreeSet::new();
    for component in components {
        let (_, used) =
            Dockerfile::read_all(&component.dockerfile, &component.args, &component.platforms)
                .map_err(InputError::from)?;
        all_bases.extend(
            used.iter()
                .filter(|reference| {
                    !known.contains_key(reference.as_str()) || **reference == component.name
                })
                .cloned(),
        );
        references.insert(&component.name, used);
    }
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    let mut waiting: Vec<&str> = published.iter().map(String::as_str).collect();
    while let Some(name) = waiting.pop() {
        if wanted.insert(name) {
            let used = references.get(name).into_iter().flatten();
            waiting.extend(used.filter_map(|reference| {
                known
                    .get(reference.as_str())
                    .map(|found| found.name.as_str())
            }));
        }
    }
    let components = wanted
        .iter()
        .filter_map(|name| known.get(name).map(|component| (*component).clone()))
        .collect();
    Ok(Selection {
        published,
        components,
        all_bases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::component;
    use crate::images::destination::Destination;
    use crate::images::lock::Lock;
    use crate::images::registry::http::Endpoint;

    #[test]
    fn the_image_that_a_component_is_called_after_is_a_base() {
        let root = tempfile::tempdir().unwrap();
        for name in ["app", "nginx"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("Dockerfile"), "FROM nginx\n").unwrap();
        }
        let components = component::discover(root.path(), "linux/amd64").unwrap();
        let destination = Destination {
            registry: "docker.io".to_owned(),
            namespace: "me".to_owned(),
            endpoint: Endpoint::of("docker.io", false).unwrap(),
            credential: None,
            stand_in: None,
        };
        let names = components.iter().map(|component| component.name.clone());
        let ours = Ours::new(names.collect(), &destination, &Lock::default());
        let names = ["app".to_owned()];
        let selection = select(&components, root.path(), &names, &[], &ours).unwrap();
        assert_eq!(selection.components.len(), 2);
        assert_eq!(selection.all_bases, BTreeSet::from(["nginx".to_owned()]));
    }
}
