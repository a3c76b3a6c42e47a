//! The pipeline's operations: each gathers facts ([`gather`]), lets [`super::plan`] decide, and obeys ([`perform`]).
//!
//! Nothing is pinned and no lock is written unless everything before it went well.

mod attest;
pub mod collect;
mod gather;
mod perform;
mod pin;
pub mod reproduce;
mod schedule;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;

use super::ImageError;
use super::attest::Attest;
use super::check::{self, Finding, Remote};
use super::component::{Component, ComponentError, host_platform};
use super::context::stat_cache::StatCache;
use super::destination::Destination;
use super::difference::Difference;
use super::engine::Engine;
use super::event::{ImageEvent, Reporter};
use super::input::{self, Input, Source};
use super::layers::LayerStore;
use super::lock::{Entry, Lock};
use super::pin::{self as pinning, Change, Edit, Ours};
use super::plan::Step;
use super::push::{Knowledge, Pusher};
use super::registry::meter::Meter;
use super::registry::retry::Policy;
use super::registry::{Registry, RegistryError};
use super::select::Selection;
pub use attest::{Attested, Verdict, Verified};
use gather::Prepared;
pub use pin::{PinChoice, Pinning};

/// Folder name of the component that the local registry runs from.
pub const STAND_IN_COMPONENT: &str = "registry";

/// What a run is about.
#[derive(Debug, Clone)]
pub struct Settings {
    /// All components.
    pub components: Vec<Component>,
    /// Where they were found, for messages.
    pub folder: PathBuf,
    /// Those asked for; none: what the manifests use, or all if there are no manifests.
    pub names: Vec<String>,
    /// Folders of manifests.
    pub manifests: Vec<PathBuf>,
    /// Repositories in manifests that are components' under another name: repository -> component.
    pub map: BTreeMap<String, String>,
    /// Images in manifests that stay unpinned: a repository, or a repository and a tag.
    pub keep: Vec<String>,
    /// `images.lock`.
    pub lock: PathBuf,
    /// Cache of layers and of what is known about registries.
    pub cache: PathBuf,
    /// Cache of base images made here.
    pub bases: PathBuf,
    /// Builds at any time.
    pub parallel_builds: usize,
    /// Read every file again, also those that seem to be unchanged since an earlier run.
    pub rehash: bool,
    /// Build again even what exists: distribution packages age under an unchanged name.
    pub refresh: bool,
    /// How patiently registries are asked again.
    pub policy: Policy,
    /// What is attached to images that are pushed.
    pub attest: Attest,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was done.
    pub steps: Vec<Step>,
    /// Component -> `repository:tag@digest`.
    pub references: BTreeMap<String, String>,
    /// Images rewritten in manifests.
    pub pinned: Vec<Change>,
    /// Component -> what is attached to its image.
    pub attested: BTreeMap<String, Attested>,
    /// Requests to registries.
    pub requests: u64,
    /// Bytes of request bodies.
    pub bytes_sent: u64,
    /// Seconds.
    pub seconds: f64,
}

/// What a plan makes sure of about pinning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rehearsal {
    /// Nothing: nothing is to be pinned.
    Skipped,
    /// That every image in the manifests is a component's, or may stay as it is.
    Images,
    /// That pinning what this very run pushes would go well.
    Pin,
}

/// A component's name explained.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The sources.
    pub source: Source,
    /// The name.
    pub input: Input,
    /// Reference and identity of every image that it is built from.
    pub identities: Vec<(String, String)>,
    /// What the lock says.
    pub locked: Option<Entry>,
    /// What changed since then.
    pub difference: Difference,
}

/// The image pipeline.
pub struct Pipeline {
    settings: Settings,
    destination: Destination,
    engine: Engine,
    reporter: Arc<dyn Reporter>,
    meter: Arc<Meter>,
    started: Instant,
}

impl Settings {
    /// What earlier runs know of files.
    pub fn stat_cache(&self) -> StatCache {
        let cache = StatCache::new(&self.cache.join("contexts"));
        match self.rehash {
            true => cache.rehash(),
            false => cache,
        }
    }
}

impl Pipeline {
    /// A pipeline for one run.
    pub fn new(
        settings: Settings,
        destination: Destination,
        engine: Engine,
        reporter: Arc<dyn Reporter>,
    ) -> Self {
        Self {
            settings,
            destination,
            engine,
            reporter,
            meter: Arc::default(),
            started: Instant::now(),
        }
    }

