//! The image pipeline with this cluster's settings: `orch images`, and the images step of `create`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::images::build_for_host;
use super::images_exit::coded_while;
use super::images_settings::{self, Choice, ImageSettings, pipeline};
use super::{Context, bundled};
use crate::cli::images::{ImagesArgs, ImagesCommand};
use crate::config::Registry;
use crate::config::images::{Images, ImagesOnly};
use crate::exit::{Exit, WithExit as _};
use crate::images::attest::Attest;
use crate::images::attest::key::KeyFile;
use crate::images::component::Definition;
use crate::images::destination::{DOCKER_HUB, Destination};
use crate::images::engine::Engine;
use crate::images::event::Reporter;
use crate::images::execute::{Pipeline, Rehearsal, Report};
use crate::machines::Provider;
use crate::ui::{Step, Ui};

/// The folder under Dockerfiles/ that the docker provider's machines are made from.
const NODE_COMPONENT: &str = "node";

/// The cluster's `images.lock`: committed for the project's main cluster, state for any other.
pub(super) fn lock_file(context: &Context) -> PathBuf {
    let folder = if context.project.is_default() {
        context.project.root().to_owned()
    } else {
        context.project.state()
    };
    folder.join("images.lock")
}

fn settings(context: &Context) -> ImageSettings {
    let config = &context.config;
    let cache = context.project.cache();
    ImageSettings {
        dockerfiles: context.path(&config.dockerfiles),
        manifests: config
            .stacks
            .iter()
            .map(|stack| context.path(&stack.manifests))
            .collect(),
        lock: lock_file(context),
        cache: cache.join("images"),
        bases: cache.join("bases"),
        namespace: namespace(&config.registry),
        definitions: definitions(&config.images, context.project.root()),
        jobs: jobs(&config.images),
        map: map(&config.images),
        keep: config.images.keep.clone(),
        attest: attest(&config.images, context.project.root()),
        root: context.project.root().to_owned(),
        kubeconfig: Some(context.project.kubeconfig()).filter(|path| path.exists()),
        cluster: context.cluster().to_owned(),
        stand_in_port: config.ports.registry,
        ..ImageSettings::default()
    }
}

/// The settings where there is no cluster: conventions, and what an `orch.yaml` for images alone says.
fn settings_alone(file: &Path, description: &ImagesOnly) -> ImageSettings {
    let root = file.parent().unwrap_or(Path::new(""));
    let conventional = root.join("Dockerfiles");
    let dockerfiles = match &description.dockerfiles {
        Some(folder) => root.join(folder),
        None if conventional.is_dir() => conventional,
        None if root.as_os_str().is_empty() => PathBuf::from("."),
        None => root.to_owned(),
    };
    ImageSettings {
        dockerfiles,
        manifests: description
            .manifests
            .iter()
            .map(|folder| root.join(folder))
            .collect(),
        lock: root.join("images.lock"),
        root: if root.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            root.to_owned()
        },
        namespace: namespace(&description.registry),
        definitions: definitions(&description.images, root),
        jobs: jobs(&description.images),
        map: map(&description.images),
        keep: description.images.keep.clone(),
        attest: attest(&description.images, root),
        ..ImageSettings::default()
    }
}

fn namespace(registry: &Registry) -> Option<String> {
    registry.namespace.clone().or_else(|| {
        std::env::var("DOCKER_HUB_USERNAME")
            .ok()
            .filter(|name| !name.is_empty())
    })
}

fn jobs(images: &Images) -> usize {
    images
        .jobs
        .as_ref()
        .map_or_else(|| ImageSettings::default().jobs, |jobs| jobs.value)
}

/// What `images.attest` of a description in `root` says of every push.
fn attest(images: &Images, root: &Path) -> Attest {
    let described = &images.attest;
    let key = described.key.as_ref().map(|key| KeyFile {
        path: root.join(&key.value),
        password_file: None,
    });
    Attest {
        sbom: described.sbom,
        provenance: described.provenance,
        key,
    }
}

/// Repository in manifests -> component, as `images.components` says.
fn map(images: &Images) -> BTreeMap<String, String> {
    let pairs = images.components.iter().flat_map(|component| {
        let name = &component.name.value;
        let references = component.references.iter();
        references.map(|reference| (reference.value.clone(), name.clone()))
    });
    pairs.collect()
}

/// The `images.components` of a description in `root`.
fn definitions(images: &Images, root: &Path) -> Vec<Definition> {
    images
        .components
        .iter()
        .map(|component| Definition {
            name: component.name.value.clone(),
            context: component.context.as_ref().map(|path| root.join(path)),
            dockerfile: component.dockerfile.clone(),
            target: component.target.clone(),
            args: component.args.clone(),
            platforms: component
                .platforms
                .iter()
                .map(|platform| platform.value.clone())
                .collect(),
        })
        .collect()
}

fn make(
    context: &Context,
    choice: Choice,
    reporter: Arc<dyn Reporter>,
) -> anyhow::Result<Pipeline> {
    let pipeline = pipeline(&settings(context), choice, &[], false, reporter);
    coded_while("preparing the images", pipeline)
}

