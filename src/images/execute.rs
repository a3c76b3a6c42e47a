//! Gathers facts, asks [`super::plan`], and does what it says.
//!
//! Nothing is pinned and no lock is written unless everything before it went well.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use tokio::sync::Semaphore;

use super::ImageError;
use super::bases::Bases;
use super::check::{self, Finding, Remote};
use super::component::Component;
use super::destination::Destination;
use super::engine::{Engine, build, familiar};
use super::event::{ImageEvent, Reporter};
use super::input::{self, Input, Source};
use super::layers::LayerStore;
use super::lock::{Entry, Lock};
use super::pin::{self, Change, Manifest};
use super::plan::{Action, Facts, Step, plan};
use super::push::{Knowledge, Pushed, Pusher};
use super::registry::Registry;
use super::registry::meter::Meter;
use super::registry::retry::Policy;
use super::select::{Selection, select};

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
    /// `images.lock`.
    pub lock: PathBuf,
    /// Cache of layers and of what is known about registries.
    pub cache: PathBuf,
    /// Cache of base images made here.
    pub bases: PathBuf,
    /// Builds at any time.
    pub parallel_builds: usize,
    /// Build again even what exists: distribution packages age under an unchanged name.
    pub refresh: bool,
    /// How patiently registries are asked again.
    pub policy: Policy,
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
    /// Requests to registries.
    pub requests: u64,
    /// Bytes of request bodies.
    pub bytes_sent: u64,
    /// Seconds.
    pub seconds: f64,
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

/// Everything that is known before the first decision.
struct Prepared {
    lock: Lock,
    manifests: Vec<Manifest>,
    selection: Selection,
    sources: Vec<Source>,
    bases: Bases,
}

/// A plan and the facts it was made from.
struct Planned {
    inputs: BTreeMap<String, Input>,
    steps: Vec<Step>,
    /// `repository:tag` -> ID in the engine; empty if the engine was not asked.
    images: BTreeMap<String, String>,
}

impl Pipeline {
    /// A pipeline for one run.
    pub fn new(settings: Settings, destination: Destination, engine: Engine, reporter: Arc<dyn Reporter>) -> Self {
        Self { settings, destination, engine, reporter, meter: Arc::default(), started: Instant::now() }
    }

    /// What [`Pipeline::push`] would do. Starts nothing and writes nothing.
    pub async fn plan(&self) -> Result<Vec<Step>, ImageError> {
        let mut prepared = self.prepare().await?;
        let running = match &self.destination.stand_in {
            Some(stand_in) => stand_in.is_running(&self.destination.client(&[], &self.meter)?).await,
            None => true,
        };
        let registry = if running { Some(self.registry(&prepared.selection)?) } else { None };
        Ok(self.decide(&mut prepared, registry.as_deref()).await?.steps)
    }

    /// Builds what has no image yet, without a registry. Component -> tag in the engine.
    pub async fn build(&self) -> Result<BTreeMap<String, String>, ImageError> {
        let mut prepared = self.prepare().await?;
        let planned = self.decide(&mut prepared, None).await?;
        let replacements = self.materialise(&mut prepared, &planned).await?;
        self.run_levels(&prepared, &planned, |source| {
            self.image_of(source, &planned, &replacements)
        })
        .await?;
        let tags = planned.inputs.iter().map(|(name, input)| (name.clone(), self.engine_tag(name, input)));
        Ok(tags.collect())
    }

    /// Builds and pushes what is missing; with `and_pin`, writes the digests into the manifests.
    pub async fn push(&self, and_pin: bool) -> Result<Report, ImageError> {
        let mut prepared = self.prepare().await?;
        if and_pin {
            self.rehearse_pin(&prepared)?;
        }
        self.start_stand_in().await?;
        let registry = self.registry(&prepared.selection)?;
        let planned = self.decide(&mut prepared, Some(registry.as_ref())).await?;
        let replacements = self.materialise(&mut prepared, &planned).await?;
        let pusher = Pusher {
            registry,
            knowledge: Knowledge::load(&self.settings.cache, &self.destination.endpoint.host()),
            store: LayerStore::new(&self.settings.cache),
            policy: self.settings.policy,
            reporter: Arc::clone(&self.reporter),
        };
        let results = self.run_levels(&prepared, &planned, |source| {
            self.publish(source, &planned, &replacements, &pusher)
        });
        let results = results.await;
        pusher.knowledge.save();
        let digests = results?.into_iter().filter_map(|(name, digest)| digest.map(|digest| (name, digest)));
        let entries: BTreeMap<String, Entry> = digests.filter_map(|(name, digest)| {
            let input = planned.inputs.get(&name)?;
            Some((name.clone(), self.entry(&name, input, digest)))
        }).collect();
        let references: BTreeMap<String, String> =
            entries.iter().map(|(name, entry)| (name.clone(), entry.pinned())).collect();
        let edits = if and_pin { pin::pin(&prepared.manifests, &self.names(), &references)? } else { Vec::new() };
        self.write_lock(&mut prepared, entries)?;
        pin::write(&edits)?;
        let pinned: Vec<Change> = edits.into_iter().flat_map(|edit| edit.changes).collect();
        Ok(self.report(planned.steps, references, pinned))
    }

