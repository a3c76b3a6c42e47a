//! Components: one folder with a Dockerfile is one component, one image, one build context.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Something that becomes an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Folder name and last part of the repository, e.g. `inventory-app`.
    pub name: String,
    /// The folder that the builder may read.
    pub context: PathBuf,
    /// The Dockerfile, usually in `context`.
    pub dockerfile: PathBuf,
    /// Stage to stop at (`--target`).
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Platform, e.g. `linux/amd64`.
    pub platform: String,
}

/// Finding components failed.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The folder of components cannot be read.
    #[error("cannot read the folder of components {path}")]
    Read {
        /// The folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The folder's name cannot be a repository's name.
    #[error(
        "{path}: `{name}` cannot be an image name: use lower-case letters and digits, separated by `.`, `_` or `-`"
    )]
    Name {
        /// The folder.
        path: PathBuf,
        /// Its last part.
        name: String,
    },
    /// Somebody named a component that does not exist.
    #[error("there is no component `{name}`: {folder} has {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// Where components are looked for.
        folder: String,
        /// Those that exist, for the reader to pick from.
        known: String,
    },
}

impl Component {
    /// The component of a folder with a Dockerfile.
    pub fn from_folder(folder: &Path, platform: &str) -> Result<Self, ComponentError> {
        let name = folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if !is_repository_part(&name) {
            return Err(ComponentError::Name {
                path: folder.to_owned(),
                name,
            });
        }
        Ok(Self {
            name,
            context: folder.to_owned(),
            dockerfile: folder.join("Dockerfile"),
            target: None,
            args: BTreeMap::new(),
            platform: platform.to_owned(),
        })
    }
}

/// All components below `folder`, sorted by name.
pub fn discover(folder: &Path, platform: &str) -> Result<Vec<Component>, ComponentError> {
    let read = |source| ComponentError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut components = Vec::new();
    for item in fs::read_dir(folder).map_err(read)? {
        let path = item.map_err(read)?.path();
        if path.join("Dockerfile").is_file() {
            components.push(Component::from_folder(&path, platform)?);
        }
    }
    components.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(components)
}

/// This machine's platform in Docker's words.
pub fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// The grammar of one part of a repository's name in the OCI distribution specification.
fn is_repository_part(name: &str) -> bool {
    let alphanumeric =
        |character: char| character.is_ascii_lowercase() || character.is_ascii_digit();
    let separators: Vec<&str> = name
        .split(alphanumeric)
        .filter(|part| !part.is_empty())
        .collect();
    name.starts_with(alphanumeric)
        && name.ends_with(alphanumeric)
        && separators
            .iter()
            .all(|part| matches!(*part, "." | "_" | "__") || part.chars().all(|c| c == '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_dockerfile_is_no_component() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("notes")).unwrap();
        for name in ["b-app", "a.app"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("Dockerfile"), "FROM scratch\n").unwrap();
        }
        let names: Vec<String> = discover(root.path(), "linux/amd64")
            .unwrap()
            .into_iter()
            .map(|component| component.name)
            .collect();
        assert_eq!(names, ["a.app", "b-app"]);
    }

    #[test]
    fn names_follow_the_distribution_specification() {
        for good in ["a", "a-b", "a--b", "a_b", "a__b", "a.b", "0"] {
            assert!(is_repository_part(good), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", "a___b", "a._b", "a b", "ä"] {
            assert!(!is_repository_part(bad), "{bad}");
        }
    }
}
