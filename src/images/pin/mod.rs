//! Writing digests into manifests: the bytes of an image's name change and nothing else does.
//!
//! Every file is edited in memory, parsed again and compared with what it meant before; only when all of them came out right is
//! any written. A file that says the right thing already is not touched.

mod ours;
mod scan;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use saphyr_parser::Event;

pub use ours::Ours;
use scan::Document;
pub use scan::ImageScalar;

use super::file;

/// A manifest cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A folder or file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Not UTF-8.
    #[error("{path} is not UTF-8 text")]
    Encoding {
        /// The file.
        path: PathBuf,
    },
    /// Not YAML.
    #[error("{path}:{line}:{column}: {reason}")]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser did not expect.
        reason: String,
    },
    /// A Helm chart's template.
    #[error(
        "{path}:{line}:{column}: this is a Helm template: render it first (`helm template`) and pin the result"
    )]
    Template {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// An image with something else than a string for a name.
    #[error("{path}:{line}:{column}: the name of an image must be one line of text")]
    NotText {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// An anchor that is used for an image and for something else.
    #[error(
        "{path}:{line}:{column}: this value is shared with the image in line {image}: write the image out there, so that pinning it changes nothing else"
    )]
    SharedAnchor {
        /// The file.
        path: PathBuf,
        /// Line of the other use, from 1.
        line: usize,
        /// Its column, from 1.
        column: usize,
        /// Line of the image.
        image: usize,
    },
    /// An image that no component is.
    #[error(
        "{path}:{line}:{column}: nobody builds `{image}`: it is none of the components ({components}) and not pinned by digest; \
         for a component write its name or add `--map {repository}={component}`, \
         pin somebody else's with `orch images pin --upstream`, or leave it as it is with `--keep {image}`"
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The image.
        image: String,
        /// Its repository as written.
        repository: String,
        /// Those that exist, nearest first.
        components: String,
        /// The nearest one.
        component: String,
    },
    /// An official image that is called like a component.
    #[error(
        "{path}:{line}:{column}: `{image}` is ambiguous: the component `{component}` is written `{component}` \
         (or add `--map {component}={component}`), and Docker Hub's image is pinned with `orch images pin --upstream`, \
         or left as it is with `--keep {image}`"
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The image.
        image: String,
        /// The component.
        component: String,
    },
    /// A repository is mapped to a component that does not exist.
    #[error(
        "`{repository}` is mapped to `{component}`, and there is no such component: {candidates}"
    )]
    MapTarget {
        /// The repository.
        repository: String,
        /// The name given.
        component: String,
        /// Those that exist, nearest first.
        candidates: String,
    },
    /// Two components claim a repository.
    #[error(
        "`{repository}` is ambiguous: it belongs to `{first}`, and the map gives it to `{second}`: leave one of them out"
    )]
    TwoComponents {
        /// The repository.
        repository: String,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// An image that is to be left alone is a component's.
    #[error("`{image}` cannot be left alone: it is the component `{component}`")]
    KeptComponent {
        /// The image.
        image: String,
        /// The component.
        component: String,
    },
    /// Not an image's name.
    #[error("{option}: `{text}` is not the name of an image, e.g. `ghcr.io/acme/web`")]
    Repository {
        /// Where it was given.
        option: &'static str,
        /// What was given.
        text: String,
    },
    /// A component that has no digest yet.
    #[error(
        "{path}:{line}:{column}: `{image}` has not been pushed yet: run `orch images push --pin {component}`"
    )]
    NotPushed {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The image.
        image: String,
        /// The component.
        component: String,
    },
    /// The edit did not do what it should.
    #[error(
        "{path}:{line}:{column}: `{image}` cannot be replaced without changing more than it: write it as plain text"
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The image.
        image: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}; no manifest was changed")]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// A manifest with its images.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// Its images.
    pub images: Vec<ImageScalar>,
}

/// One replaced image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What it said.
    pub before: String,
    /// What it says now.
    pub after: String,
}