    /// Compares sources, lock, manifests and, unless `offline`, the registry.
    pub async fn check(&self, offline: bool) -> Result<Vec<Finding>, ImageError> {
        let prepared = self.prepare().await?;
        let mut inputs: BTreeMap<String, Result<Input, String>> = BTreeMap::new();
        match input::name(&prepared.sources, |reference| prepared.bases.known(reference)) {
            Ok(named) => inputs.extend(named.into_iter().map(|(name, input)| (name, Ok(input)))),
            // Only the lock's own word counts here: a base that it lacks is a source that was never pushed.
            Err(error @ input::InputError::UnknownBase { .. }) => {
                let reason = error.to_string();
                inputs.extend(prepared.selection.published.iter().map(|name| (name.clone(), Err(reason.clone()))));
            }
            Err(error) => return Err(error.into()),
        }
        inputs.retain(|name, _| prepared.selection.published.contains(name));
        let mut remote = BTreeMap::new();
        if !offline {
            let registry = self.registry(&prepared.selection)?;
            let locked = inputs.keys().filter_map(|name| prepared.lock.components.get(name).map(|entry| (name, entry)));
            let asked = locked.map(|(name, entry)| ask(registry.as_ref(), self.destination.path(name), name, entry));
            remote.extend(try_join_all(asked).await?);
        }
        Ok(check::check(&self.names(), &inputs, &prepared.lock, &prepared.manifests, &remote))
    }

    /// What a component's name is made of.
    pub async fn why(&self, component: &str) -> Result<Explanation, ImageError> {
        let mut prepared = self.prepare().await?;
        let inputs = self.name(&mut prepared).await?;
        let found = prepared.sources.iter().find(|source| source.component.name == component);
        let (Some(source), Some(input)) = (found, inputs.get(component)) else {
            let known = self.names().join(", ");
            let folder = self.settings.folder.display().to_string();
            return Err(super::component::ComponentError::Unknown { name: component.to_owned(), folder, known }.into());
        };
        let identities = source.dockerfile.references().into_iter().map(|reference| {
            let identity = match inputs.get(reference).filter(|_| source.dependencies.contains(reference)) {
                Some(dependency) => dependency.hash.to_string(),
                None => prepared.bases.known(reference).map(|identity| identity.to_string()).unwrap_or_default(),
            };
            (reference.to_owned(), identity)
        });
        Ok(Explanation {
            identities: identities.collect(),
            source: source.clone(),
            input: input.clone(),
            locked: prepared.lock.components.get(component).cloned(),
        })
    }

    /// Writes bare component names back into the manifests.
    pub fn unpin(&self) -> Result<Vec<Change>, ImageError> {
        let edits = pin::unpin(&pin::read(&self.settings.manifests)?, &self.names())?;
        pin::write(&edits)?;
        Ok(edits.into_iter().flat_map(|edit| edit.changes).collect())
    }

    fn names(&self) -> Vec<String> {
        self.settings.components.iter().map(|component| component.name.clone()).collect()
    }

    async fn prepare(&self) -> Result<Prepared, ImageError> {
        let settings = &self.settings;
        let lock = Lock::read(&settings.lock)?;
        let manifests = pin::read(&settings.manifests)?;
        let selection = select(&settings.components, &settings.folder, &settings.names, &manifests)?;
        let sources = input::read(&selection.components).await?;
        let bases = self.bases(&lock, &selection.components);
        Ok(Prepared { lock, manifests, selection, sources, bases })
    }

    fn bases(&self, lock: &Lock, components: &[Component]) -> Bases {
        let platform = components.first().map(|component| component.platform.clone());
        Bases::new(
            self.engine.clone(),
            self.settings.bases.clone(),
            platform.unwrap_or_else(super::component::host_platform),
            &lock.bases,
            Arc::clone(&self.meter),
            Arc::clone(&self.reporter),
        )
    }

