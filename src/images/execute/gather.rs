//! The facts that a plan is made from: sources, lock, bases, what the registry says, what the engine has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::try_join_all;

use super::Pipeline;
use crate::images::ImageError;
use crate::images::bases::Bases;
use crate::images::component::{Component, host_platform};
use crate::images::engine::familiar;
use crate::images::input::{self, Input, Source};
use crate::images::lock::Lock;
use crate::images::pin::{self, Manifest};
use crate::images::plan::{Action, Facts, Step, plan};
use crate::images::registry::Registry;
use crate::images::select::{Selection, select};

/// Everything that is known before the first decision.
pub(super) struct Prepared {
    pub(super) lock: Lock,
    pub(super) manifests: Vec<Manifest>,
    pub(super) selection: Selection,
    pub(super) sources: Vec<Source>,
    pub(super) bases: Bases,
}

/// A plan and the facts it was made from.
pub(super) struct Planned {
    pub(super) inputs: BTreeMap<String, Input>,
    pub(super) steps: Vec<Step>,
    /// `repository:tag` -> ID in the engine; empty if the engine was not asked.
    pub(super) images: BTreeMap<String, String>,
    /// What the registry has under the tags, by component.
    pub(super) remote: BTreeMap<String, RemoteImage>,
}

/// What the registry says about one component.
#[derive(Debug, Default, Clone)]
pub(super) struct RemoteImage {
    /// Digest under the tag.
    pub(super) tagged: Option<String>,
    /// Is the lock's digest there without the tag?
    pub(super) pinned_present: bool,
}

impl Planned {
    pub(super) fn step(&self, component: &str) -> Option<&Step> {
        self.steps.iter().find(|step| step.component == component)
    }
}

impl Pipeline {
    pub(super) async fn prepare(&self) -> Result<Prepared, ImageError> {
        let settings = &self.settings;
        let lock = Lock::read(&settings.lock)?;
        let manifests = pin::read(&settings.manifests)?;
        let selection = select(
            &settings.components,
            &settings.folder,
            &settings.names,
            &manifests,
            &self.ours(&lock)?,
        )?;
        self.prepare_selection(lock, manifests, selection).await
    }

    pub(super) async fn prepare_selection(
        &self,
        lock: Lock,
        manifests: Vec<Manifest>,
        selection: Selection,
    ) -> Result<Prepared, ImageError> {
        let cache = self.settings.stat_cache();
        let sources = input::read_with(&selection.components, Some(&cache)).await?;
        let bases = self.bases(&lock, &selection.components);
        Ok(Prepared {
            lock,
            manifests,
            selection,
            sources,
            bases,
        })
    }

    fn bases(&self, lock: &Lock, components: &[Component]) -> Bases {
        Bases::new(
            self.engine.clone(),
            self.settings.bases.clone(),
            components
                .first()
                .map_or_else(host_platform, |component| component.platform().to_owned()),
            &lock.bases,
            Arc::clone(&self.meter),
            Arc::clone(&self.reporter),
        )
        .trusting(self.destination.endpoint.ca_file.clone())
    }

    /// Names everything, asking about bases that the lock does not know.
    pub(super) async fn name(
        &self,
        prepared: &mut Prepared,
    ) -> Result<BTreeMap<String, Input>, ImageError> {
        for source in &prepared.sources {
            for reference in &source.bases {
                prepared.bases.identity(reference).await?;
            }
        }
        let bases = &prepared.bases;
        Ok(input::name(&prepared.sources, |reference| {
            bases.known(reference)
        })?)
    }

    /// Decides. When something must be built and a base turns out to be another one here, everything is decided again.
    pub(super) async fn decide(
        &self,
        prepared: &mut Prepared,
        registry: Option<&dyn Registry>,
    ) -> Result<Planned, ImageError> {
        let mut revised = BTreeSet::new();
        loop {
            let inputs = self.name(prepared).await?;
            let planned = self.decide_once(prepared, inputs, registry).await?;
            let mut changed = false;
            for source in &prepared.sources {
                let step = planned.step(&source.component.name);
                if !step.is_some_and(|step| step.action == Action::Build) {
                    continue;
                }
                for reference in &source.bases {
                    if revised.insert(reference.clone()) {
                        changed |= prepared.bases.revise(reference).await?;
                    }
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
        let remote = match registry {
            Some(registry) => self.ask_registry(prepared, &inputs, registry).await?,
            None => BTreeMap::new(),
        };
        // Only when something is missing is the engine asked at all.
        let there = |name: &String| {
            remote
                .get(name)
                .is_some_and(|remote| remote.tagged.is_some())
        };
        let complete = !self.settings.refresh && prepared.selection.published.iter().all(there);
        let images = if complete {
            BTreeMap::new()
        } else {
            self.engine.image_ids().await?
        };
        let facts: Vec<Facts> = prepared
            .sources
            .iter()
            .filter_map(|source| {
                let name = &source.component.name;
                let input = inputs.get(name)?;
                let remote = remote.get(name).cloned().unwrap_or_default();
                Some(Facts {
                    component: name.clone(),
                    input: input.clone(),
                    published: prepared.selection.published.contains(name),
                    dependencies: source.dependencies.clone(),
                    locked: prepared.lock.components.get(name).cloned(),
                    registry: remote.tagged,
                    pinned_present: remote.pinned_present,
                    engine: self
                        .engine_tags(&source.component, input)
                        .iter()
                        .map(|tag| images.get(familiar(tag)).cloned())
                        .collect(),
                    refresh: self.settings.refresh,
                })
            })
            .collect();
        Ok(Planned {
            steps: plan(&facts),
            inputs,
            images,
            remote,
        })
    }

    /// One HEAD for every published component; a second one where the lock knows a digest and the tag is gone.
    async fn ask_registry(
        &self,
        prepared: &Prepared,
        inputs: &BTreeMap<String, Input>,
        registry: &dyn Registry,
    ) -> Result<BTreeMap<String, RemoteImage>, ImageError> {
        let published = inputs
            .iter()
            .filter(|(name, _)| prepared.selection.published.contains(*name));
        let asked = published.map(|(name, input)| {
            let locked = prepared.lock.components.get(name);
            let locked = locked.filter(|entry| entry.input == input.hash.to_string());
            async move {
                let path = self.destination.path(name);
                let tagged = registry.head_manifest(&path, &input.tag).await?;
                let pinned_present = match (&tagged, locked) {
                    (None, Some(entry)) => registry
                        .head_manifest(&path, &entry.digest)
                        .await?
                        .is_some(),
                    _ => false,
                };
                Ok::<_, ImageError>((
                    name.clone(),
                    RemoteImage {
                        tagged,
                        pinned_present,
                    },
                ))
            }
        });
        Ok(try_join_all(asked).await?.into_iter().collect())
    }

    /// What a component's images are called in the engine, by platform. The engine keeps one image under a name, so that those
    /// of several platforms need one each.
    pub(super) fn engine_tags(&self, component: &Component, input: &Input) -> Vec<String> {
        let repository = self.destination.repository(&component.name);
        let tag = format!("{repository}:{}", input.tag);
        match component.platforms.as_slice() {
            [_] => vec![tag],
            several => several
                .iter()
                .map(|platform| format!("{tag}-{}", platform.replace('/', "-")))
                .collect(),
        }
    }
}