/// A manifest that has to be written.
#[derive(Debug)]
pub struct Edit {
    /// The file.
    pub path: PathBuf,
    /// Its text as it was read.
    before: String,
    /// Its new text.
    pub after: String,
    /// What changed.
    pub changes: Vec<Change>,
}

/// Reads all manifests directly in `folders`: `*.yaml` and `*.yml` but not `*.example.yaml`, by name.
pub fn read(folders: &[PathBuf]) -> Result<Vec<Manifest>, PinError> {
    let mut manifests = Vec::new();
    for folder in folders {
        let failed = |source| PinError::Read {
            path: folder.clone(),
            source,
        };
        let mut paths = Vec::new();
        for item in fs::read_dir(folder).map_err(failed)? {
            let path = item.map_err(failed)?.path();
            if is_manifest(&path) && path.is_file() {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            manifests.push(read_one(path)?);
        }
    }
    Ok(manifests)
}

fn is_manifest(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let yaml = [".yaml", ".yml"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    let example = [".example.yaml", ".example.yml"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    yaml && !example && !name.starts_with('.')
}

fn read_one(path: PathBuf) -> Result<Manifest, PinError> {
    let bytes = fs::read(&path).map_err(|source| PinError::Read {
        path: path.clone(),
        source,
    })?;
    let text = String::from_utf8(bytes).map_err(|_| PinError::Encoding { path: path.clone() })?;
    let images = Document::parse(&text, &path)?.images(&path)?;
    Ok(Manifest { path, text, images })
}

/// Does a reference name its digest?
pub fn is_pinned(image: &str) -> bool {
    let hex = image.split_once("@sha256:").map(|(_, hex)| hex);
    hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Works out what has to change so that every component's image says what `references` has for it.
///
/// A component without a reference may stay as it is if it is pinned.
pub fn pin(
    manifests: &[Manifest],
    ours: &Ours,
    references: &BTreeMap<String, String>,
) -> Result<Vec<Edit>, PinError> {
    edit_all(manifests, |manifest, image| {
        let (path, line, column) = (manifest.path.clone(), image.line, image.column);
        let known = ours.component_of(&image.value);
        match known.map(|component| (component, references.get(component))) {
            Some((_, Some(reference))) => Ok(Some(reference.clone())),
            _ if is_pinned(&image.value) => Ok(None),
            Some((component, None)) => {
                let (image, component) = (image.value.clone(), component.to_owned());
                Err(PinError::NotPushed {
                    path,
                    line,
                    column,
                    image,
                    component,
                })
            }
            None if ours.keeps(&image.value) => Ok(None),
            None => Err(stranger(path, image, ours)),
        }
    })
}

/// What to say about an image that is no component's.
fn stranger(path: PathBuf, image: &ImageScalar, ours: &Ours) -> PinError {
    let (line, column, image) = (image.line, image.column, image.value.clone());
    let official = ours::repository_of(&image)
        .is_some_and(|repository| repository.starts_with("docker.io/library/"));
    if let Some(component) = ours.namesake(&image).filter(|_| official) {
        let component = component.to_owned();
        return PinError::Ambiguous {
            path,
            line,
            column,
            image,
            component,
        };
    }
    let components = ours.nearest(&image);
    let component = components.split(',').next().unwrap_or_default().to_owned();
    PinError::Unknown {
        path,
        line,
        column,
        repository: ours::name_of(&image).to_owned(),
        image,
        components,
        component,
    }
}

/// Works out what has to change so that the components' images say nothing but the component's name.
pub fn unpin(manifests: &[Manifest], ours: &Ours) -> Result<Vec<Edit>, PinError> {
    edit_all(manifests, |_, image| {
        let component = ours.component_of(&image.value);
        Ok(component.map(|component| {
            // `on`, `1.5` or `null` would not be text without quotes.
            let is_text = component.bytes().any(|byte| byte == b'-')
                && component.starts_with(|c: char| c.is_alphabetic());
            let keywords = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
            let safe = is_text
                || component.bytes().all(|b| b.is_ascii_lowercase())
                    && !keywords.contains(&component);
            if safe || !image.plain {
                component.to_owned()
            } else {
                format!("\"{component}\"")
            }
        }))
    })
}

fn edit_all(
    manifests: &[Manifest],
    replacement: impl Fn(&Manifest, &ImageScalar) -> Result<Option<String>, PinError>,
) -> Result<Vec<Edit>, PinError> {
    let mut edits = Vec::new();
    for manifest in manifests {
        let mut wanted = Vec::new();
        for image in &manifest.images {
            let written = manifest.text.get(image.span.clone()).unwrap_or_default();
            let new = replacement(manifest, image)?.filter(|new| new != written);
            wanted.extend(new.map(|new| (image, new)));
        }
        if !wanted.is_empty() {
            edits.push(edit(manifest, &wanted)?);
        }
    }
    Ok(edits)
}

fn edit(manifest: &Manifest, wanted: &[(&ImageScalar, String)]) -> Result<Edit, PinError> {
    let mut after = manifest.text.clone();
    for (image, new) in wanted.iter().rev() {
        after.replace_range(image.span.clone(), new);
    }
    let changes = wanted.iter().map(|(image, new)| Change {
        path: manifest.path.clone(),
        line: image.line,
        column: image.column,
        before: image.value.clone(),
        after: new.clone(),
    });
    let changes: Vec<Change> = changes.collect();
    verify(manifest, &after, wanted)?;
    Ok(Edit {
        path: manifest.path.clone(),
        before: manifest.text.clone(),
        after,
        changes,
    })
}

/// Parses the new text and compares it with the old one: every event but the replaced scalars must be the same.
fn verify(
    manifest: &Manifest,
    after: &str,
    wanted: &[(&ImageScalar, String)],
) -> Result<(), PinError> {
    let refused = |image: &ImageScalar| PinError::Refused {
        path: manifest.path.clone(),
        line: image.line,
        column: image.column,
        image: image.value.clone(),
    };
    let Some((first, _)) = wanted.first() else {
        return Ok(());
    };
    let old = Document::parse(&manifest.text, &manifest.path)?.meaning();
    let new = Document::parse(after, &manifest.path)
        .map_err(|_| refused(first))?
        .meaning();
    let replaced: BTreeMap<usize, (&ImageScalar, &str)> = wanted
        .iter()
        .map(|(image, new)| (image.index, (*image, new.trim_matches('"'))))
        .collect();
    for (index, (before, now)) in old.iter().zip(&new).enumerate() {
        let same = match (replaced.get(&index), before, now) {
            (None, before, now) => before == now,
            (
                Some((_, text)),
                Event::Scalar(_, _, anchor, tag),
                Event::Scalar(value, _, new_anchor, new_tag),
            ) => value.trim() == *text && (anchor, tag) == (new_anchor, new_tag),
            _ => false,
        };
        if !same {
            return Err(refused(
                replaced.get(&index).map_or(first, |(image, _)| image),
            ));
        }
    }
    if old.len() == new.len() {
        Ok(())
    } else {
        Err(refused(first))
    }
}

/// Writes all edits or none.
pub fn write(edits: &[Edit]) -> Result<(), PinError> {
    let failed = |path: &Path, source| PinError::Write {
        path: path.to_owned(),
        source,
    };
    let mut staged = Vec::new();
    for edit in edits {
        let unchanged = fs::read(&edit.path).is_ok_and(|bytes| bytes == edit.before.as_bytes());
        if !unchanged {
            return Err(failed(
                &edit.path,
                std::io::Error::other("it was changed by somebody else at the same time"),
            ));
        }
        staged.push(
            file::stage(&edit.path, edit.after.as_bytes())
                .map_err(|source| failed(&edit.path, source))?,
        );
    }
    for (index, (edit, file)) in edits.iter().zip(staged).enumerate() {
        if let Err(source) = file.commit() {
            // All or none: those that were written already get their old text back.
            for done in edits.iter().take(index) {
                file::replace(&done.path, done.before.as_bytes())
                    .map_err(|source| failed(&done.path, source))?;
            }
            return Err(failed(&edit.path, source));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