    /// What [`Pipeline::push`] would do. Starts nothing and writes nothing.
    pub async fn plan(&self, rehearsal: Rehearsal) -> Result<Vec<Step>, ImageError> {
        let mut prepared = self.prepare().await?;
        match rehearsal {
            Rehearsal::Skipped => {}
            Rehearsal::Images => self.rehearse_pin(&prepared, &self.names())?,
            Rehearsal::Pin => self.rehearse_pin(&prepared, &prepared.selection.published)?,
        }
        let running = match &self.destination.stand_in {
            Some(stand_in) => {
                stand_in
                    .is_running(&self.destination.client(&[], &self.meter)?)
                    .await?
            }
            None => true,
        };
        let registry = if running {
            Some(self.registry(&prepared.selection)?)
        } else {
            None
        };
        Ok(self.decide(&mut prepared, registry.as_deref()).await?.steps)
    }

    /// Builds what the engine lacks, without a registry. Component -> tag in the engine; with several platforms,
    /// `component@platform` -> tag.
    pub async fn build(&self) -> Result<BTreeMap<String, String>, ImageError> {
        let mut prepared = self.prepare().await?;
        let planned = self.decide(&mut prepared, None).await?;
        let foundations = self.lay_foundations(&mut prepared, &planned).await?;
        self.in_order(&prepared, |source| {
            self.image_of(source, &planned, &foundations)
        })
        .await?;
        let mut tags = BTreeMap::new();
        for Source { component, .. } in &prepared.sources {
            let published = prepared.selection.published.contains(&component.name);
            let Some(input) = planned.inputs.get(&component.name).filter(|_| published) else {
                continue;
            };
            let several = component.platforms.len() > 1;
            for (platform, tag) in component
                .platforms
                .iter()
                .zip(self.engine_tags(component, input))
            {
                let name = component.name.clone();
                tags.insert(
                    if several {
                        format!("{name}@{platform}")
                    } else {
                        name
                    },
                    tag,
                );
            }
        }
        Ok(tags)
    }

    /// Builds and pushes what is missing; with `and_pin`, writes the digests into the manifests.
    pub async fn push(&self, and_pin: bool) -> Result<Report, ImageError> {
        let mut prepared = self.prepare().await?;
        if and_pin {
            self.rehearse_pin(&prepared, &prepared.selection.published)?;
        }
        // A key that cannot be used is worth knowing about before anything is built.
        let key = self.open_key()?;
        self.start_stand_in().await?;
        let registry = self.registry(&prepared.selection)?;
        let planned = self.decide(&mut prepared, Some(registry.as_ref())).await?;
        if key.is_some() {
            self.check_ours(&prepared, &planned)?;
        }
        let foundations = self.lay_foundations(&mut prepared, &planned).await?;
        let pusher = Pusher {
            registry,
            knowledge: Knowledge::load(&self.settings.cache, &self.destination.endpoint.host()),
            store: LayerStore::new(&self.settings.cache),
            policy: self.settings.policy,
            reporter: Arc::clone(&self.reporter),
        };
        let published = self
            .in_order(&prepared, async |source| {
                let published = self.publish(source, &planned, &foundations, &pusher, &prepared);
                let (published, name) = (published.await?, &source.component.name);
                let Some((input, published)) = planned.inputs.get(name).zip(published) else {
                    return Ok(None);
                };
                let entry = self.entry(name, input, published.digest);
                self.remember(&prepared, name, &entry)?;
                Ok(Some((entry, published.ours)))
            })
            .await;
        // Also after a failure: what was sent is there.
        pusher.knowledge.save();
        let (mut entries, mut ours) = (BTreeMap::new(), BTreeSet::new());
        for (name, published) in published? {
            let Some((entry, is_ours)) = published else {
                continue;
            };
            if is_ours {
                ours.insert(name.clone());
            }
            entries.insert(name, entry);
        }
        let attested = self
            .attest_pushed(
                &prepared,
                &planned.inputs,
                &entries,
                &ours,
                pusher.registry.as_ref(),
                key.as_ref(),
            )
            .await?;
        let references: BTreeMap<String, String> = entries
            .iter()
            .map(|(name, entry)| (name.clone(), entry.pinned()))
            .collect();
        let edits = if and_pin {
            pinning::pin(
                &prepared.manifests,
                &self.ours(&prepared.lock)?,
                &references,
            )?
        } else {
            Vec::new()
        };
        self.write_lock(&prepared, entries, &edits)?;
        pinning::write(&edits)?;
        let pinned = edits.into_iter().flat_map(|edit| edit.changes).collect();
        Ok(Report {
            attested,
            ..self.report(planned.steps, references, pinned)
        })
    }

