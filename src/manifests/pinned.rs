//! Which images a manifest runs, and the proof that each one is pinned.
//!
//! An image is pinned when its reference ends in `@sha256:` and 64 hexadecimal digits: what runs is
//! then what was built, whatever happens to the tag. What somebody declares to be kept needs no digest.

use std::marker::PhantomData;
use std::path::Path;

use super::load::origin;
use super::yaml::{Located, Node};
use super::{ImageUse, Manifest, ManifestError, Pinned, Stack, Unpinned};

/// Fields of a PodSpec that hold containers.
const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

impl Stack<Unpinned> {
    /// The same stack, once every image names its digest or is `kept` without one; otherwise all those that are neither.
    pub fn pinned(self, kept: impl Fn(&str) -> bool) -> Result<Stack<Pinned>, ManifestError> {
        let unpinned: Vec<_> = self
            .manifests
            .iter()
            .flat_map(|manifest| &manifest.images)
            .filter(|used| !is_pinned(&used.image) && !kept(&used.image))
            .cloned()
            .collect();
        if !unpinned.is_empty() {
            return Err(ManifestError::Unpinned { images: unpinned });
        }
        Ok(Stack {
            directory: self.directory,
            manifests: self.manifests.into_iter().map(assume_pinned).collect(),
        })
    }
}

fn assume_pinned(manifest: Manifest<Unpinned>) -> Manifest<Pinned> {
    Manifest {
        api_version: manifest.api_version,
        kind: manifest.kind,
        name: manifest.name,
        namespace: manifest.namespace,
        wave: manifest.wave,
        images: manifest.images,
        origin: manifest.origin,
        object: manifest.object,
        state: PhantomData,
    }
}

fn is_pinned(image: &str) -> bool {
    image.rsplit_once("@sha256:").is_some_and(|(name, digest)| {
        !name.is_empty()
            && digest.len() == 64
            && digest
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Every image below a node. PodSpecs are found by their fields and not by the kind around them, so
/// that custom workloads are held to the same rule.
pub(super) fn images(node: &Located, file: &Path) -> Vec<ImageUse> {
    let mut found = Vec::new();
    walk(node, file, &mut found);
    found
}

fn walk(node: &Located, file: &Path, found: &mut Vec<ImageUse>) {
    match &node.value {
        Node::Map(entries) => {
            for (key, value) in entries {
                if let Some(items) = value.value.as_list() {
                    for item in items {
                        if let Some(image) = image_of(&key.value, item) {
                            found.push(image_use(item, image, file));
                        }
                    }
                }
                walk(value, file, found);
            }
        }
        Node::List(items) => items.iter().for_each(|item| walk(item, file, found)),
        _ => {}
    }
}

fn image_of<'a>(list: &str, item: &'a Located) -> Option<&'a Located> {
    let image = item.value.get("image")?;
    let image = match list {
        "volumes" => image.value.get("reference")?,
        _ if CONTAINER_LISTS.contains(&list) => image,
        _ => return None,
    };
    image.value.as_str().map(|_| image)
}

fn image_use(item: &Located, image: &Located, file: &Path) -> ImageUse {
    let text = |node: Option<&Located>| {
        node.and_then(|node| node.value.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    ImageUse {
        container: text(item.value.get("name")),
        image: text(Some(image)),
        origin: origin(image, file),
    }
}

pub(super) fn list(images: &[ImageUse]) -> String {
    images
        .iter()
        .map(|used| {
            format!(
                "\n  {}: {:?} (container {})",
                used.origin, used.image, used.container
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn stack(text: &str) -> Stack<Unpinned> {
        Stack {
            directory: "dir".into(),
            manifests: load::parse(text, Path::new("dir/app.yaml")).unwrap(),
        }
    }

    fn nobody(_: &str) -> bool {
        false
    }

    fn cron_job(first: &str, second: &str) -> String {
        format!(
            "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: a}}\nspec:\n  jobTemplate:\n    spec:\n      \
             template:\n        spec:\n          initContainers:\n          - name: prepare\n            image: {first}\n          \
             containers:\n          - name: main\n            image: {second}\n"
        )
    }

    #[test]
    fn an_unpinned_image_is_named_with_file_and_place() {
        let text = cron_job(&format!("docker.io/x/y@{DIGEST}"), "docker.io/x/z:1");
        let error = stack(&text).pinned(nobody).unwrap_err();
        insta::assert_snapshot!(error, @r#"
        images that are not pinned by digest; run `orch images push --pin`, or keep other people's as they are with `--keep IMAGE` or `images.keep` in orch.yaml:
          dir/app.yaml:14:20: "docker.io/x/z:1" (container main)
        "#);
    }

    #[test]
    fn a_pinned_stack_yields_its_objects() {
        let image = format!("docker.io/x/y:in-1@{DIGEST}");
        let pinned = stack(&cron_job(&image, &image)).pinned(nobody).unwrap();
        assert_eq!(pinned.manifests[0].images.len(), 2);
        let object = pinned.manifests[0].clone().into_object();
        assert_eq!(object["kind"], "CronJob");
    }

    #[test]
    fn what_is_kept_needs_no_digest_and_what_is_beside_it_does() {
        let kept = |image: &str| image == "redis:7";
        let pinned = format!("docker.io/x/y@{DIGEST}");
        assert!(stack(&cron_job(&pinned, "redis:7")).pinned(kept).is_ok());
        let error = stack(&cron_job("redis:7", "redis:8"))
            .pinned(kept)
            .unwrap_err();
        let ManifestError::Unpinned { images } = error else {
            panic!("{error}");
        };
        let images: Vec<_> = images.iter().map(|used| used.image.as_str()).collect();
        assert_eq!(images, ["redis:8"]);
    }

    #[test]
    fn half_a_digest_is_no_pin() {
        assert!(!is_pinned("x@sha256:abc"));
        assert!(!is_pinned(&format!("@{DIGEST}")));
        assert!(!is_pinned(&format!("x@{}", DIGEST.to_uppercase())));
        assert!(!is_pinned(&format!("x@{DIGEST}0")));
        assert!(is_pinned(&format!("x@{DIGEST}")));
    }

    #[test]
    fn image_volumes_count_and_text_that_looks_like_an_image_does_not() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  volumes:\n  - name: model\n    image: {reference: x:1}\n";
        assert_eq!(stack(text).manifests[0].images[0].container, "model");
        let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  image: x:1\n";
        assert!(stack(text).manifests[0].images.is_empty());
    }
}
