//! Says things about images that are in the registry: lists of packages, provenance, signatures.
//!
//! [`documents`] makes what is said, [`packages`] reads the images for it, [`ours`] says about which images a key may speak,
//! [`verify`] reads what was said.

mod documents;
mod ours;
mod packages;
mod verify;

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use serde::Serialize;

use super::Pipeline;
use super::gather::Prepared;
use crate::images::ImageError;
use crate::images::attest::key::PrivateKey;
use crate::images::attest::store::Store;
use crate::images::attest::{AttestError, provenance, spdx};
use crate::images::event::ImageEvent;
use crate::images::input::{self, Input, Source};
use crate::images::lock::{Entry, Lock};
use crate::images::registry::Registry;
use documents::attach_provenance;
pub(in crate::images::execute) use ours::is_listed;
pub use verify::{Verdict, Verified};

/// What is attached to an image now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Attested {
    /// `repository:tag@digest`.
    pub reference: String,
    /// Digests of the lists of packages, one a platform; none unless asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sbom: Vec<String>,
    /// Digest of the provenance, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// Is it signed by the key that was given?
    pub signed: bool,
    /// How many of these were not there before.
    pub added: usize,
}

/// What may be said about one image.
struct Wanted<'k> {
    provenance: bool,
    key: Option<&'k PrivateKey>,
}

impl Pipeline {
    /// Attaches what the settings ask for to the images that the lock lists.
    pub async fn attest(&self) -> Result<BTreeMap<String, Attested>, ImageError> {
        let prepared = self.prepare().await?;
        let registry = self.registry(&prepared.selection)?;
        let key = self.open_key()?;
        let inputs = self.locked_inputs(&prepared);
        let published = prepared.sources.iter().filter(|source| {
            let name = &source.component.name;
            prepared.selection.published.contains(name)
        });
        let tasks = published.map(|source| {
            let (prepared, inputs, registry) = (&prepared, &inputs, registry.as_ref());
            let key = key.as_ref();
            async move {
                let name = source.component.name.clone();
                let entry = self.locked(&prepared.lock, &name)?;
                let documents = self.settings.attest.sbom || self.settings.attest.provenance;
                if documents {
                    self.check_fresh(entry, inputs.get(&name), &name)?;
                }
                let provenance = self.settings.attest.provenance;
                let wanted = Wanted { provenance, key };
                let found = self.attest_one(prepared, inputs, source, entry, registry, wanted);
                Ok::<_, ImageError>((name, found.await?))
            }
        });
        Ok(try_join_all(tasks).await?.into_iter().collect())
    }

    /// Attaches what the settings ask for to the images of a push. How one that is not `ours` was built, nobody here knows.
    pub(in crate::images::execute) async fn attest_pushed(
        &self,
        prepared: &Prepared,
        inputs: &BTreeMap<String, Input>,
        entries: &BTreeMap<String, Entry>,
        ours: &BTreeSet<String>,
        registry: &dyn Registry,
        key: Option<&PrivateKey>,
    ) -> Result<BTreeMap<String, Attested>, ImageError> {
        if self.settings.attest.is_empty() {
            return Ok(BTreeMap::new());
        }
        let tasks = prepared.sources.iter().filter_map(|source| {
            let name = source.component.name.clone();
            let entry = entries.get(&name)?;
            let provenance = self.settings.attest.provenance && ours.contains(&name);
            if self.settings.attest.provenance && !provenance {
                let (component, reference) = (name.clone(), entry.pinned());
                self.reporter.event(ImageEvent::Unattested {
                    component,
                    reference,
                });
            }
            let wanted = Wanted { provenance, key };
            let found = self.attest_one(prepared, inputs, source, entry, registry, wanted);
            Some(async move { Ok::<_, ImageError>((name, found.await?)) })
        });
        Ok(try_join_all(tasks).await?.into_iter().collect())
    }

    pub(in crate::images::execute) fn open_key(&self) -> Result<Option<PrivateKey>, ImageError> {
        let key = self.settings.attest.key.as_ref();
        Ok(key
            .map(|key| key.open())
            .transpose()
            .map_err(AttestError::from)?)
    }