    /// Compares sources, lock, manifests and, unless `offline`, the registry.
    pub async fn check(&self, offline: bool) -> Result<Vec<Finding>, ImageError> {
        let prepared = self.prepare().await?;
        let published = &prepared.selection.published;
        // Only the lock's own word counts here: a base that it lacks is a source that was never pushed.
        let mut inputs = input::name_each(&prepared.sources, |reference| {
            prepared.bases.known(reference)
        });
        inputs.retain(|name, _| published.contains(name));
        let mut remote = BTreeMap::new();
        if !offline {
            let registry = self.registry(&prepared.selection)?;
            let locked = inputs
                .keys()
                .filter_map(|name| prepared.lock.components.get_key_value(name));
            let asked = locked.map(|(name, entry)| {
                ask(registry.as_ref(), self.destination.path(name), name, entry)
            });
            remote.extend(try_join_all(asked).await?);
        }
        Ok(check::check(
            &self.ours(&prepared.lock)?,
            &inputs,
            &prepared.lock,
            &prepared.manifests,
            &remote,
        ))
    }

    /// What a component's name is made of.
    pub async fn why(&self, component: &str) -> Result<Explanation, ImageError> {
        let mut prepared = self.prepare().await?;
        let inputs = self.name(&mut prepared).await?;
        let found = prepared
            .sources
            .iter()
            .find(|source| source.component.name == component);
        let (Some(source), Some(input)) = (found, inputs.get(component)) else {
            let (folder, known) = (
                self.settings.folder.display().to_string(),
                self.names().join(", "),
            );
            return Err(ComponentError::Unknown {
                name: component.to_owned(),
                folder,
                known,
            }
            .into());
        };
        let identities = source.references.iter().map(|reference| {
            let identity = match inputs
                .get(reference)
                .filter(|_| source.dependencies.contains(reference))
            {
                Some(dependency) => dependency.hash.to_string(),
                None => prepared
                    .bases
                    .known(reference)
                    .map(|identity| identity.to_string())
                    .unwrap_or_default(),
            };
            (reference.clone(), identity)
        });
        let locked = prepared.lock.components.get(component);
        Ok(Explanation {
            identities: identities.collect(),
            source: source.clone(),
            input: input.clone(),
            locked: locked.cloned(),
            difference: locked
                .map(|entry| Difference::between(entry, input))
                .unwrap_or_default(),
        })
    }

    /// Makes sure that the local registry answers, if this run uses it.
    pub async fn start_stand_in(&self) -> Result<(), ImageError> {
        let Some(stand_in) = &self.destination.stand_in else {
            return Ok(());
        };
        // Its probing is not part of what a push costs.
        let client = self.destination.client(&[], &Arc::default())?;
        if stand_in.is_running(&client).await? {
            return Ok(());
        }
        if !self.engine.builder().await.is_docker() {
            return Err(RegistryError::StandIn {
                reason: "it needs docker's engine, and another builder is in use: name a registry, e.g. \
                         `--registry localhost:5000`"
                    .to_owned(),
            }
            .into());
        }
        if stand_in.restart(&self.engine, &client).await? {
            return Ok(());
        }
        let image = self.stand_in_image().await?;
        Ok(stand_in.create(&self.engine, &image, &client).await?)
    }

    /// The local registry's image, built like any other but never pushed: there is no registry yet.
    async fn stand_in_image(&self) -> Result<String, ImageError> {
        let missing = || ImageError::NoStandIn {
            folder: self.settings.folder.clone(),
            component: STAND_IN_COMPONENT.to_owned(),
        };
        let component = self
            .settings
            .components
            .iter()
            .find(|component| component.name == STAND_IN_COMPONENT);
        let selection = Selection {
            published: BTreeSet::from([STAND_IN_COMPONENT.to_owned()]),
            components: vec![Component {
                // It runs here, wherever its image goes otherwise.
                platforms: vec![host_platform()],
                ..component.ok_or_else(missing)?.clone()
            }],
            all_bases: BTreeSet::new(),
        };
        let lock = Lock::read(&self.settings.lock)?;
        let mut prepared = self.prepare_selection(lock, Vec::new(), selection).await?;
        let planned = self.decide(&mut prepared, None).await?;
        let foundations = self.lay_foundations(&mut prepared, &planned).await?;
        let source = prepared.sources.first().ok_or_else(missing)?;
        let images = self.image_of(source, &planned, &foundations).await?;
        images.into_iter().next().ok_or_else(missing)
    }

