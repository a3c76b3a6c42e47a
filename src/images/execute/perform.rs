//! Obeys a plan: bases, builds, exports, pushes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::Pipeline;
use super::attest::is_listed;
use super::gather::{Planned, Prepared};
use super::schedule::{self, Node};
use crate::images::ImageError;
use crate::images::component::host_platform;
use crate::images::destination::DOCKER_HUB;
use crate::images::dockerfile::Dockerfile;
use crate::images::dockerfile::caches::{cache_mounts, without_caches};
use crate::images::engine::builder::Builder;
use crate::images::engine::{build, familiar};
use crate::images::event::ImageEvent;
use crate::images::input::{Input, InputError, Source};
use crate::images::lock::Entry;
use crate::images::plan::{Action, Step};
use crate::images::push::{Pushed, Pusher};

/// A component's image in the registry.
pub(super) struct Published {
    pub(super) digest: String,
    /// This run pushed it, or the lock listed it before. Another is known by its tag alone, which whoever may push can move.
    pub(super) ours: bool,
}

/// What a build may take over from earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Earlier {
    /// Whatever the builder has kept.
    Results,
    /// Only what is in cache mounts.
    Caches,
    /// Not even that, as far as the builder and the Dockerfile let it.
    Nothing,
}

/// What builds start from.
pub(super) struct Foundations {
    /// Base in a Dockerfile -> reference that the engine has or can pull.
    bases: BTreeMap<String, String>,
    /// Component -> platform -> reference that the engine has or can pull.
    components: BTreeMap<String, BTreeMap<String, String>>,
    /// Leave out `# syntax=` lines, because the frontend that they name cannot be pulled.
    own_frontend: bool,
}

impl Foundations {
    /// A Dockerfile for one platform with everything that it builds on replaced. A base may be called like the component itself,
    /// or like another one.
    fn dockerfile(&self, source: &Source, platform: &str) -> Result<String, InputError> {
        let component = &source.component;
        let below = source.dependencies.iter().filter_map(|name| {
            let reference = self.components.get(name)?.get(platform)?;
            Some((name, reference))
        });
        let replacements = self
            .bases
            .iter()
            .chain(below)
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect();
        let text = source.dockerfile.text.clone();
        let there = Dockerfile::parse(text, &component.dockerfile, &component.args, platform)?;
        Ok(there.with_images(&replacements, self.own_frontend))
    }
}

impl Node for Source {
    fn name(&self) -> &str {
        &self.component.name
    }

    fn needs(&self) -> &BTreeSet<String> {
        &self.dependencies
    }
}

impl Pipeline {
    /// Makes sure of everything that the plan's builds start from.
    pub(super) async fn lay_foundations(
        &self,
        prepared: &mut Prepared,
        planned: &Planned,
    ) -> Result<Foundations, ImageError> {
        let (mut bases, mut components) = (BTreeMap::new(), BTreeMap::new());
        let mut own_frontend = false;
        for source in &prepared.sources {
            let step = planned.step(&source.component.name);
            if !step.is_some_and(|step| step.action == Action::Build) {
                continue;
            }
            for reference in &source.bases {
                let host = host_platform();
                let foreign = source.component.platforms.iter().find(|p| **p != host);
                if let Some(platform) = foreign {
                    prepared.bases.must_be_real(reference, platform).await?;
                }
                if !bases.contains_key(reference) {
                    let made = prepared
                        .bases
                        .materialise(reference, self.settings.refresh)
                        .await?;
                    bases.insert(reference.clone(), made);
                }
            }
            let Some(syntax) = &source.dockerfile.syntax else {
                continue;
            };
            if !own_frontend && !prepared.bases.is_reachable(DOCKER_HUB).await {
                own_frontend = true;
                let (image, by) = (
                    syntax.reference.clone(),
                    "the engine's own Dockerfile frontend".to_owned(),
                );
                self.reporter.event(ImageEvent::Substituted { image, by });
            }
        }
        for Source { component, .. } in &prepared.sources {
            let (Some(step), Some(input)) = (
                planned.step(&component.name),
                planned.inputs.get(&component.name),
            ) else {
                continue;
            };
            let reference = |tag: String| match &step.action {
                Action::Skip {
                    digest: Some(digest),
                } if !planned.images.contains_key(familiar(&tag)) => {
                    self.destination.pullable(&component.name, digest)
                }
                _ => tag,
            };
            let tags = self.engine_tags(component, input).into_iter();
            let references = component.platforms.iter().cloned();
            let references = references.zip(tags.map(reference)).collect();
            components.insert(component.name.clone(), references);
        }
        Ok(Foundations {
            bases,
            components,
            own_frontend,
        })
    }

