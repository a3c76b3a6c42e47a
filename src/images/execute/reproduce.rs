//! Builds components twice without any earlier result and compares what would be pushed.

use std::sync::Arc;

use super::Pipeline;
use super::gather::{Planned, Prepared};
use super::perform::{Earlier, Foundations};
use crate::images::ImageError;
use crate::images::compare::{Difference, differences};
use crate::images::engine::familiar;
use crate::images::input::Source;
use crate::images::layers::{Image, LayerError, LayerStore};
use crate::images::plan::Action;

/// What two cold builds of a component came to.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Reproduction {
    /// The component.
    pub component: String,
    /// The platform.
    pub platform: String,
    /// Digest of the first build's manifest.
    pub first: String,
    /// Digest of the second's.
    pub second: String,
    /// Why they are not the same.
    pub differences: Vec<Difference>,
    /// Targets of the cache mounts that both builds shared with earlier ones.
    pub kept_caches: Vec<String>,
}

impl Pipeline {
    /// Builds the selected components twice. Nothing is pushed, pinned or locked, and no image that the engine has is replaced.
    pub async fn reproduce(&self) -> Result<Vec<Reproduction>, ImageError> {
        let mut prepared = self.prepare().await?;
        let mut planned = self.decide(&mut prepared, None).await?;
        self.plan_builds(&prepared, &mut planned).await?;
        let foundations = self.lay_foundations(&mut prepared, &planned).await?;
        let found = self.in_order(&prepared, |source| {
            self.reproduce_one(source, &prepared, &planned, &foundations)
        });
        Ok(found.await?.into_values().flatten().collect())
    }

    /// Everything that is compared is built, and so is what it needs and the engine lacks.
    async fn plan_builds(
        &self,
        prepared: &Prepared,
        planned: &mut Planned,
    ) -> Result<(), ImageError> {
        planned.images = self.engine.image_ids().await?;
        for source in &prepared.sources {
            let name = &source.component.name;
            let Some(input) = planned.inputs.get(name) else {
                continue;
            };
            let tags = self.engine_tags(&source.component, input);
            let there = tags
                .iter()
                .all(|tag| planned.images.contains_key(familiar(tag)));
            let compared = prepared.selection.published.contains(name);
            for step in planned
                .steps
                .iter_mut()
                .filter(|step| step.component == *name)
            {
                (step.action, step.reason) = if compared {
                    (
                        Action::Build,
                        "to be compared with a second build".to_owned(),
                    )
                } else if there {
                    (
                        Action::Skip { digest: None },
                        "the engine has it".to_owned(),
                    )
                } else {
                    (Action::Build, "another component is built on it".to_owned())
                };
            }
        }
        Ok(())
    }

    async fn reproduce_one(
        &self,
        source: &Source,
        prepared: &Prepared,
        planned: &Planned,
        foundations: &Foundations,
    ) -> Result<Vec<Reproduction>, ImageError> {
        let component = &source.component;
        let (Some(step), Some(input)) = (
            planned.step(&component.name),
            planned.inputs.get(&component.name),
        ) else {
            return Ok(Vec::new());
        };
        if !prepared.selection.published.contains(&component.name) {
            self.image_of(source, planned, foundations).await?;
            return Ok(Vec::new());
        }
        let names = self.engine_tags(component, input);
        let missing = names
            .iter()
            .any(|tag| !planned.images.contains_key(familiar(tag)));
        let temporary = |number: u8| -> Vec<String> {
            names
                .iter()
                .map(|tag| format!("{tag}-cold-{number}"))
                .collect()
        };
        // What others here are built on has to have its name.
        let tags = if missing { names.clone() } else { temporary(1) };
        let built = async {
            let first = self
                .build_as(source, step, &tags, foundations, Earlier::Nothing)
                .await?;
            let second = temporary(2);
            let second = self
                .build_as(source, step, &second, foundations, Earlier::Nothing)
                .await?;
            self.compare(source, foundations, &first, &second).await
        };
        let found = built.await;
        let kept = if missing { Vec::new() } else { tags };
        for tag in kept.iter().chain(&temporary(2)) {
            // After a failure it may not be there; otherwise it costs space and nothing else.
            let _ = self.engine.run(&["rmi", tag]).await;
        }
        found
    }

    async fn compare(
        &self,
        source: &Source,
        foundations: &Foundations,
        first: &[String],
        second: &[String],
    ) -> Result<Vec<Reproduction>, ImageError> {
        let component = &source.component;
        let store = LayerStore::new(&self.settings.cache);
        let mut found = Vec::new();
        for ((platform, first), second) in component.platforms.iter().zip(first).zip(second) {
            let first = self.exported(&store, first, &component.name).await?;
            let second = self.exported(&store, second, &component.name).await?;
            let differences = compare(&store, &first, &second).await?;
            let (_, kept_caches) = self
                .recipe(source, platform, foundations, Earlier::Nothing)
                .await?;
            found.push(Reproduction {
                component: component.name.clone(),
                platform: platform.clone(),
                first: digest(&first)?,
                second: digest(&second)?,
                differences,
                kept_caches,
            });
        }
        Ok(found)
    }

    async fn exported(
        &self,
        store: &LayerStore,
        image: &str,
        component: &str,
    ) -> Result<Image, ImageError> {
        let reporter = Arc::clone(&self.reporter);
        Ok(store
            .export(&self.engine, image, component, reporter)
            .await?)
    }
}

/// The comparison reads whole layers, so it gets a thread of its own.
async fn compare(
    store: &LayerStore,
    first: &Image,
    second: &Image,
) -> Result<Vec<Difference>, ImageError> {
    let (store, first, second) = (store.clone(), first.clone(), second.clone());
    let image = first.config_digest();
    let bad = |reason: String| LayerError::Archive { image, reason };
    match tokio::task::spawn_blocking(move || differences(&store, &first, &second)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(bad(error.to_string()).into()),
        Err(error) => Err(bad(error.to_string()).into()),
    }
}

fn digest(image: &Image) -> Result<String, ImageError> {
    let manifest = image.manifest().map_err(|error| LayerError::Archive {
        image: image.config_digest(),
        reason: error.to_string(),
    })?;
    Ok(manifest.digest())
}
