//! Writing digests into manifests: the bytes of an image's name change and nothing else does.
//!
//! Every file is edited in memory, parsed again and compared with what it meant before; only when all of them came out right is
//! any written. A file that says the right thing already is not touched. [`scan`] finds images, [`edit`] replaces them, [`ours`]
//! knows which stand for components, [`set`] and [`upstream`] bring digests from elsewhere, [`originals`] remembers the way back.

mod edit;
mod error;
mod originals;
mod ours;
mod scan;
mod set;
mod split;
mod template;
mod upstream;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use edit::edit_text;
use edit::{New, Parsed};
pub use error::{Fault, PinError, Problem};
pub use originals::{Originals, forget, record};
pub use ours::{Kept, Ours};
pub use scan::ImageScalar;
pub use set::Given;
pub use upstream::Asking;

use super::ImageError;
use crate::files;

/// A manifest with its images.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The file.
    pub path: PathBuf,
    /// Its text.
    pub text: Arc<str>,
    /// Its images.
    pub images: Vec<ImageScalar>,
    parsed: Parsed,
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
    before: Arc<str>,
    /// Its new text.
    pub after: String,
    /// What takes the place of each of its images.
    wanted: Vec<Option<New>>,
    /// What changed.
    pub changes: Vec<Change>,
}

impl Manifest {
    /// The manifest that `text`, which stands in `path`, is.
    pub fn parse(path: PathBuf, text: String) -> Result<Self, PinError> {
        match Parsed::new(&text) {
            Ok((parsed, images)) => Ok(Self {
                path,
                text: text.into(),
                images,
                parsed,
            }),
            Err(fault) => Err(PinError::At {
                path,
                fault: Box::new(fault),
            }),
        }
    }

    /// What is wrong with one of its images.
    fn fault(&self, image: &ImageScalar, problem: Problem) -> PinError {
        PinError::At {
            path: self.path.clone(),
            fault: Box::new(Fault {
                line: image.line,
                column: image.column,
                problem,
            }),
        }
    }

    /// The text of an image as it is written.
    fn written(&self, image: &ImageScalar) -> &str {
        self.text.get(image.span.clone()).unwrap_or_default()
    }
}

/// Reads all manifests in `places`: files, and of folders what is directly in them, `*.yaml` and `*.yml` but not `*.example.yaml`,
/// by name.
pub fn read(places: &[PathBuf]) -> Result<Vec<Manifest>, PinError> {
    let mut manifests = Vec::new();
    for place in places {
        let failed = |source| PinError::Read {
            path: place.clone(),
            source,
        };
        if fs::metadata(place).map_err(failed)?.is_file() {
            manifests.push(read_one(place.clone())?);
            continue;
        }
        let mut paths = Vec::new();
        for item in fs::read_dir(place).map_err(failed)? {
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

/// `places`, each folder followed by the folders below it, by name; hidden ones are left out.
pub fn with_folders_below(places: &[PathBuf]) -> Result<Vec<PathBuf>, PinError> {
    let mut all = Vec::new();
    for place in places {
        let hidden = |entry: &walkdir::DirEntry| {
            entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".")
        };
        let below = walkdir::WalkDir::new(place).sort_by_file_name().into_iter();
        for entry in below.filter_entry(|entry| !hidden(entry)) {
            let entry = entry.map_err(|error| PinError::Read {
                path: error.path().unwrap_or(place).to_owned(),
                source: error.into(),
            })?;
            if entry.depth() == 0 || entry.file_type().is_dir() {
                all.push(entry.into_path());
            }
        }
    }
    Ok(all)
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
    if template::chart_of(&path).is_some() {
        let (line, column) = template::find(&text).unwrap_or((1, 1));
        let problem = Problem::Template;
        let fault = Box::new(Fault {
            line,
            column,
            problem,
        });
        return Err(PinError::At { path, fault });
    }
    Manifest::parse(path, text)
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
        let known = ours.component_of(&image.value);
        match known.map(|component| (component, references.get(component))) {
            Some((_, Some(reference))) => Ok(Some(New::named(reference.clone()))),
            _ if is_pinned(&image.value) => Ok(None),
            Some((component, None)) => {
                let (name, component) = (image.value.clone(), component.to_owned());
                let problem = Problem::NotPushed {
                    image: name,
                    component,
                };
                Err(manifest.fault(image, problem))
            }
            None if ours.keeps(&image.value) => Ok(None),
            None => Err(manifest.fault(image, stranger(&image.value, ours))),
        }
    })
}

/// What to say about an image that is no component's.
fn stranger(image: &str, ours: &Ours) -> Problem {
    if ours.is_empty() {
        return Problem::NoComponents {
            image: image.to_owned(),
        };
    }
    let official = ours::repository_of(image)
        .is_some_and(|repository| repository.starts_with("docker.io/library/"));
    if let Some(component) = ours.namesake(image).filter(|_| official) {
        return Problem::Ambiguous {
            image: image.to_owned(),
            component: component.to_owned(),
        };
    }
    let components = ours.nearest(image);
    let component = components.split(',').next().unwrap_or_default().to_owned();
    Problem::Unknown {
        image: image.to_owned(),
        repository: ours::name_of(image).to_owned(),
        components,
        component,
    }
}

