//! Pinning and unpinning by themselves: what the lock says, what is given, what foreign registries say. Needs no engine, and no
//! registry of our own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::images::ImageError;
use crate::images::destination::Destination;
use crate::images::lock::Lock;
use crate::images::pin::{self, Asking, Change, Given, Manifest, Ours, PinError};

/// What a pin is about.
pub struct Pinning {
    /// Names of all components; there may be none.
    pub components: Vec<String>,
    /// Where our images go, if that is known.
    pub destination: Option<Destination>,
    /// Files and folders of manifests.
    pub manifests: Vec<PathBuf>,
    /// Repository -> component.
    pub map: BTreeMap<String, String>,
    /// Images that stay unpinned.
    pub keep: Vec<String>,
    /// `images.lock`.
    pub lock: PathBuf,
    /// How foreign registries are asked.
    pub asking: Asking,
}

/// Which images are pinned to what.
#[derive(Debug, Clone, Default)]
pub struct PinChoice {
    /// Names and references with digests; with any, the lock's are left out.
    pub set: Vec<(String, String)>,
    /// Ask for the digests of foreign images; alone, the lock's are left out.
    pub upstream: bool,
    /// Ask again for those that have one.
    pub update: bool,
    /// Write nothing.
    pub dry_run: bool,
}

impl Pinning {
    /// Pins. All files or none.
    pub async fn pin(&self, choice: &PinChoice) -> Result<Vec<Change>, ImageError> {
        let mut lock = Lock::read(&self.lock)?;
        let manifests = self.read()?;
        let plain = self.ours(Vec::new(), &lock)?;
        let edits = if choice.set.is_empty() && !choice.upstream {
            let ours = plain.clone().with(&self.map, &self.keep)?;
            let locked = lock.components.iter();
            let references = locked
                .map(|(name, entry)| (name.clone(), entry.pinned()))
                .collect();
            pin::pin(&manifests, &ours, &references)?
        } else {
            // A name that is set may be mapped to as well, though no folder makes a component of it.
            let mapped = choice.set.iter().map(|(name, _)| name.clone());
            let mapped = mapped.filter(|name| self.map.values().any(|mapped| mapped == name));
            let ours = self.ours(mapped.collect(), &lock)?;
            let ours = ours.with(&self.map, &self.keep)?;
            let given = Given::new(&choice.set, &ours)?;
            let asking = choice.upstream.then_some((&self.asking, choice.update));
            pin::pin_given(&manifests, &ours, &given, asking).await?
        };
        if !choice.dry_run && !edits.is_empty() {
            // Read again: registries may have been slow, and somebody else's push quicker.
            lock = Lock::read(&self.lock)?;
            lock.originals = pin::record(&lock.originals, &manifests, &edits, &plain, &self.lock);
            // Before the manifests: what a crash leaves pinned can be unpinned.
            lock.write(&self.lock)?;
            pin::write(&edits)?;
        }
        Ok(edits.into_iter().flat_map(|edit| edit.changes).collect())
    }

    /// Gives the manifests back what stood there before they were pinned.
    pub fn unpin(&self, dry_run: bool) -> Result<Vec<Change>, ImageError> {
        let mut lock = Lock::read(&self.lock)?;
        let manifests = self.read()?;
        let mut ours = self.ours(Vec::new(), &lock)?;
        if !ours.is_empty() {
            ours = ours.with(&self.map, &self.keep)?;
        }
        let edits = pin::unpin(&manifests, &ours, &lock.originals, &self.lock)?;
        if !dry_run {
            pin::write(&edits)?;
            let originals = pin::forget(&lock.originals, &manifests, &ours, &self.lock);
            if originals != lock.originals {
                lock.originals = originals;
                lock.write(&self.lock)?;
            }
        }
        Ok(edits.into_iter().flat_map(|edit| edit.changes).collect())
    }

    fn read(&self) -> Result<Vec<Manifest>, ImageError> {
        if self.manifests.is_empty() {
            return Err(PinError::NoManifests.into());
        }
        Ok(pin::read(&self.manifests)?)
    }

    fn ours(&self, more: Vec<String>, lock: &Lock) -> Result<Ours, ImageError> {
        let mut names = self.components.clone();
        names.extend(more);
        names.sort();
        names.dedup();
        Ok(match &self.destination {
            Some(destination) => Ours::new(names, destination, lock),
            None => Ours::nowhere(names, lock),
        })
    }
}