    fn locked<'l>(&self, lock: &'l Lock, component: &str) -> Result<&'l Entry, ImageError> {
        let entry = lock.components.get(component);
        let entry = entry.ok_or_else(|| AttestError::NotPushed {
            component: component.to_owned(),
            lock: self.settings.lock.clone(),
        })?;
        let here = self.destination.repository(component);
        if entry.repository != here {
            return Err(AttestError::Elsewhere {
                component: component.to_owned(),
                listed: entry.repository.clone(),
                here,
                lock: self.settings.lock.clone(),
            }
            .into());
        }
        Ok(entry)
    }

    /// Names as far as the lock's own bases give them.
    fn locked_inputs(&self, prepared: &Prepared) -> BTreeMap<String, Input> {
        let inputs = input::name_each(&prepared.sources, |reference| {
            prepared.bases.known(reference)
        });
        inputs
            .into_iter()
            .filter_map(|(name, input)| Some((name, input.ok()?)))
            .collect()
    }

    /// Documents quote the sources, so these must be what was pushed.
    fn check_fresh(
        &self,
        entry: &Entry,
        input: Option<&Input>,
        component: &str,
    ) -> Result<(), ImageError> {
        if input.is_some_and(|input| input.hash.to_string() == entry.input) {
            return Ok(());
        }
        Err(AttestError::Stale {
            component: component.to_owned(),
            reference: entry.pinned(),
        }
        .into())
    }

    fn store<'r>(&'r self, component: &str, registry: &'r dyn Registry) -> Store<'r> {
        Store {
            registry,
            repository: self.destination.path(component),
            policy: self.settings.policy,
            reporter: self.reporter.as_ref(),
        }
    }

    async fn attest_one(
        &self,
        prepared: &Prepared,
        inputs: &BTreeMap<String, Input>,
        source: &Source,
        entry: &Entry,
        registry: &dyn Registry,
        Wanted { provenance, key }: Wanted<'_>,
    ) -> Result<Attested, ImageError> {
        let name = &source.component.name;
        let store = self.store(name, registry);
        let mut attested = Attested {
            reference: entry.pinned(),
            ..Attested::default()
        };
        let sbom = self.settings.attest.sbom;
        // Nothing is said, not even by a signature, about an image that is not there.
        let manifest = store.image(&entry.digest).await?;
        if sbom || provenance {
            if provenance {
                let build = self.build_of(prepared, inputs, source, entry);
                let known = store.referrers(&entry.digest).await?;
                let placed =
                    attach_provenance(&store, source, build, &manifest, &known, key).await?;
                self.attached(&mut attested, name, "provenance", placed.new);
                if let (Some(key), Some(made)) = (key, &placed.made) {
                    let statement = (provenance::MEDIA_TYPE, made.as_ref());
                    let new = store.seal(&entry.repository, &entry.digest, statement, key);
                    let new = new.await?;
                    self.attached(&mut attested, name, "signed provenance", new);
                }
                attested.provenance = Some(placed.digest);
            }
            if sbom {
                for image in self.platforms(&store, source, manifest).await? {
                    let placed = self.attach_sbom(&store, source, entry, &image, key).await?;
                    self.attached(&mut attested, name, "list of packages", placed.new);
                    if let (Some(key), Some(made)) = (key, &placed.made) {
                        let subject = image.manifest.digest();
                        let list = (spdx::MEDIA_TYPE, made.as_ref());
                        let new = store.seal(&entry.repository, &subject, list, key);
                        let new = new.await?;
                        self.attached(&mut attested, name, "signed list of packages", new);
                    }
                    attested.sbom.push(placed.digest);
                }
            }
        }
        if let Some(key) = key {
            let new = store.sign(&entry.repository, &entry.digest, key).await?;
            self.attached(&mut attested, name, "signature", new);
            attested.signed = true;
        }
        Ok(attested)
    }

    fn attached(&self, attested: &mut Attested, component: &str, document: &str, new: bool) {
        attested.added += usize::from(new);
        self.reporter.event(ImageEvent::Attached {
            component: component.to_owned(),
            document: document.to_owned(),
            new,
        });
    }
}