/// Works out what has to change so that the images that something is `given` for say that, and, if anybody is to be asked, foreign
/// ones what their registry says. All others stay.
///
/// With `asking` goes whether to ask again for those that have a digest beside their tag.
pub async fn pin_given(
    manifests: &[Manifest],
    ours: &Ours,
    given: &Given,
    asking: Option<(&Asking, bool)>,
) -> Result<Vec<Edit>, ImageError> {
    let distinct = distinct(manifests);
    given.check_used(&distinct, ours)?;
    let mut digests = BTreeMap::new();
    if let Some((asking, update)) = asking {
        let wanted = distinct.into_iter().filter(|(_, image)| {
            given.find(&image.value, ours).is_none()
                && upstream::is_wanted(&image.value, ours, update)
        });
        digests = upstream::resolve(&wanted.collect::<Vec<_>>(), asking).await?;
    }
    Ok(edit_all(manifests, |_, image| {
        if let Some((_, reference)) = given.find(&image.value, ours) {
            return Ok(Some(New::named(reference.to_owned())));
        }
        let name = originals::without_digest(&image.value);
        let digest = digests.get(name).filter(|_| {
            asking.is_some_and(|(_, update)| upstream::is_wanted(&image.value, ours, update))
        });
        Ok(digest.map(|digest| New::named(format!("{name}@{digest}"))))
    })?)
}

/// Works out what has to change so that the images say what they said before they were pinned; components of which that is not
/// known, nothing but the component's name.
pub fn unpin(
    manifests: &[Manifest],
    ours: &Ours,
    originals: &Originals,
    lock: &Path,
) -> Result<Vec<Edit>, PinError> {
    let mut edits = Vec::new();
    for manifest in manifests {
        let restored = originals::restore(originals, manifest, ours, lock);
        edits.extend(edit(manifest, restored)?);
    }
    Ok(edits)
}

/// A component's name as it can stand in a manifest: `on`, `1.5` or `null` would not be text without quotes.
fn bare(component: &str, plain: bool) -> String {
    let is_text = component.bytes().any(|byte| byte == b'-')
        && component.starts_with(|c: char| c.is_alphabetic());
    let keywords = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let safe = is_text
        || component.bytes().all(|b| b.is_ascii_lowercase()) && !keywords.contains(&component);
    if safe || !plain {
        component.to_owned()
    } else {
        format!("\"{component}\"")
    }
}

fn edit_all(
    manifests: &[Manifest],
    replacement: impl Fn(&Manifest, &ImageScalar) -> Result<Option<New>, PinError>,
) -> Result<Vec<Edit>, PinError> {
    // What becomes of an image depends on nothing but its name, and a large file has few names.
    let mut known: HashMap<&str, Option<New>> = HashMap::new();
    let mut edits = Vec::new();
    for manifest in manifests {
        let mut wanted = Vec::with_capacity(manifest.images.len());
        for image in &manifest.images {
            let new = match known.get(image.value.as_str()) {
                Some(new) => new.clone(),
                None => {
                    let new = replacement(manifest, image)?;
                    known.insert(&image.value, new.clone());
                    new
                }
            };
            wanted.push(new);
        }
        edits.extend(edit(manifest, wanted)?);
    }
    Ok(edits)
}

/// All images of different names, each where it stands first.
fn distinct(manifests: &[Manifest]) -> Vec<(&Manifest, &ImageScalar)> {
    let mut seen = BTreeSet::new();
    let images = manifests
        .iter()
        .flat_map(|manifest| manifest.images.iter().map(move |image| (manifest, image)));
    images
        .filter(|(_, image)| seen.insert(image.value.as_str()))
        .collect()
}

/// The edit that makes `wanted` of the manifest's images, if it changes anything.
fn edit(manifest: &Manifest, mut wanted: Vec<Option<New>>) -> Result<Option<Edit>, PinError> {
    for (image, new) in manifest.images.iter().zip(&mut wanted) {
        new.take_if(|new| new.text == manifest.written(image));
    }
    if wanted.iter().all(Option::is_none) {
        return Ok(None);
    }
    let replaced = manifest
        .parsed
        .replace(&manifest.text, &manifest.images, &wanted);
    let after = replaced.map_err(|fault| PinError::At {
        path: manifest.path.clone(),
        fault: Box::new(fault),
    })?;
    let changes = manifest.images.iter().zip(&wanted);
    let changes = changes.filter_map(|(image, new)| {
        Some(Change {
            path: manifest.path.clone(),
            line: image.line,
            column: image.column,
            before: image.value.clone(),
            after: new.as_ref()?.text.clone(),
        })
    });
    Ok(Some(Edit {
        path: manifest.path.clone(),
        before: Arc::clone(&manifest.text),
        after,
        changes: changes.collect(),
        wanted,
    }))
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
            files::stage(&edit.path, edit.after.as_bytes())
                .map_err(|source| failed(&edit.path, source))?,
        );
    }
    for (index, (edit, file)) in edits.iter().zip(staged).enumerate() {
        if let Err(source) = file.commit() {
            // All or none: those that were written already get their old text back.
            for done in edits.iter().take(index) {
                files::replace(&done.path, done.before.as_bytes())
                    .map_err(|source| failed(&done.path, source))?;
            }
            return Err(failed(&edit.path, source));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
