//! A folder of YAML files to a [`Stack`].

use std::collections::HashMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use super::yaml::{self, Located, Node};
use super::{Manifest, ManifestError, Origin, Stack, Unpinned, order, pinned, secrets};

impl Stack<Unpinned> {
    /// Reads every `*.yaml` and `*.yml` directly in `directory`, in order of their names. Hidden files
    /// and `*.example.yaml` are left out.
    pub fn load(directory: &Path) -> Result<Self, ManifestError> {
        let mut manifests = Vec::new();
        for file in files(directory)? {
            let text = std::fs::read_to_string(&file).map_err(|source| ManifestError::Read {
                path: file.clone(),
                source,
            })?;
            manifests.extend(parse(&text, &file)?);
        }
        if manifests.is_empty() {
            return Err(ManifestError::Empty {
                path: directory.to_owned(),
            });
        }
        refuse_duplicates(&manifests)?;
        Ok(Self {
            directory: directory.to_owned(),
            manifests,
        })
    }
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let read_error = |source| ManifestError::Read {
        path: directory.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name
            .strip_suffix(".yaml")
            .or_else(|| name.strip_suffix(".yml"));
        let wanted = stem.is_some_and(|stem| !stem.ends_with(".example") && !stem.starts_with('.'));
        if wanted && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Every object of one file; `file` is for origins only.
pub(super) fn parse(text: &str, file: &Path) -> Result<Vec<Manifest<Unpinned>>, ManifestError> {
    let mut manifests = Vec::new();
    for document in yaml::parse(text, file)? {
        collect(&document, file, &mut manifests)?;
    }
    Ok(manifests)
}

/// A document's object, or the objects of a List.
fn collect(
    node: &Located,
    file: &Path,
    manifests: &mut Vec<Manifest<Unpinned>>,
) -> Result<(), ManifestError> {
    let kind = required(node, "kind", file)?;
    match node.value.get("items") {
        Some(items) if kind.ends_with("List") => {
            let Some(items) = items.value.as_list() else {
                return Err(invalid(items, file, "the items of a List must be a list"));
            };
            items
                .iter()
                .try_for_each(|item| collect(item, file, manifests))
        }
        _ => {
            manifests.push(manifest(node, kind, file)?);
            Ok(())
        }
    }
}

fn manifest(node: &Located, kind: &str, file: &Path) -> Result<Manifest<Unpinned>, ManifestError> {
    let api_version = required(node, "apiVersion", file)?;
    let Some(metadata) = node.value.get("metadata") else {
        return Err(invalid(
            node,
            file,
            format!("{kind} has no metadata; give it a metadata.name"),
        ));
    };
    let name = match required(metadata, "metadata.name", file) {
        Ok(name) => name,
        Err(error) if metadata.value.get("generateName").is_some() => {
            let ManifestError::Invalid { origin, .. } = error else {
                return Err(error);
            };
            return Err(ManifestError::Invalid {
                origin,
                message: format!(
                    "{kind} has generateName, which makes a new object each time; give it a metadata.name"
                ),
            });
        }
        Err(error) => return Err(error),
    };
    let namespace = match metadata.value.get("namespace") {
        Some(_) => Some(required(metadata, "metadata.namespace", file)?.to_owned()),
        None => None,
    };
    if let Some(place) = secrets::find_placeholder(node) {
        return Err(invalid(
            place,
            file,
            format!(
                "a `<generate:` placeholder belongs into {} only; put the value here",
                secrets::EXAMPLE_FILE
            ),
        ));
    }
    Ok(Manifest {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        namespace,
        wave: order::wave_of(metadata, file)?,
        images: pinned::images(node, file),
        origin: origin(node, file),
        object: node.value.to_json(),
        state: PhantomData,
    })
}

/// A string that must be there and not be empty; `path` is the field's path from the object on, its
/// last part the key.
pub(super) fn required<'a>(
    node: &'a Located,
    path: &str,
    file: &Path,
) -> Result<&'a str, ManifestError> {
    let key = path.rsplit('.').next().unwrap_or(path);
    if !matches!(node.value, Node::Map(_)) {
        return Err(invalid(
            node,
            file,
            format!(
                "expected a map with {path}, found {}",
                node.value.type_name()
            ),
        ));
    }
    let Some(value) = node.value.get(key) else {
        return Err(invalid(node, file, format!("{path} is missing")));
    };
    match value.value.as_str() {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => Err(invalid(value, file, format!("{path} is empty"))),
        None => Err(invalid(
            value,
            file,
            format!(
                "{path} must be a string, found {}; quote it",
                value.value.type_name()
            ),
        )),
    }
}

