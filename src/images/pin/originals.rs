//! What stood in manifests before images were pinned, so that unpinning gives back the same bytes.
//!
//! Kept in `images.lock` by file, in the file's order. Boundary: decides what is remembered; [`crate::images::lock`] stores it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Component, Path, PathBuf};

use super::edit::New;
use super::{Edit, ImageScalar, Manifest, Ours, is_pinned};
use crate::images::hash::is_input_tag;
use crate::images::lock::Original;

/// File, relative to the lock's folder -> its images in order.
pub type Originals = BTreeMap<String, Vec<Original>>;

/// What is to be remembered when `edits`, which pin images of `manifests`, are written.
pub fn record(
    known: &Originals,
    manifests: &[Manifest],
    edits: &[Edit],
    ours: &Ours,
    lock: &Path,
) -> Originals {
    let mut originals = known.clone();
    let mut keys = Keys::new(ours);
    for manifest in manifests {
        let file = relative(&manifest.path, lock);
        let mut before = Queues::new(known.get(&file));
        let edit = edits.iter().find(|edit| edit.path == manifest.path);
        let all = manifest.images.iter().enumerate().map(|(index, image)| {
            let pinned = is_pinned(&image.value);
            let new = edit.and_then(|edit| edit.wanted.get(index)?.as_ref());
            let value = new
                .and_then(|new| new.says.as_ref())
                .unwrap_or(&image.value);
            let own = before.take(image, &mut keys);
            // Where images went may have changed since it was pinned: it is remembered as what it becomes, too.
            let taken = own.or_else(|| before.next(&keys.of(value)).filter(|_| pinned));
            let kept = taken.flatten();
            let written = || new.map(|_| manifest.written(image).to_owned());
            let text = if !pinned {
                written()
            // A digest of a component or beside a tag of ours that nobody remembers was pinned by another lock's orch, any
            // other by hand.
            } else if ours.component_of(&image.value).is_none() && !has_our_tag(&image.value) {
                kept.or_else(written)
            } else {
                kept
            };
            Original {
                image: keys.of(value),
                text,
            }
        });
        let mut all: Vec<Original> = all.collect();
        // Which of several equal images it was matters, and nothing of the others.
        let remembered: BTreeSet<String> = all
            .iter()
            .filter(|original| original.text.is_some())
            .map(|original| original.image.clone())
            .collect();
        all.retain(|original| remembered.contains(&original.image));
        // What no image here asked for may be a component's that this run does not know by that name.
        let whole = Queues::new(known.get(&file));
        let untouched = known.get(&file).into_iter().flatten();
        let untouched = untouched.filter(|original| {
            whole.0.get(original.image.as_str()) == before.0.get(original.image.as_str())
        });
        all.extend(untouched.cloned());
        if all.is_empty() {
            originals.remove(&file);
        } else {
            originals.insert(file, all);
        }
    }
    without_gone(originals, lock)
}

/// What remains to be remembered after the images of `manifests`, as they were before, were unpinned.
pub fn forget(known: &Originals, manifests: &[Manifest], ours: &Ours, lock: &Path) -> Originals {
    let mut originals = known.clone();
    let mut keys = Keys::new(ours);
    for manifest in manifests {
        let file = relative(&manifest.path, lock);
        let mut before = Queues::new(known.get(&file));
        for image in &manifest.images {
            before.take(image, &mut keys);
        }
        // A component that this run does not know keeps its originals for one that does.
        if before.is_used_up() {
            originals.remove(&file);
        }
    }
    without_gone(originals, lock)
}

/// What takes each image's place when it is unpinned.
pub(super) fn restore(
    known: &Originals,
    manifest: &Manifest,
    ours: &Ours,
    lock: &Path,
) -> Vec<Option<New>> {
    let mut before = Queues::new(known.get(&relative(&manifest.path, lock)));
    let mut keys = Keys::new(ours);
    let mut bare: HashMap<(&str, bool), Option<New>> = HashMap::new();
    let images = manifest.images.iter();
    let restored = images.map(|image| {
        let original = before.take(image, &mut keys).flatten();
        match original.filter(|_| is_pinned(&image.value)) {
            Some(text) => Some(New { text, says: None }),
            None => bare
                .entry((&image.value, image.plain))
                .or_insert_with(|| {
                    let component = ours.pinned_component(&image.value)?;
                    Some(New::named(super::bare(component, image.plain)))
                })
                .clone(),
        }
    });
    restored.collect()
}

/// The originals of one file, in order for each image.
struct Queues<'known>(BTreeMap<&'known str, VecDeque<Option<&'known str>>>);

impl<'known> Queues<'known> {
    /// Was everything that is to be given back taken?
    fn is_used_up(&self) -> bool {
        !self.0.values().flatten().any(Option::is_some)
    }

    fn new(known: Option<&'known Vec<Original>>) -> Self {
        let mut queues: BTreeMap<&str, VecDeque<Option<&str>>> = BTreeMap::new();
        for original in known.into_iter().flatten() {
            let queue = queues.entry(&original.image).or_default();
            queue.push_back(original.text.as_deref());
        }
        Self(queues)
    }

    fn take(&mut self, image: &ImageScalar, keys: &mut Keys<'_>) -> Option<Option<String>> {
        // A component may have been recorded before it was known as one.
        let plain = without_digest(&image.value);
        let key = keys.of(&image.value);
        match self.0.contains_key(key.as_str()) {
            true => self.next(&key),
            false => self.next(plain),
        }
    }

    fn next(&mut self, key: &str) -> Option<Option<String>> {
        let text = self.0.get_mut(key)?.pop_front()?;
        Some(text.map(str::to_owned))
    }
}

/// What images are called in the lock.
struct Keys<'ours> {
    ours: &'ours Ours,
    known: HashMap<String, String>,
}

impl<'ours> Keys<'ours> {
    fn new(ours: &'ours Ours) -> Self {
        Self {
            ours,
            known: HashMap::new(),
        }
    }

    fn of(&mut self, value: &str) -> String {
        if let Some(key) = self.known.get(value) {
            return key.clone();
        }
        let component = self.ours.component_of(value);
        let key = component
            .unwrap_or_else(|| without_digest(value))
            .to_owned();
        self.known.insert(value.to_owned(), key.clone());
        key
    }
}

fn has_our_tag(image: &str) -> bool {
    let tag = without_digest(image).rsplit(':').next();
    tag.is_some_and(is_input_tag)
}

pub(super) fn without_digest(image: &str) -> &str {
    image.split('@').next().unwrap_or_default()
}

fn without_gone(mut originals: Originals, lock: &Path) -> Originals {
    let folder = folder_of(lock);
    originals.retain(|file, _| folder.join(file).is_file());
    originals
}

fn folder_of(lock: &Path) -> PathBuf {
    let folder = match lock.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned())
}

/// `file` as the lock calls it: relative to the lock's folder, with `/`.
fn relative(file: &Path, lock: &Path) -> String {
    let folder = folder_of(lock);
    let folder = folder.canonicalize().unwrap_or(folder);
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let common = folder
        .components()
        .zip(file.components())
        .take_while(|(one, other)| one == other)
        .count();
    let up = folder.components().skip(common).map(|_| "..".into());
    let down = file.components().skip(common).map(|part| match part {
        Component::Normal(name) => name.to_string_lossy(),
        _ => "".into(),
    });
    up.chain(down).collect::<Vec<_>>().join("/")
}