    /// Runs `work` for every component, dependencies before dependents, at most `parallel_builds` at once.
    pub(super) async fn in_order<'p, F, T>(
        &self,
        prepared: &'p Prepared,
        work: impl Fn(&'p Source) -> F,
    ) -> Result<BTreeMap<String, T>, ImageError>
    where
        F: Future<Output = Result<T, ImageError>>,
    {
        schedule::run(&prepared.sources, self.settings.parallel_builds, work).await
    }

    /// The images' IDs in the engine, one for each platform, if the plan wants some there; built now if they have to be.
    pub(super) async fn image_of(
        &self,
        source: &Source,
        planned: &Planned,
        foundations: &Foundations,
    ) -> Result<Vec<String>, ImageError> {
        match planned.step(&source.component.name) {
            Some(step) => match &step.action {
                Action::Build => self.build_one(source, step, planned, foundations).await,
                Action::Push { images } => Ok(images.clone()),
                Action::Skip { .. } | Action::Retag { .. } => Ok(Vec::new()),
            },
            None => Ok(Vec::new()),
        }
    }

    async fn build_one(
        &self,
        source: &Source,
        step: &Step,
        planned: &Planned,
        foundations: &Foundations,
    ) -> Result<Vec<String>, ImageError> {
        let component = step.component.clone();
        let Some(input) = planned.inputs.get(&component) else {
            return Err(build::BuildError::NoImage { component }.into());
        };
        let tags = self.engine_tags(&source.component, input);
        let earlier = match self.settings.refresh {
            true => Earlier::Caches,
            false => Earlier::Results,
        };
        self.build_as(source, step, &tags, foundations, earlier)
            .await
    }

    /// A component's Dockerfile for one platform, and the targets of the cache mounts that it has all the same when a build is to
    /// take over nothing.
    pub(super) async fn recipe(
        &self,
        source: &Source,
        platform: &str,
        foundations: &Foundations,
        earlier: Earlier,
    ) -> Result<(String, Vec<String>), InputError> {
        let text = foundations.dockerfile(source, platform)?;
        if earlier != Earlier::Nothing {
            return Ok((text, Vec::new()));
        }
        let mounts = cache_mounts(&text);
        // Others write to the mounted folder itself, or know no image without anything in it.
        let can_empty = self.engine.builder().await == Builder::Buildx;
        let kept = mounts.iter().filter(|mount| !can_empty || mount.is_kept());
        let kept = kept.map(|mount| mount.target.clone()).collect();
        if can_empty {
            return Ok((without_caches(&text, &mounts), kept));
        }
        Ok((text, kept))
    }

    /// Builds all platforms of a component, each under its own one of `tags`.
    pub(super) async fn build_as(
        &self,
        source: &Source,
        step: &Step,
        tags: &[String],
        foundations: &Foundations,
        earlier: Earlier,
    ) -> Result<Vec<String>, ImageError> {
        let component = step.component.clone();
        let reason = step.reason.clone();
        self.reporter.event(ImageEvent::BuildStarted {
            component: component.clone(),
            reason,
        });
        let started = Instant::now();
        let mut images = Vec::new();
        for (platform, tag) in source.component.platforms.iter().zip(tags) {
            let (dockerfile, _) = self.recipe(source, platform, foundations, earlier).await?;
            let request = build::Request {
                component: &source.component,
                platform,
                context: &source.context,
                context_hash: source.contents.hash(),
                dockerfile,
                tag,
                refresh: earlier != Earlier::Results,
            };
            images.push(build::build(&self.engine, request, self.reporter.as_ref()).await?);
        }
        let seconds = started.elapsed().as_secs_f64();
        self.reporter
            .event(ImageEvent::BuildFinished { component, seconds });
        Ok(images)
    }

