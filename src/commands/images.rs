//! `orch images`: puts arguments, settings and the pipeline together and prints results.

use std::collections::BTreeMap;
use std::env::VarError;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::images_check;
use super::{images_reproduce, images_why};
use crate::cli::images::{BuilderName, CommonArgs, ImagesArgs, ImagesCommand};
use crate::exit::{Exit, WithExit};
use crate::images::ImageError;
use crate::images::arguments::{self, Argument};
use crate::images::attest::{Attest, AttestError};
use crate::images::component::{Component, ComponentError, Definition, find, host_platform};
use crate::images::destination::{DOCKER_HUB, Destination};
use crate::images::engine::Engine;
use crate::images::engine::builder::Wanted;
use crate::images::event::Reporter;
use crate::images::execute::{PinChoice, Pinning, Pipeline, Rehearsal, Report, Settings};
use crate::images::pin::{self, Asking, Change, PinError};
use crate::images::plan::{Action, Step};
use crate::images::registry::retry::Policy;
use crate::images::registry::stand_in::StandIn;
use crate::ui::Ui;

/// Defaults for what the command line leaves out.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// Folder of components.
    pub dockerfiles: PathBuf,
    /// Folders of manifests.
    pub manifests: Vec<PathBuf>,
    /// Repository in manifests -> component, where names differ.
    pub map: BTreeMap<String, String>,
    /// Images in manifests that stay unpinned.
    pub keep: Vec<String>,
    /// `images.lock`.
    pub lock: PathBuf,
    /// Cache of this project: layers, what registries are known to hold.
    pub cache: PathBuf,
    /// Cache that all projects share: base images made on this host.
    pub bases: PathBuf,
    /// Registry in references.
    pub registry: String,
    /// Namespace at the registry.
    pub namespace: Option<String>,
    /// Certificate of a further CA that registries may have theirs from.
    pub ca_file: Option<PathBuf>,
    /// The project's folder.
    pub root: PathBuf,
    /// The cluster's kubeconfig, if there is one.
    pub kubeconfig: Option<PathBuf>,
    /// The cluster that a local registry is for.
    pub cluster: String,
    /// Port of the local registry on 127.0.0.1.
    pub stand_in_port: u16,
    /// Components that somebody described.
    pub definitions: Vec<Definition>,
    /// Build arguments of this run.
    pub build_args: Vec<Argument>,
    /// Builds at the same time.
    pub jobs: usize,
    /// Read files again that seem to be unchanged since an earlier run.
    pub rehash: bool,
    /// Who builds.
    pub builder: Wanted,
    /// What is attached to images that are pushed.
    pub attest: Attest,
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            dockerfiles: "Dockerfiles".into(),
            manifests: Vec::new(),
            map: BTreeMap::new(),
            keep: Vec::new(),
            lock: "images.lock".into(),
            cache: crate::project::cache_directory().join("images"),
            bases: crate::project::cache_directory().join("bases"),
            registry: DOCKER_HUB.to_owned(),
            namespace: None,
            ca_file: None,
            root: ".".into(),
            kubeconfig: None,
            cluster: "orch".to_owned(),
            stand_in_port: 5000,
            definitions: Vec::new(),
            build_args: Vec::new(),
            jobs: 2,
            rehash: false,
            builder: Wanted::Auto,
            attest: Attest::default(),
        }
    }
}

/// What differs from subcommand to subcommand.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Components asked for; none means what the manifests use.
    pub names: Vec<String>,
    /// Build again what exists.
    pub refresh: bool,
    /// Builds at the same time, if not as many as the settings say.
    pub jobs: Option<usize>,
    /// Talk to no registry, and ask nobody who we are there.
    pub offline: bool,
}

