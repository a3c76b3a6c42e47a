//! `orch images`: puts arguments, settings and the pipeline together and prints results.

use std::sync::Arc;

use serde_json::json;

use super::images_check;
use super::images_exit::coded;
use super::images_settings::{Choice, ImageSettings, merge, pinning, pipeline};
use super::images_text::{Text, changes_text, report_text, steps_text};
use super::{images_reproduce, images_why};
use crate::cli::images::{ImagesArgs, ImagesCommand};
use crate::exit::Exit;
use crate::images::ImageError;
use crate::images::component::host_platform;
use crate::images::engine::build::BuildError;
use crate::images::event::Reporter;
use crate::images::execute::{PinChoice, Rehearsal};
use crate::ui::Ui;

/// Runs `orch images ...`. `settings` are the defaults of orch.yaml; results go to `ui`, progress to `reporter`.
pub async fn run(
    arguments: ImagesArgs,
    settings: ImageSettings,
    reporter: Arc<dyn Reporter>,
    ui: &Ui,
) -> anyhow::Result<Exit> {
    let mut settings = coded(merge(settings, &arguments.common))?;
    settings.attest = super::attest::wanted(settings.attest, &arguments.command)?;
    let (exit, text) = dispatch(arguments, settings, reporter).await?;
    if ui.is_json() {
        ui.result_json(&text.json);
    } else if !text.plain.is_empty() {
        ui.result(text.plain.trim_end());
    }
    Ok(exit)
}

/// Builds a component for this host, whatever platforms its image is for otherwise, and gives its name in the engine.
pub async fn build_for_host(
    settings: &ImageSettings,
    name: &str,
    reporter: Arc<dyn Reporter>,
) -> Result<String, ImageError> {
    let choice = Choice {
        names: vec![name.to_owned()],
        ..Choice::default()
    };
    let pipeline = pipeline(settings, choice, &[host_platform()], false, reporter)?;
    let component = name.to_owned();
    let mut tags = pipeline.build().await?;
    let tag = tags.remove(name);
    Ok(tag.ok_or(BuildError::NoImage { component })?)
}

async fn dispatch(
    arguments: ImagesArgs,
    settings: ImageSettings,
    reporter: Arc<dyn Reporter>,
) -> anyhow::Result<(Exit, Text)> {
    let common = &arguments.common;
    let make = |choice| {
        let (platforms, plain_http) = (&common.platforms, common.plain_http);
        coded(pipeline(
            &settings,
            choice,
            platforms,
            plain_http,
            Arc::clone(&reporter),
        ))
    };
    match arguments.command {
        ImagesCommand::Push(push) => {
            let pipeline = make(Choice {
                names: push.names,
                refresh: push.refresh,
                jobs: push.jobs,
                ..Choice::default()
            })?;
            if push.dry_run {
                let rehearsal = match push.pin {
                    true => Rehearsal::Pin,
                    false => Rehearsal::Skipped,
                };
                let steps = coded(pipeline.plan(rehearsal).await)?;
                return Ok((Exit::Success, steps_text(&steps)));
            }
            Ok((
                Exit::Success,
                report_text(&coded(pipeline.push(push.pin).await)?),
            ))
        }
        ImagesCommand::Plan(plan) => {
            let pipeline = make(Choice {
                names: plan.names,
                ..Choice::default()
            })?;
            // Whether or not all is pushed in one run: what nobody builds stops the one that pins.
            let steps = coded(pipeline.plan(Rehearsal::Images).await)?;
            Ok((Exit::Success, steps_text(&steps)))
        }
        ImagesCommand::Build(build) => {
            let pipeline = make(Choice {
                names: build.names,
                refresh: build.refresh,
                jobs: build.jobs,
                ..Choice::default()
            })?;
            let tags = coded(pipeline.build().await)?;
            let plain = tags.values().map(|tag| format!("{tag}\n")).collect();
            Ok((
                Exit::Success,
                Text {
                    plain,
                    json: json!(tags),
                },
            ))
        }
        ImagesCommand::Check(check) => {
            let pipeline = make(Choice {
                names: check.names,
                offline: check.offline,
                ..Choice::default()
            })?;
            let findings = coded(pipeline.check(check.offline).await)?;
            let mut plain = images_check::text(&findings, check.offline);
            if let Some(workspace) = images_check::workspace() {
                plain.push_str(&images_check::annotations(&findings, &workspace));
            }
            Ok((
                images_check::exit(&findings),
                Text {
                    plain,
                    json: images_check::json(&findings, check.offline),
                },
            ))
        }
        ImagesCommand::Why(why) => {
            let pipeline = make(Choice {
                names: vec![why.name.clone()],
                ..Choice::default()
            })?;
            Ok((
                Exit::Success,
                images_why::explain(&coded(pipeline.why(&why.name).await)?),
            ))
        }
        ImagesCommand::Hash(hash) => {
            let cache = settings.cache.join("contexts");
            let hashed = images_why::hash(&hash, &cache, settings.rehash);
            let hashed = hashed.map_err(|error| ImageError::Input(error.into()));
            Ok((Exit::Success, coded(hashed)?))
        }
        ImagesCommand::Gc(arguments) => {
            let pipeline = make(Choice::default())?;
            let request = super::images_gc::request(&settings, arguments).await?;
            let collected = coded(pipeline.collect(&request).await)?;
            Ok((
                Exit::Success,
                Text {
                    plain: super::images_gc::text(&collected),
                    json: json!(collected),
                },
            ))
        }
        ImagesCommand::Reproduce(reproduce) => {
            let pipeline = make(Choice {
                names: reproduce.names,
                jobs: reproduce.jobs,
                ..Choice::default()
            })?;
            let found = coded(pipeline.reproduce().await)?;
            let (exit, plain, json) = images_reproduce::result(&found);
            Ok((exit, Text { plain, json }))
        }
        ImagesCommand::Attest(arguments) => {
            let names = arguments.names;
            let pipeline = make(Choice {
                names,
                ..Choice::default()
            })?;
            super::attest::attest(pipeline).await
        }
        ImagesCommand::Sbom(arguments) => {
            let pipeline = make(Choice {
                names: vec![arguments.name.clone()],
                ..Choice::default()
            })?;
            super::attest::sbom(pipeline, &arguments.name).await
        }
        ImagesCommand::Verify(arguments) => {
            let pipeline = make(Choice {
                names: arguments.names.clone(),
                ..Choice::default()
            })?;
            super::attest::verify(pipeline, &arguments).await
        }
        ImagesCommand::Pin(pin) => {
            let choice = PinChoice {
                set: pin.set,
                upstream: pin.upstream,
                update: pin.update,
                dry_run: pin.dry_run,
            };
            let pinning = coded(pinning(&settings, common.plain_http, reporter))?;
            Ok((
                Exit::Success,
                changes_text(&coded(pinning.pin(&choice).await)?),
            ))
        }
        ImagesCommand::Unpin(unpin) => {
            let pinning = coded(pinning(&settings, common.plain_http, reporter))?;
            Ok((
                Exit::Success,
                changes_text(&coded(pinning.unpin(unpin.dry_run))?),
            ))
        }
    }
}
