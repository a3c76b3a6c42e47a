//! The `images:` section, and an `orch.yaml` that describes images and no cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;

use super::validate::{self, Problem};
use super::{ConfigError, FILE_NAME, Registry, invalid, parse_error};

/// Keys without which a file describes no cluster.
const CLUSTER_KEYS: [&str; 3] = ["name", "network", "nodes"];

/// How images are made.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Components that folders alone do not describe.
    pub components: Vec<ImageComponent>,
    /// Images of others that may stay in manifests as they are.
    pub keep: Vec<String>,
    /// Builds at the same time.
    pub jobs: Option<Spanned<usize>>,
    /// What every push attaches.
    pub attest: Attest,
}

/// What is said about images that are pushed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attest {
    /// A list of packages.
    pub sbom: bool,
    /// What they were built from.
    pub provenance: bool,
    /// The private key that signs.
    pub key: Option<Spanned<PathBuf>>,
}

/// One component.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageComponent {
    pub name: Spanned<String>,
    /// The folder that the builder may read; left out: the folder of this name that has a Dockerfile.
    pub context: Option<PathBuf>,
    /// Seen from the context.
    pub dockerfile: Option<PathBuf>,
    /// The stage to stop at.
    pub target: Option<String>,
    /// Build arguments.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    #[serde(default)]
    pub platforms: Vec<Spanned<String>>,
    /// Repositories in manifests that mean this component.
    #[serde(default)]
    pub references: Vec<Spanned<String>>,
}

/// An `orch.yaml` for images alone, of a project that orch makes no cluster for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesOnly {
    pub registry: Registry,
    pub dockerfiles: Option<PathBuf>,
    /// Folders of manifests.
    pub manifests: Vec<PathBuf>,
    pub images: Images,
}

impl ImagesOnly {
    /// What `path` says if it describes no cluster. The default file need not exist.
    pub fn load(path: &Path) -> Result<Option<Self>, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(FILE_NAME) =>
            {
                return Ok(Some(Self::default()));
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        // What is no mapping at all is the cluster's parser to complain about.
        let keys: BTreeMap<String, IgnoredAny> = match serde_saphyr::from_str(&text) {
            Ok(keys) => keys,
            Err(_) => return Ok(None),
        };
        if CLUSTER_KEYS.iter().any(|key| keys.contains_key(*key)) {
            return Ok(None);
        }
        let parsed: Self =
            serde_saphyr::from_str(&text).map_err(|error| parse_error(path, &error))?;
        check(&parsed.images).map_err(|problem| invalid(path, problem))?;
        Ok(Some(parsed))
    }
}

/// What the types cannot say.
pub(super) fn check(images: &Images) -> Result<(), Problem> {
    if let Some(jobs) = images.jobs.as_ref().filter(|jobs| jobs.value == 0) {
        return Err(validate::at(
            jobs.referenced,
            "images.jobs: at least 1 build has to run at a time",
        ));
    }
    if let Some(key) = &images.attest.key
        && key.value.as_os_str().is_empty()
    {
        return Err(validate::at(
            key.referenced,
            "images.attest.key: name the file of a private key, or leave the key out",
        ));
    }
    let mut names = BTreeMap::new();
    let mut references: BTreeMap<&str, &str> = BTreeMap::new();
    for component in &images.components {
        let name = &component.name;
        if names.insert(name.value.as_str(), ()).is_some() {
            return Err(validate::at(
                name.referenced,
                format!(
                    "two components are named {:?}; give each its own name",
                    name.value
                ),
            ));
        }
        for reference in &component.references {
            let other = references.insert(&reference.value, &name.value);
            if let Some(other) = other.filter(|other| *other != name.value) {
                return Err(validate::at(
                    reference.referenced,
                    format!(
                        "{:?} stands for {other:?} already; it cannot be {:?} as well",
                        reference.value, name.value
                    ),
                ));
            }
        }
        for platform in &component.platforms {
            if !matches!(platform.value.split('/').count(), 2 | 3) {
                return Err(validate::at(
                    platform.referenced,
                    format!(
                        "{:?} is not a platform: write OS/ARCHITECTURE, e.g. linux/arm64",
                        platform.value
                    ),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Option<ImagesOnly>, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orch.yaml");
        std::fs::write(&path, text).unwrap();
        ImagesOnly::load(&path)
    }

    #[test]
    fn a_file_for_images_alone_needs_no_cluster() {
        let text = "images:\n  jobs: 4\n  components:\n  - name: web\n    context: services/web\n    args: {V: \"1\"}\n    \
                    platforms: [linux/amd64, linux/arm64]\n    references: [acme/web]\n";
        let images = load(text).unwrap().unwrap().images;
        assert_eq!(images.components[0].args["V"], "1");
        assert_eq!(images.components[0].references[0].value, "acme/web");
        assert_eq!(images.jobs.unwrap().value, 4);
        assert!(load("name: demo\nnodes: []\n").unwrap().is_none());
    }

    #[test]
    fn what_every_push_attaches_is_read() {
        let attest = |text: &str| load(text).unwrap().unwrap().images.attest;
        let none = attest("images: {}\n");
        assert!(!none.sbom && !none.provenance && none.key.is_none());
        let all =
            attest("images:\n  attest: {sbom: true, provenance: true, key: keys/cosign.key}\n");
        assert!(all.sbom && all.provenance);
        assert_eq!(all.key.unwrap().value, Path::new("keys/cosign.key"));
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (text, place, word) in [
            ("images:\n  component: []\n", ":2:", "component"),
            ("images: {jobs: 0}\n", ":1:16", "jobs"),
            ("images:\n  attest:\n    key: ''\n", ":3:10", "private key"),
            ("images:\n  attest: {sbom: all}\n", ":2:18", "bool"),
            ("images:\n  attest:\n    sign: true\n", ":3:", "sign"),
            (
                "images:\n  components:\n  - name: a\n  - name: a\n",
                ":4:11",
                "two components",
            ),
            (
                "images:\n  components:\n  - {name: a, references: [x/y]}\n  - {name: b, references: [x/y]}\n",
                ":4:",
                "already",
            ),
            (
                "images:\n  components:\n  - name: a\n    platforms: [arm64]\n",
                ":4:17",
                "OS/ARCHITECTURE",
            ),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains(word), "{error}");
        }
    }
}
