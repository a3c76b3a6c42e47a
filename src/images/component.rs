//! Components: one folder with a Dockerfile is one component, one image, one build context; or what somebody named.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How far below the folder of components Dockerfiles are looked for, e.g. 2 for `services/web/Dockerfile`.
const DEPTH: usize = 4;
/// Folders whose Dockerfiles are somebody else's or made by a tool; so are hidden ones.
const FOREIGN: [&str; 3] = ["node_modules", "target", "vendor"];

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
    /// Platforms, e.g. `linux/amd64`, sorted and never empty. Several make an index of as many images.
    pub platforms: Vec<String>,
}

/// What somebody says about a component instead of leaving it to the folders. What is left out stays as found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// Its name; one that a folder has overrides that folder's component.
    pub name: String,
    /// The folder that the builder may read.
    pub context: Option<PathBuf>,
    /// The Dockerfile, seen from the context.
    pub dockerfile: Option<PathBuf>,
    /// Stage to stop at.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// Platforms; none means the run's.
    pub platforms: Vec<String>,
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
        "{path}: `{name}` cannot be an image name: use lower-case letters and digits, separated by `.`, `_` or `-`, or give it \
         another name under `images.components` in orch.yaml"
    )]
    Name {
        /// The folder.
        path: PathBuf,
        /// Its last part.
        name: String,
    },
    /// Two folders would be one image.
    #[error(
        "two components are called `{name}`: {first} and {second}. Give one of them another name under `images.components` in \
         orch.yaml, or choose a folder with --dockerfiles"
    )]
    Twice {
        /// The name.
        name: String,
        /// One folder.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Somebody described a component that no folder has.
    #[error(
        "the component `{name}` has no context: no folder below {folder} is called so and has a Dockerfile. Name its folder with \
         `context`"
    )]
    NoContext {
        /// The name.
        name: String,
        /// Where components are looked for.
        folder: PathBuf,
    },
    /// A platform that nobody knows.
    #[error("`{platform}` is not a platform: write OS/ARCHITECTURE, e.g. linux/arm64")]
    Platform {
        /// What was written.
        platform: String,
    },
    /// A build argument of the command line that would be without effect.
    #[error(
        "--build-arg {name}: no Dockerfile has `ARG {name}`; {known}. Correct the name, or leave it out"
    )]
    Argument {
        /// Its name.
        name: String,
        /// Those that exist, in words.
        known: String,
    },
    /// A build argument whose value is in the environment and cannot be passed on.
    #[error(
        "--build-arg {name}: the environment's value is not UTF-8 text; give it as {name}=VALUE"
    )]
    ArgumentEncoding {
        /// Its name.
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
        // `.` and `..` have a name as well.
        let named = match folder.file_name() {
            Some(name) => Some(name.to_owned()),
            None => fs::canonicalize(folder)
                .ok()
                .and_then(|path| path.file_name().map(ToOwned::to_owned)),
        };
        let name = named
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
            platforms: vec![platform.to_owned()],
        })
    }

    /// The first platform; the only one of most components.
    pub fn platform(&self) -> &str {
        self.platforms.first().map_or("", String::as_str)
    }
}

/// All components in and below `folder`, sorted by name.
pub fn discover(folder: &Path, platform: &str) -> Result<Vec<Component>, ComponentError> {
    find(folder, &[platform.to_owned()], &[])
}

/// All components in and below `folder` and those of `definitions`, sorted by name. Who has no platforms of its own gets
/// `platforms`.
pub fn find(
    folder: &Path,
    platforms: &[String],
    definitions: &[Definition],
) -> Result<Vec<Component>, ComponentError> {
    let mut folders = Vec::new();
    // A folder that nobody made is no mistake where all components are named.
    if folder.exists() || definitions.is_empty() {
        if folder.join("Dockerfile").is_file() {
            folders.push(folder.to_owned());
        }
        search(folder, DEPTH, &mut folders)?;
    }
    folders.sort();
    let platform = platforms.first().map_or("", String::as_str);
    let mut components: BTreeMap<String, Component> = BTreeMap::new();
    for definition in definitions {
        let context = match &definition.context {
            Some(context) => context.clone(),
            None => {
                let named = |path: &&PathBuf| path.file_name() == Some(definition.name.as_ref());
                let mut found = folders.iter().filter(named);
                match (found.next(), found.next()) {
                    (Some(only), None) => only.clone(),
                    (Some(first), Some(second)) => {
                        return Err(ComponentError::Twice {
                            name: definition.name.clone(),
                            first: first.clone(),
                            second: second.clone(),
                        });
                    }
                    (None, _) => {
                        return Err(ComponentError::NoContext {
                            name: definition.name.clone(),
                            folder: folder.to_owned(),
                        });
                    }
                }
            }
        };
        let component = describe(definition, context, platforms)?;
        if let Some(first) = components.insert(component.name.clone(), component.clone()) {
            return Err(ComponentError::Twice {
                name: component.name,
                first: first.context,
                second: component.context,
            });
        }
    }
    let described: Vec<PathBuf> = components
        .values()
        .map(|component| absolute(&component.context))
        .collect();
    for path in folders {
        let overridden = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| definitions.iter().any(|definition| definition.name == name));
        if overridden || described.contains(&absolute(&path)) {
            continue;
        }
        let mut component = Component::from_folder(&path, platform)?;
        component.platforms = checked(platforms)?;
        if let Some(first) = components.insert(component.name.clone(), component) {
            return Err(ComponentError::Twice {
                name: first.name,
                first: first.context,
                second: path,
            });
        }
    }
    Ok(components.into_values().collect())
}