    fn registry(&self, selection: &Selection) -> Result<Arc<dyn Registry>, ImageError> {
        let components: Vec<String> = selection.published.iter().cloned().collect();
        Ok(self.destination.registry(&components, &self.meter, self.settings.policy, &self.reporter)?)
    }

    /// Finds out before the first build whether pinning can work at all.
    fn rehearse_pin(&self, prepared: &Prepared) -> Result<(), ImageError> {
        let stand_in = |name: &String| (name.clone(), format!("{}@sha256:{}", self.destination.repository(name), "0".repeat(64)));
        let references = prepared.selection.published.iter().map(stand_in).collect();
        pin::pin(&prepared.manifests, &self.names(), &references)?;
        Ok(())
    }

    /// Names everything, asking about bases that the lock does not know.
    async fn name(&self, prepared: &mut Prepared) -> Result<BTreeMap<String, Input>, ImageError> {
        for source in &prepared.sources {
            for reference in &source.bases {
                prepared.bases.identity(reference).await?;
            }
        }
        let bases = &prepared.bases;
        Ok(input::name(&prepared.sources, |reference| bases.known(reference))?)
    }

    /// Decides. When something must be built and a base turns out to be another one here, everything is decided again.
    async fn decide(&self, prepared: &mut Prepared, registry: Option<&dyn Registry>) -> Result<Planned, ImageError> {
        loop {
            let inputs = self.name(prepared).await?;
            let planned = self.decide_once(prepared, inputs, registry).await?;
            let building: BTreeSet<&str> = planned.steps.iter().filter(|step| step.action == Action::Build).map(|step| step.component.as_str()).collect();
            let mut changed = false;
            let mut revised = BTreeSet::new();
            for source in prepared.sources.iter().filter(|source| building.contains(source.component.name.as_str())) {
                for reference in source.bases.iter().filter(|reference| revised.insert((*reference).clone())) {
                    changed |= prepared.bases.revise(reference).await?;
                }
            }
            if !changed {
                return Ok(planned);
            }
        }
    }

    async fn decide_once(
        &self,
        prepared: &Prepared,
        inputs: BTreeMap<String, Input>,
        registry: Option<&dyn Registry>,
    ) -> Result<Planned, ImageError> {
        let published = |name: &str| prepared.selection.published.contains(name);
        let asked = inputs.iter().filter(|(name, _)| published(name)).map(|(name, input)| async move {
            let digest = match registry {
                Some(registry) => registry.head_manifest(&self.destination.path(name), &input.tag).await?,
                None => None,
            };
            Ok::<_, ImageError>((name.clone(), digest))
        });
        let remote: BTreeMap<String, Option<String>> = try_join_all(asked).await?.into_iter().collect();
        // Only when something is missing is the engine asked at all.
        let complete = !self.settings.refresh && remote.values().all(Option::is_some);
        let images = if complete { BTreeMap::new() } else { self.engine.image_ids().await? };
        let facts: Vec<Facts> = prepared
            .sources
            .iter()
            .filter_map(|source| {
                let name = &source.component.name;
                let input = inputs.get(name)?;
                Some(Facts {
                    component: name.clone(),
                    input: input.clone(),
                    published: published(name),
                    dependencies: source.dependencies.clone(),
                    locked: prepared.lock.components.get(name).cloned(),
                    registry: remote.get(name).cloned().flatten(),
                    engine: images.get(familiar(&self.engine_tag(name, input))).cloned(),
                    refresh: self.settings.refresh,
                })
            })
            .collect();
        Ok(Planned { steps: plan(&facts), inputs, images })
    }

    fn engine_tag(&self, component: &str, input: &Input) -> String {
        format!("{}:{}", self.destination.repository(component), input.tag)
    }

    fn entry(&self, component: &str, input: &Input, digest: String) -> Entry {
        Entry {
            digest,
            input: input.hash.to_string(),
            parts: input.parts.clone(),
            repository: self.destination.repository(component),
            tag: input.tag.clone(),
        }
    }