/// `orch images ...`.
pub(super) async fn run(context: &Context, arguments: ImagesArgs) -> anyhow::Result<Exit> {
    let step = context.ui.step("images");
    let pushes = matches!(&arguments.command, ImagesCommand::Push(push) if !push.dry_run);
    let exit = super::images::run(arguments, settings(context), step, &context.ui).await?;
    // Machines that plain `vagrant up` made have no way to a registry that was started after them.
    if pushes && context.vagrant().has_machines() {
        attach_registry(context).await?;
    }
    Ok(exit)
}

/// `orch images ...` in a project that orch makes no cluster for.
pub(super) async fn run_alone(
    file: &Path,
    description: ImagesOnly,
    arguments: ImagesArgs,
    ui: &Ui,
) -> anyhow::Result<Exit> {
    let settings = settings_alone(file, &description);
    super::images::run(arguments, settings, ui.step("images"), ui).await
}

/// The images step of `create`: build, push, pin.
pub(super) async fn push(context: &Context, step: Arc<Step>) -> anyhow::Result<Report> {
    let pipeline = make(context, Choice::default(), step)?;
    coded_while("building and pushing the images", pipeline.push(true).await)
}

/// What [`push`] would do, a line a component.
pub(super) async fn plan(context: &Context) -> anyhow::Result<Vec<String>> {
    let step = context.ui.step("images");
    let pipeline = make(context, Choice::default(), step)?;
    let steps = coded_while("planning the images", pipeline.plan(Rehearsal::Pin).await)?;
    Ok(steps
        .iter()
        .map(|step| {
            format!(
                "{}:{} {:?}: {}",
                step.component, step.tag, step.action, step.reason
            )
        })
        .collect())
}

/// Builds the docker provider's node image and gives it the tag that the Vagrantfile asks for.
pub(super) async fn node_image(
    context: &Context,
    reporter: Arc<dyn Reporter>,
) -> anyhow::Result<()> {
    let image = context.resources().node_image();
    if bundled::is(context)? {
        // Its base images cannot be had without a network.
        return Engine::default()
            .run(&["image", "inspect", "--format", "{{.Id}}", &image])
            .await
            .map(|_| ())
            .exit(
                Exit::Machine,
                format!("a bundle holds no node image: `docker save {image}` where the bundle was made, and `docker load` here"),
            );
    }
    let built = build_for_host(&settings(context), NODE_COMPONENT, reporter).await;
    let tag = coded_while("building the node image", built)?;
    Engine::default()
        .run(&["tag", &tag, &image])
        .await
        .map(|_| ())
        .exit(Exit::Machine, "tagging the node image")
}

fn destination(context: &Context) -> anyhow::Result<Destination> {
    let destination = images_settings::destination(&settings(context), false, false);
    coded_while("choosing the registry", destination)
}

/// Whether images go to the registry that stands in for Docker Hub.
pub(super) fn uses_local_registry(context: &Context) -> anyhow::Result<bool> {
    Ok(!bundled::is(context)? && destination(context)?.stand_in.is_some())
}

/// Where this project's images go, if `repository` of `registry` is one of theirs.
pub(super) fn own_registry(
    context: &Context,
    registry: &str,
    repository: &str,
) -> anyhow::Result<Option<Destination>> {
    if registry != DOCKER_HUB {
        return Ok(None);
    }
    let destination = destination(context)?;
    let is_ours = repository
        .strip_prefix(&destination.namespace)
        .is_some_and(|rest| rest.starts_with('/'));
    Ok(is_ours.then_some(destination))
}

/// Starts the registry that stands in for Docker Hub, where there is one.
pub(super) async fn run_stand_in(
    context: &Context,
    destination: &Destination,
    reporter: Arc<dyn Reporter>,
) -> anyhow::Result<()> {
    if destination.stand_in.is_none() {
        return Ok(());
    }
    let pipeline = make(context, Choice::default(), reporter)?;
    coded_while("starting the registry", pipeline.start_stand_in().await)
}

/// Gives the registry that stands in for Docker Hub an address in the machines' network.
pub(super) async fn attach_registry(context: &Context) -> anyhow::Result<()> {
    if bundled::is(context)? {
        return Ok(());
    }
    let destination = destination(context)?;
    let Some(stand_in) = &destination.stand_in else {
        return Ok(());
    };
    let engine = Engine::default();
    let config = &context.config;
    let attached = match (
        context.provider(),
        config.registry_address(),
        config.gateway(),
    ) {
        (Provider::Docker, Some(address), _) => {
            let network = context.resources().network();
            stand_in.attach(&engine, &network, address.into()).await
        }
        (Provider::Virtualbox | Provider::Libvirt, _, Some(gateway)) => {
            stand_in.serve_on(&engine, gateway.into()).await
        }
        _ => Ok(()),
    };
    attached.exit(
        Exit::Registry,
        "connecting the registry to the machines' network",
    )
}

/// Starts the registry again, after the machines were.
pub(super) async fn start_registry(context: &Context) -> anyhow::Result<()> {
    if bundled::is(context)? {
        return Ok(());
    }
    let step = context.ui.step("registry");
    let pipeline = make(
        context,
        Choice::default(),
        Arc::clone(&step) as Arc<dyn Reporter>,
    )?;
    coded_while("starting the registry", pipeline.start_stand_in().await)?;
    attach_registry(context).await?;
    step.done("answers");
    Ok(())
}