fn describe(
    definition: &Definition,
    context: PathBuf,
    platforms: &[String],
) -> Result<Component, ComponentError> {
    let name = definition.name.clone();
    if !is_repository_part(&name) {
        return Err(ComponentError::Name {
            path: context,
            name,
        });
    }
    let dockerfile = definition
        .dockerfile
        .as_deref()
        .unwrap_or(Path::new("Dockerfile"));
    let own = &definition.platforms;
    Ok(Component {
        name,
        dockerfile: context.join(dockerfile),
        context,
        target: definition.target.clone(),
        args: definition.args.clone(),
        platforms: checked(if own.is_empty() { platforms } else { own })?,
    })
}

/// Folders with a Dockerfile below `folder`. What is in one of them belongs to it.
fn search(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), ComponentError> {
    let read = |source| ComponentError::Read {
        path: folder.to_owned(),
        source,
    };
    for item in fs::read_dir(folder).map_err(read)? {
        let item = item.map_err(read)?;
        let (name, path) = (item.file_name(), item.path());
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if hidden || FOREIGN.iter().any(|foreign| name == *foreign) {
            continue;
        }
        if path.join("Dockerfile").is_file() {
            found.push(path);
        // A link may lead back here.
        } else if depth > 1 && item.file_type().is_ok_and(|kind| kind.is_dir()) {
            search(&path, depth - 1, found)?;
        }
    }
    Ok(())
}

/// Platforms in order, each once.
fn checked(platforms: &[String]) -> Result<Vec<String>, ComponentError> {
    let good = |platform: &&String| {
        let parts: Vec<&str> = platform.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        matches!(parts.len(), 2 | 3) && parts.iter().all(word)
    };
    if let Some(bad) = platforms.iter().find(|platform| !good(platform)) {
        return Err(ComponentError::Platform {
            platform: bad.clone(),
        });
    }
    let sorted: std::collections::BTreeSet<&String> = platforms.iter().collect();
    Ok(sorted.into_iter().cloned().collect())
}

fn absolute(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
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

    fn project(dockerfiles: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in dockerfiles {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "FROM scratch\n").unwrap();
        }
        root
    }

    fn platforms() -> [String; 1] {
        ["linux/amd64".to_owned()]
    }

    #[test]
    fn dockerfiles_are_found_at_any_place_where_projects_keep_theirs() {
        let root = project(&[
            "app/Dockerfile",
            "app/services/web/Dockerfile",
            "app/services/web/test/Dockerfile",
            "app/src/api/docker/worker/Dockerfile",
            "app/node_modules/thing/Dockerfile",
            "app/vendor/thing/Dockerfile",
            "app/.github/Dockerfile",
            "app/a/b/c/d/deep/Dockerfile",
        ]);
        let components = discover(&root.path().join("app"), "linux/amd64").unwrap();
        let names: Vec<&str> = components.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["app", "web", "worker"]);
        let error = discover(&root.path().join("absent"), "linux/amd64").unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn two_folders_of_one_name_are_an_error_until_one_is_described() {
        let root = project(&["v1/web/Dockerfile", "v2/web/Dockerfile"]);
        let error = discover(root.path(), "linux/amd64")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("v1/web") && error.contains("v2/web"),
            "{error}"
        );
        let definition = Definition {
            name: "web-old".to_owned(),
            context: Some(root.path().join("v1/web")),
            ..Definition::default()
        };
        let components = find(root.path(), &platforms(), &[definition]).unwrap();
        let names: Vec<&str> = components.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["web", "web-old"]);
    }

    #[test]
    fn a_description_overrides_the_folder_of_its_name() {
        let root = project(&["web/Dockerfile"]);
        let definition = Definition {
            name: "web".to_owned(),
            dockerfile: Some("release.Dockerfile".into()),
            target: Some("final".to_owned()),
            platforms: vec!["linux/arm64".to_owned(), "linux/amd64".to_owned()],
            ..Definition::default()
        };
        let components = find(root.path(), &platforms(), std::slice::from_ref(&definition));
        let [component] = <[Component; 1]>::try_from(components.unwrap()).unwrap();
        assert_eq!(
            component.dockerfile,
            root.path().join("web/release.Dockerfile")
        );
        assert_eq!(component.target.as_deref(), Some("final"));
        assert_eq!(component.platforms, ["linux/amd64", "linux/arm64"]);
        let nowhere = Definition {
            name: "absent".to_owned(),
            ..Definition::default()
        };
        let error = find(root.path(), &platforms(), &[nowhere]).unwrap_err();
        assert!(error.to_string().contains("context"), "{error}");
        let strange = Definition {
            platforms: vec!["arm".to_owned()],
            ..definition
        };
        let error = find(root.path(), &platforms(), &[strange]).unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
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