    /// Makes sure of every base that a build needs. Reference in a Dockerfile -> reference for the engine.
    async fn materialise(&self, prepared: &mut Prepared, planned: &Planned) -> Result<BTreeMap<String, String>, ImageError> {
        let mut replacements = BTreeMap::new();
        for source in &prepared.sources {
            let name = &source.component.name;
            let step = planned.steps.iter().find(|step| step.component == *name);
            // A lost tag may turn out to be a lost image, which is only known when it is looked for.
            if !step.is_some_and(|step| matches!(step.action, Action::Build | Action::Retag { .. })) {
                continue;
            }
            for reference in &source.bases {
                if !replacements.contains_key(reference) {
                    let made = prepared.bases.materialise(reference, self.settings.refresh).await?;
                    replacements.insert(reference.clone(), made);
                }
            }
        }
        for step in &planned.steps {
            let Some(input) = planned.inputs.get(&step.component) else { continue };
            let tag = self.engine_tag(&step.component, input);
            let here = step.action == Action::Build || planned.images.contains_key(familiar(&tag));
            let reference = match &step.action {
                Action::Skip { digest: Some(digest) } if !here => self.destination.pullable(&step.component, digest),
                _ => tag,
            };
            replacements.insert(step.component.clone(), reference);
        }
        Ok(replacements)
    }

    /// Runs `work` for every component, dependencies before dependents, at most `parallel_builds` at once.
    async fn run_levels<'s, F, T>(
        &'s self,
        prepared: &'s Prepared,
        _planned: &Planned,
        work: impl Fn(&'s Source) -> F,
    ) -> Result<BTreeMap<String, T>, ImageError>
    where
        F: Future<Output = Result<T, ImageError>>,
    {
        let limit = Semaphore::new(self.settings.parallel_builds.max(1));
        let mut done: BTreeMap<String, T> = BTreeMap::new();
        while done.len() < prepared.sources.len() {
            let ready = prepared.sources.iter().filter(|source| {
                !done.contains_key(&source.component.name)
                    && source.dependencies.iter().all(|name| done.contains_key(name))
            });
            let tasks = ready.map(|source| {
                let (limit, result) = (&limit, work(source));
                async move {
                    let _permit = limit.acquire().await;
                    Ok::<_, ImageError>((source.component.name.clone(), result.await?))
                }
            });
            done.extend(try_join_all(tasks).await?);
        }
        Ok(done)
    }

    /// The image's ID in the engine, built now if the plan says so.
    async fn image_of(
        &self,
        source: &Source,
        planned: &Planned,
        replacements: &BTreeMap<String, String>,
    ) -> Result<Option<String>, ImageError> {
        let step = planned.steps.iter().find(|step| step.component == source.component.name);
        let Some(step) = step else { return Ok(None) };
        match &step.action {
            Action::Build => self.build_one(source, planned, replacements, &step.reason).await.map(Some),
            Action::Push { image } => {
                let (component, reason) = (step.component.clone(), step.reason.clone());
                self.reporter.event(ImageEvent::Skipped { component, reason });
                Ok(Some(image.clone()))
            }
            _ => Ok(None),
        }
    }

    async fn build_one(
        &self,
        source: &Source,
        planned: &Planned,
        replacements: &BTreeMap<String, String>,
        reason: &str,
    ) -> Result<String, ImageError> {
        let component = source.component.name.clone();
        let Some(input) = planned.inputs.get(&component) else {
            return Err(build::BuildError::NoImage { component }.into());
        };
        let reason = reason.to_owned();
        self.reporter.event(ImageEvent::BuildStarted { component: component.clone(), reason });
        let started = Instant::now();
        let own_frontend = replacements.values().any(|reference| reference.starts_with("orch-base/"));
        let tag = self.engine_tag(&component, input);
        let request = build::Request {
            component: &source.component,
            context: &source.context,
            context_hash: source.context_hash,
            dockerfile: source.dockerfile.with_images(replacements, own_frontend),
            tag: &tag,
            refresh: self.settings.refresh,
        };
        let image = build::build(&self.engine, request, self.reporter.as_ref()).await?;
        let seconds = started.elapsed().as_secs_f64();
        self.reporter.event(ImageEvent::BuildFinished { component, seconds });
        Ok(image)
    }

    /// Does a component's step; the digest it has in the registry then, if it goes there.
    async fn publish(
        &self,
        source: &Source,
        planned: &Planned,
        replacements: &BTreeMap<String, String>,
        pusher: &Pusher,
    ) -> Result<Option<String>, ImageError> {
        let component = &source.component.name;
        let step = planned.steps.iter().find(|step| step.component == *component);
        let (Some(step), Some(input)) = (step, planned.inputs.get(component)) else { return Ok(None) };
        let path = self.destination.path(component);
        let (image, component) = match &step.action {
            Action::Skip { digest } => {
                let (component, reason) = (component.clone(), step.reason.clone());
                self.reporter.event(ImageEvent::Skipped { component, reason });
                return Ok(digest.clone());
            }
            Action::Retag { digest } => match pusher.retag(&path, digest, &input.tag).await? {
                Some(pushed) => return Ok(Some(self.pushed(component, input, pushed))),
                None => (self.build_one(source, planned, replacements, "the registry lost it").await?, component),
            },
            Action::Push { image } => (image.clone(), component),
            Action::Build => (self.build_one(source, planned, replacements, &step.reason).await?, component),
        };
        if !step.published {
            return Ok(None);
        }
        let exported = pusher.store.export(&self.engine, &image, component, Arc::clone(&self.reporter)).await?;
        let pushed = pusher.push(component, &path, &input.tag, &exported).await?;
        Ok(Some(self.pushed(component, input, pushed)))
    }