    /// Does a component's step. What it has in the registry then, if it goes there.
    pub(super) async fn publish(
        &self,
        source: &Source,
        planned: &Planned,
        foundations: &Foundations,
        pusher: &Pusher,
        prepared: &Prepared,
    ) -> Result<Option<Published>, ImageError> {
        let component = source.component.name.as_str();
        let (Some(step), Some(input)) = (planned.step(component), planned.inputs.get(component))
        else {
            return Ok(None);
        };
        let path = self.destination.path(component);
        let images = match &step.action {
            Action::Skip { digest } => {
                let (component, reason) = (component.to_owned(), step.reason.clone());
                self.reporter
                    .event(ImageEvent::Skipped { component, reason });
                return Ok(digest.clone().map(|digest| Published {
                    ours: is_listed(prepared, &step.component, input, &digest),
                    digest,
                }));
            }
            Action::Retag { digest } => {
                let pushed = pusher.retag(&path, digest, &input.tag).await?;
                return self.pushed(component, input, pushed).map(Some);
            }
            Action::Push { images } => images.clone(),
            Action::Build => self.build_one(source, step, planned, foundations).await?,
        };
        if !step.published {
            return Ok(None);
        }
        let mut exported = Vec::new();
        for (platform, image) in source.component.platforms.iter().zip(&images) {
            let reporter = Arc::clone(&self.reporter);
            let image = pusher
                .store
                .export(&self.engine, image, component, reporter)
                .await?;
            exported.push((platform.clone(), image));
        }
        let replaces = planned
            .remote
            .get(component)
            .and_then(|remote| remote.tagged.as_deref());
        let pushed = match exported.as_slice() {
            [(_, image)] => {
                let push = pusher.push(component, &path, &input.tag, image, replaces);
                push.await?
            }
            images => {
                let push = pusher.push_index(component, &path, &input.tag, images, replaces);
                push.await?
            }
        };
        self.pushed(component, input, pushed).map(Some)
    }

    fn pushed(
        &self,
        component: &str,
        input: &Input,
        pushed: Pushed,
    ) -> Result<Published, ImageError> {
        if pushed.theirs && self.settings.attest.key.is_some() {
            return Err(self.not_ours(component, input, &pushed.digest));
        }
        let repository = self.destination.repository(component);
        self.reporter.event(ImageEvent::Pushed {
            component: component.to_owned(),
            reference: format!("{repository}:{}@{}", input.tag, pushed.digest),
            blobs_sent: pushed.sent,
            blobs_reused: pushed.reused,
        });
        Ok(Published {
            digest: pushed.digest,
            ours: !pushed.theirs,
        })
    }

    /// What the lock says about a component that has `digest` in the registry.
    pub(super) fn entry(&self, component: &str, input: &Input, digest: String) -> Entry {
        Entry {
            details: input.details_for_lock(),
            digest,
            input: input.hash.to_string(),
            parts: input.parts.clone(),
            repository: self.destination.repository(component),
            tag: input.tag.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::component::Component;
    use crate::images::input;

    #[tokio::test]
    async fn a_component_may_be_built_on_the_image_it_is_called_after() {
        let root = tempfile::tempdir().unwrap();
        let component = |name: &str, dockerfile: &str| {
            let folder = root.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
            Component::from_folder(&folder, "linux/amd64").unwrap()
        };
        let components = [
            component("nginx", "FROM nginx\n"),
            component("app", "FROM nginx\n"),
        ];
        let sources = input::read(&components).await.unwrap();
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let foundations = Foundations {
            bases: BTreeMap::from([pair("nginx", "nginx@sha256:0")]),
            components: [("nginx", "me/nginx:in-1"), ("app", "me/app:in-2")]
                .map(|(name, tag)| (name.to_owned(), BTreeMap::from([pair("linux/amd64", tag)])))
                .into(),
            own_frontend: false,
        };
        let built: Vec<String> = sources
            .iter()
            .map(|source| foundations.dockerfile(source, "linux/amd64").unwrap())
            .collect();
        assert_eq!(built, ["FROM nginx@sha256:0\n", "FROM me/nginx:in-1\n"]);
    }
}