/// A pipeline for these settings; `orch create` uses it, too.
pub fn pipeline(
    settings: &ImageSettings,
    choice: Choice,
    platforms: &[String],
    plain_http: bool,
    reporter: Arc<dyn Reporter>,
) -> Result<Pipeline, ImageError> {
    let components = components(settings, platforms)?;
    let destination = destination(settings, plain_http, choice.offline)?;
    let builder = settings.builder;
    let settings = Settings {
        components,
        folder: settings.dockerfiles.clone(),
        names: choice.names,
        manifests: settings.manifests.clone(),
        map: settings.map.clone(),
        keep: settings.keep.clone(),
        lock: settings.lock.clone(),
        cache: settings.cache.clone(),
        bases: settings.bases.clone(),
        parallel_builds: choice.jobs.unwrap_or(settings.jobs),
        rehash: settings.rehash,
        refresh: choice.refresh,
        policy: Policy::default(),
        attest: settings.attest.clone(),
    };
    Ok(Pipeline::new(
        settings,
        destination,
        Engine::choose(builder),
        reporter,
    ))
}

fn destination(
    settings: &ImageSettings,
    plain_http: bool,
    offline: bool,
) -> Result<Destination, ImageError> {
    let stand_in = StandIn {
        cluster: settings.cluster.clone(),
        port: settings.stand_in_port,
    };
    let choose = if offline {
        Destination::unasked
    } else {
        Destination::choose
    };
    let mut destination = choose(
        &settings.registry,
        settings.namespace.as_deref(),
        plain_http,
        stand_in,
    )?;
    destination.endpoint.ca_file.clone_from(&settings.ca_file);
    Ok(destination)
}

/// All components. Platforms and arguments of the command line are those of this run, whatever the descriptions say.
fn components(
    settings: &ImageSettings,
    platforms: &[String],
) -> Result<Vec<Component>, ImageError> {
    let mut definitions = settings.definitions.clone();
    let host = [host_platform()];
    let default = if platforms.is_empty() {
        host.as_slice()
    } else {
        for definition in &mut definitions {
            definition.platforms.clear();
        }
        platforms
    };
    let mut components = find(&settings.dockerfiles, default, &definitions)?;
    arguments::give(&mut components, &settings.build_args)?;
    Ok(components)
}

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