    fn pushed(&self, component: &str, input: &Input, pushed: Pushed) -> String {
        let entry = self.entry(component, input, pushed.digest);
        self.reporter.event(ImageEvent::Pushed {
            component: component.to_owned(),
            reference: entry.pinned(),
            blobs_sent: pushed.sent,
            blobs_reused: pushed.reused,
        });
        entry.digest
    }

    fn write_lock(&self, prepared: &mut Prepared, entries: BTreeMap<String, Entry>) -> Result<(), ImageError> {
        // Read again: another part of orch may have written its own section meanwhile.
        let mut lock = Lock::read(&self.settings.lock)?;
        let names: BTreeSet<String> = self.names().into_iter().collect();
        lock.components.extend(entries);
        lock.components.retain(|name, _| names.contains(name));
        let used: BTreeMap<String, String> = prepared.bases.locked(prepared.selection.all_bases.iter().map(String::as_str));
        lock.bases = used;
        lock.write(&self.settings.lock)?;
        Ok(())
    }

    fn report(&self, steps: Vec<Step>, references: BTreeMap<String, String>, pinned: Vec<Change>) -> Report {
        for change in &pinned {
            self.reporter.event(ImageEvent::Pinned {
                file: change.path.display().to_string(),
                line: change.line,
                reference: change.after.clone(),
            });
        }
        let (requests, bytes_sent) = (self.meter.requests(), self.meter.bytes_sent());
        let seconds = self.started.elapsed().as_secs_f64();
        self.reporter.event(ImageEvent::Summary { requests, bytes_sent, seconds });
        Report { steps, references, pinned, requests, bytes_sent, seconds }
    }

    /// Makes sure that the local registry answers, if this run uses it.
    pub async fn start_stand_in(&self) -> Result<(), ImageError> {
        let Some(stand_in) = &self.destination.stand_in else { return Ok(()) };
        let client = self.destination.client(&[], &Arc::default())?;
        if stand_in.is_running(&client).await || stand_in.restart(&self.engine, &client).await? {
            return Ok(());
        }
        let image = self.stand_in_image().await?;
        Ok(stand_in.create(&self.engine, &image, &client).await?)
    }

    /// The local registry's image, built like any other but never pushed: there is no registry yet.
    async fn stand_in_image(&self) -> Result<String, ImageError> {
        let component = self.settings.components.iter().find(|component| component.name == STAND_IN_COMPONENT);
        let component = component.cloned().ok_or_else(|| ImageError::NoStandIn {
            folder: self.settings.folder.clone(),
            component: STAND_IN_COMPONENT.to_owned(),
        })?;
        let lock = Lock::read(&self.settings.lock)?;
        let bases = self.bases(&lock, std::slice::from_ref(&component));
        let selection = Selection { published: BTreeSet::new(), components: vec![component], all_bases: BTreeSet::new() };
        let sources = input::read(&selection.components).await?;
        let mut prepared = Prepared { lock, manifests: Vec::new(), selection, sources, bases };
        prepared.selection.published.insert(STAND_IN_COMPONENT.to_owned());
        let planned = self.decide(&mut prepared, None).await?;
        let replacements = self.materialise(&mut prepared, &planned).await?;
        let Some(source) = prepared.sources.first() else { return Ok(String::new()) };
        let built = self.image_of(source, &planned, &replacements).await?;
        Ok(built.unwrap_or_default())
    }
}

/// One HEAD where all is well, two where something is wrong.
async fn ask(registry: &dyn Registry, path: String, name: &str, entry: &Entry) -> Result<(String, Remote), ImageError> {
    let tag = registry.head_manifest(&path, &entry.tag).await?;
    let pin = tag.as_ref() == Some(&entry.digest) || registry.head_manifest(&path, &entry.digest).await?.is_some();
    Ok((name.to_owned(), Remote { tag, pin }))
}