    fn names(&self) -> Vec<String> {
        self.settings
            .components
            .iter()
            .map(|component| component.name.clone())
            .collect()
    }

    fn ours(&self, lock: &Lock) -> Result<Ours, ImageError> {
        let ours = Ours::new(self.names(), &self.destination, lock);
        Ok(ours.with(&self.settings.map, &self.settings.keep)?)
    }

    fn registry(&self, selection: &Selection) -> Result<Arc<dyn Registry>, ImageError> {
        let components: Vec<String> = selection.published.iter().cloned().collect();
        Ok(self.destination.registry(
            &components,
            &self.meter,
            self.settings.policy,
            &self.reporter,
        )?)
    }

    /// Finds out before the first build whether pinning can work at all, if these components have digests by then.
    fn rehearse_pin<'name>(
        &self,
        prepared: &Prepared,
        pushed: impl IntoIterator<Item = &'name String>,
    ) -> Result<(), ImageError> {
        let digest = format!("sha256:{}", "0".repeat(64));
        let references = pushed
            .into_iter()
            .map(|name| {
                (
                    name.clone(),
                    format!("{}@{digest}", self.destination.repository(name)),
                )
            })
            .collect();
        pinning::pin(
            &prepared.manifests,
            &self.ours(&prepared.lock)?,
            &references,
        )?;
        Ok(())
    }

    /// Puts one component into the lock as soon as the registry has it: if the run ends before its own end, the next one knows
    /// whose image it finds there.
    fn remember(
        &self,
        prepared: &Prepared,
        component: &str,
        entry: &Entry,
    ) -> Result<(), ImageError> {
        if prepared.lock.components.get(component) == Some(entry) {
            return Ok(());
        }
        let entries = BTreeMap::from([(component.to_owned(), entry.clone())]);
        self.write_lock(prepared, entries, &[])
    }

    fn write_lock(
        &self,
        prepared: &Prepared,
        entries: BTreeMap<String, Entry>,
        edits: &[Edit],
    ) -> Result<(), ImageError> {
        // Read again: another part of orch may have written its own section meanwhile.
        let mut lock = Lock::read(&self.settings.lock)?;
        // Added to, never cleared: other folders' components may share the lock.
        lock.components.extend(entries);
        let all_bases = prepared.selection.all_bases.iter().map(String::as_str);
        lock.bases.extend(prepared.bases.locked(all_bases));
        if !edits.is_empty() {
            // As this run found the images: by now the lock may say where it has put them.
            let (known, ours) = (&lock.originals, self.ours(&prepared.lock)?);
            lock.originals = pinning::record(
                known,
                &prepared.manifests,
                edits,
                &ours,
                &self.settings.lock,
            );
        }
        lock.write(&self.settings.lock)?;
        Ok(())
    }

    fn report(
        &self,
        steps: Vec<Step>,
        references: BTreeMap<String, String>,
        pinned: Vec<Change>,
    ) -> Report {
        for change in &pinned {
            self.reporter.event(ImageEvent::Pinned {
                file: change.path.display().to_string(),
                line: change.line,
                reference: change.after.clone(),
            });
        }
        let (requests, bytes_sent) = (self.meter.requests(), self.meter.bytes_sent());
        let seconds = self.started.elapsed().as_secs_f64();
        self.reporter.event(ImageEvent::Summary {
            requests,
            bytes_sent,
            seconds,
        });
        Report {
            steps,
            references,
            pinned,
            attested: BTreeMap::new(),
            requests,
            bytes_sent,
            seconds,
        }
    }
}

/// One HEAD where all is well, two where something is wrong.
async fn ask(
    registry: &dyn Registry,
    path: String,
    name: &str,
    entry: &Entry,
) -> Result<(String, Remote), ImageError> {
    let tag = registry.head_manifest(&path, &entry.tag).await?;
    let pin = tag.as_ref() == Some(&entry.digest)
        || registry
            .head_manifest(&path, &entry.digest)
            .await?
            .is_some();
    Ok((name.to_owned(), Remote { tag, pin }))
}