/// A result in both formats.
pub(super) struct Text {
    pub(super) plain: String,
    pub(super) json: serde_json::Value,
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

/// Pinning for these settings. Works without components, and where nobody says where images go.
fn pinning(
    settings: &ImageSettings,
    plain_http: bool,
    reporter: Arc<dyn Reporter>,
) -> Result<Pinning, ImageError> {
    let components = match components(settings, &[]) {
        Ok(components) => components,
        Err(ImageError::Component(ComponentError::Read { source, .. }))
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let destination = match destination(settings, plain_http, false) {
        Ok(destination) => Some(destination),
        Err(ImageError::Namespace { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(Pinning {
        components: components
            .into_iter()
            .map(|component| component.name)
            .collect(),
        destination,
        manifests: settings.manifests.clone(),
        map: settings.map.clone(),
        keep: settings.keep.clone(),
        lock: settings.lock.clone(),
        asking: Asking {
            policy: Policy::default(),
            plain_http,
            ca_file: settings.ca_file.clone(),
            reporter,
            meter: Arc::default(),
        },
    })
}

fn merge(mut settings: ImageSettings, common: &CommonArgs) -> Result<ImageSettings, ImageError> {
    if let Some(folder) = &common.dockerfiles {
        settings.dockerfiles.clone_from(folder);
    }
    if !common.manifests.is_empty() {
        settings.manifests.clone_from(&common.manifests);
    }
    if let Some(file) = &common.lock {
        settings.lock.clone_from(file);
    }
    if let Some(registry) = &common.registry {
        settings.registry.clone_from(registry);
    }
    settings.rehash |= common.rehash;
    settings.build_args = common
        .build_args
        .iter()
        .map(from_environment)
        .collect::<Result<_, _>>()?;
    settings.builder = match common.builder {
        BuilderName::Auto => settings.builder,
        BuilderName::Docker => Wanted::Docker,
        BuilderName::Classic => Wanted::Classic,
        BuilderName::Podman => Wanted::Podman,
        BuilderName::Buildah => Wanted::Buildah,
    };
    settings.ca_file = common.ca_file.clone().or(settings.ca_file);
    let named = common.namespace.clone().filter(|name| !name.is_empty());
    settings.namespace = named.or(settings.namespace);
    let mut given: BTreeMap<String, String> = BTreeMap::new();
    for (repository, component) in &common.map {
        // The command line comes before orch.yaml, and may not contradict itself.
        let other = given.insert(repository.clone(), component.clone());
        if let Some(first) = other.filter(|other| other != component) {
            return Err(ImageError::Pin(PinError::TwoComponents {
                repository: repository.clone(),
                first,
                second: component.clone(),
            }));
        }
    }
    if common.recursive {
        settings.manifests = pin::with_folders_below(&settings.manifests)?;
    }
    settings.map.extend(given);
    settings.keep.extend(common.keep.iter().cloned());
    Ok(settings)
}

/// A build argument with the environment's value where the command line gives none, as docker has it.
fn from_environment((name, value): &Argument) -> Result<Argument, ImageError> {
    let value = match value {
        Some(value) => Some(value.clone()),
        None => match std::env::var(name) {
            Ok(value) => Some(value),
            Err(VarError::NotPresent) => None,
            Err(VarError::NotUnicode(_)) => {
                return Err(ComponentError::ArgumentEncoding { name: name.clone() }.into());
            }
        },
    };
    Ok((name.clone(), value))
}

/// The exit code of each kind of failure.
pub fn exit_of(error: &ImageError) -> Exit {
    match error {
        ImageError::Component(_)
        | ImageError::Input(_)
        | ImageError::Pin(_)
        | ImageError::Lock(_) => Exit::Input,
        ImageError::Namespace { .. } | ImageError::NoStandIn { .. } => Exit::Input,
        ImageError::Attest(AttestError::Stale { .. }) => Exit::SourceChanged,
        ImageError::Attest(AttestError::Key(_) | AttestError::NotPushed { .. }) => Exit::Input,
        ImageError::Attest(_) => Exit::Registry,
        ImageError::Base(_) | ImageError::Build(_) => Exit::Build,
        ImageError::Engine(_) | ImageError::Layer(_) => Exit::Host,
        ImageError::Registry(_) => Exit::Registry,
        ImageError::Gc(error) => super::images_gc::exit_of(error),
    }
}

pub(super) fn coded<T>(result: Result<T, ImageError>) -> anyhow::Result<T> {
    result.or_else(|error| {
        let exit = exit_of(&error);
        let context = match exit {
            Exit::Build => "building images",
            Exit::Registry => "talking to the registry",
            _ => "preparing images",
        };
        Err(error).exit(exit, context)
    })
}

fn steps_text(steps: &[Step]) -> Text {
    let line = |step: &Step| {
        let action = match step.action {
            Action::Skip { .. } => "skip",
            Action::Retag { .. } => "retag",
            Action::Push { .. } => "push",
            Action::Build if step.published => "build and push",
            Action::Build => "build",
        };
        format!(
            "{}:{} {action}: {}\n",
            step.component, step.tag, step.reason
        )
    };
    Text {
        plain: steps.iter().map(line).collect(),
        json: json!(steps),
    }
}

fn report_text(report: &Report) -> Text {
    let plain = report
        .references
        .values()
        .map(|reference| format!("{reference}\n"))
        .collect();
    let json = json!({
        "images": report.references,
        "steps": report.steps,
        "attested": report.attested,
        "pinned": report.pinned.iter().map(change_json).collect::<Vec<_>>(),
        "requests": report.requests,
        "bytes_sent": report.bytes_sent,
        "seconds": report.seconds,
    });
    Text { plain, json }
}

fn changes_text(changes: &[Change]) -> Text {
    Text {
        plain: changes.iter().map(change_line).collect(),
        json: changes.iter().map(change_json).collect(),
    }
}

fn change_line(change: &Change) -> String {
    format!(
        "{}:{}:{}: {} -> {}\n",
        change.path.display(),
        change.line,
        change.column,
        change.before,
        change.after
    )
}

fn change_json(change: &Change) -> serde_json::Value {
    json!({
        "file": change.path,
        "line": change.line,
        "column": change.column,
        "before": change.before,
        "after": change.after,
    })
}