pub(super) fn origin(node: &Located, file: &Path) -> Origin {
    Origin {
        file: file.to_owned(),
        line: node.referenced.line().max(1),
        column: node.referenced.column().max(1),
    }
}

pub(super) fn invalid(node: &Located, file: &Path, message: impl Into<String>) -> ManifestError {
    ManifestError::Invalid {
        origin: origin(node, file),
        message: message.into(),
    }
}

/// Two manifests of one object would overwrite each other, in an order that nobody chose.
fn refuse_duplicates(manifests: &[Manifest<Unpinned>]) -> Result<(), ManifestError> {
    let mut seen = HashMap::new();
    for manifest in manifests {
        // One group may be written in several versions; the object is the same.
        let group = manifest
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        let key = (group, &manifest.kind, &manifest.namespace, &manifest.name);
        if let Some(first) = seen.insert(key, &manifest.origin) {
            return Err(ManifestError::Duplicate {
                kind: manifest.kind.clone(),
                name: manifest.name.clone(),
                first: Box::new(first.clone()),
                second: Box::new(manifest.origin.clone()),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        parse(text, Path::new("a.yaml"))
            .unwrap()
            .iter()
            .map(|manifest| format!("{manifest:?}"))
            .collect()
    }

    fn error(text: &str) -> String {
        parse(text, Path::new("a.yaml")).unwrap_err().to_string()
    }

    const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: one\n";

    #[test]
    fn several_documents_and_lists_are_flattened() {
        let text = format!(
            "---\n# only a comment\n---\n{CONFIG_MAP}---\napiVersion: v1\nkind: List\nitems:\n\
             - {{apiVersion: v1, kind: Secret, metadata: {{name: two}}}}\n\
             - {{apiVersion: v1, kind: ConfigMapList, items: [{{apiVersion: v1, kind: ConfigMap, metadata: {{name: three}}}}]}}\n"
        );
        insta::assert_debug_snapshot!(names(&text), @r#"
        [
            "ConfigMap one (a.yaml:4:1)",
            "Secret two (a.yaml:12:3)",
            "ConfigMap three (a.yaml:13:49)",
        ]
        "#);
    }

    #[test]
    fn what_is_missing_is_named_with_its_place() {
        assert_eq!(
            error("kind: X\nmetadata: {name: a}\n"),
            "a.yaml:1:1: apiVersion is missing"
        );
        assert_eq!(error("apiVersion: v1\n"), "a.yaml:1:1: kind is missing");
        assert_eq!(
            error("apiVersion: v1\nkind: Pod\nmetadata:\n  name: 5\n"),
            "a.yaml:4:9: metadata.name must be a string, found a number; quote it"
        );
        assert!(error("- a\n").contains("found a list"));
        assert!(
            error("apiVersion: v1\nkind: Pod\nmetadata:\n  generateName: a-\n")
                .contains("generateName")
        );
    }

    #[test]
    fn a_placeholder_outside_the_example_is_refused() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: a\nstringData:\n  password: <generate:32>\n";
        assert!(error(text).starts_with("a.yaml:6:13: "), "{}", error(text));
    }

    #[test]
    fn the_folder_is_read_by_name_without_examples() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("b.yaml", &CONFIG_MAP.replace("one", "b"));
        write("a.yml", &CONFIG_MAP.replace("one", "a"));
        write("secrets.example.yaml", "not: [read");
        write(".hidden.yaml", "not: [read");
        write("README.md", "not: [read");
        let stack = Stack::load(folder.path()).unwrap();
        let names: Vec<_> = stack.manifests.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);

        write("c.yaml", &CONFIG_MAP.replace("one", "b"));
        let error = Stack::load(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("c.yaml:1:1: ConfigMap b is already defined at"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_folder_and_a_missing_one_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Stack::load(folder.path()),
            Err(ManifestError::Empty { .. })
        ));
        assert!(matches!(
            Stack::load(&folder.path().join("none")),
            Err(ManifestError::Read { .. })
        ));
    }
}
