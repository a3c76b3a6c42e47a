//! Obeys a plan: bases, builds, exports, pushes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use futures::future::try_join_all;
use tokio::sync::Semaphore;

use super::Pipeline;
use super::gather::{Planned, Prepared};
use crate::images::ImageError;
use crate::images::destination::DOCKER_HUB;
use crate::images::engine::{build, familiar};
use crate::images::event::ImageEvent;
use crate::images::input::{Input, Source};
use crate::images::lock::Entry;
use crate::images::plan::{Action, Step};
use crate::images::push::{Pushed, Pusher};

/// What builds start from.
pub(super) struct Foundations {
    /// Base in a Dockerfile -> reference that the engine has or can pull.
    bases: BTreeMap<String, String>,
    /// Component -> reference that the engine has or can pull.
    components: BTreeMap<String, String>,
    /// Leave out `# syntax=` lines, because the frontend that they name cannot be pulled.
    own_frontend: bool,
}

impl Foundations {
    /// A Dockerfile with everything that it builds on replaced. A base may be called like the component itself, or like another one.
    fn dockerfile(&self, source: &Source) -> String {
        let below = self
            .components
            .iter()
            .filter(|(name, _)| source.dependencies.contains(*name));
        let replacements = self
            .bases
            .iter()
            .chain(below)
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect();
        source
            .dockerfile
            .with_images(&replacements, self.own_frontend)
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
        for step in &planned.steps {
            let Some(input) = planned.inputs.get(&step.component) else {
                continue;
            };
            let tag = self.engine_tag(&step.component, input);
            let reference = match &step.action {
                Action::Skip {
                    digest: Some(digest),
                } if !planned.images.contains_key(familiar(&tag)) => {
                    self.destination.pullable(&step.component, digest)
                }
                _ => tag,
            };
            components.insert(step.component.clone(), reference);
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
        let limit = Semaphore::new(self.settings.parallel_builds.max(1));
        let mut done: BTreeMap<String, T> = BTreeMap::new();
        while done.len() < prepared.sources.len() {
            let ready = prepared.sources.iter().filter(|source| {
                !done.contains_key(&source.component.name)
                    && source
                        .dependencies
                        .iter()
                        .all(|name| done.contains_key(name))
            });
            let tasks = ready.map(|source| {
                let (limit, result) = (&limit, work(source));
                async move {
                    let _permit = limit.acquire().await;
                    Ok::<_, ImageError>((source.component.name.clone(), result.await?))
                }
            });
            // The first failure drops all others, and with them their builders.
            done.extend(try_join_all(tasks).await?);
        }
        Ok(done)
    }

    /// The image's ID in the engine if the plan wants one there; built now if it has to be.
    pub(super) async fn image_of(
        &self,
        source: &Source,
        planned: &Planned,
        foundations: &Foundations,
    ) -> Result<Option<String>, ImageError> {
        match planned.step(&source.component.name) {
            Some(step) => match &step.action {
                Action::Build => self
                    .build_one(source, step, planned, foundations)
                    .await
                    .map(Some),
                Action::Push { image } => Ok(Some(image.clone())),
                Action::Skip { .. } | Action::Retag { .. } => Ok(None),
            },
            None => Ok(None),
        }
    }

    async fn build_one(
        &self,
        source: &Source,
        step: &Step,
        planned: &Planned,
        foundations: &Foundations,
    ) -> Result<String, ImageError> {
        let component = step.component.clone();
        let Some(input) = planned.inputs.get(&component) else {
            return Err(build::BuildError::NoImage { component }.into());
        };
        let reason = step.reason.clone();
        self.reporter.event(ImageEvent::BuildStarted {
            component: component.clone(),
            reason,
        });
        let started = Instant::now();
        let tag = self.engine_tag(&component, input);
        let request = build::Request {
            component: &source.component,
            context: &source.context,
            context_hash: source.context_hash,
            dockerfile: foundations.dockerfile(source),
            tag: &tag,
            refresh: self.settings.refresh,
        };
        let image = build::build(&self.engine, request, self.reporter.as_ref()).await?;
        let seconds = started.elapsed().as_secs_f64();
        self.reporter
            .event(ImageEvent::BuildFinished { component, seconds });
        Ok(image)
    }

    /// Does a component's step. The digest that it has in the registry then, if it goes there.
    pub(super) async fn publish(
        &self,
        source: &Source,
        planned: &Planned,
        foundations: &Foundations,
        pusher: &Pusher,
    ) -> Result<Option<String>, ImageError> {
        let component = source.component.name.as_str();
        let (Some(step), Some(input)) = (planned.step(component), planned.inputs.get(component))
        else {
            return Ok(None);
        };
        let path = self.destination.path(component);
        let image = match &step.action {
            Action::Skip { digest } => {
                let (component, reason) = (component.to_owned(), step.reason.clone());
                self.reporter
                    .event(ImageEvent::Skipped { component, reason });
                return Ok(digest.clone());
            }
            Action::Retag { digest } => {
                let pushed = pusher.retag(&path, digest, &input.tag).await?;
                return Ok(Some(self.pushed(component, input, pushed)));
            }
            Action::Push { image } => image.clone(),
            Action::Build => self.build_one(source, step, planned, foundations).await?,
        };
        if !step.published {
            return Ok(None);
        }
        let exported = pusher
            .store
            .export(&self.engine, &image, component, Arc::clone(&self.reporter))
            .await?;
        let replaces = planned
            .remote
            .get(component)
            .and_then(|remote| remote.tagged.as_deref());
        let pushed = pusher
            .push(component, &path, &input.tag, &exported, replaces)
            .await?;
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

    /// What the lock says about a component that has `digest` in the registry.
    pub(super) fn entry(&self, component: &str, input: &Input, digest: String) -> Entry {
        Entry {
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
            components: BTreeMap::from([
                pair("nginx", "me/nginx:in-1"),
                pair("app", "me/app:in-2"),
            ]),
            own_frontend: false,
        };
        let built: Vec<String> = sources
            .iter()
            .map(|source| foundations.dockerfile(source))
            .collect();
        assert_eq!(built, ["FROM nginx@sha256:0\n", "FROM me/nginx:in-1\n"]);
    }
}
