//! What `orch images` works with: defaults, orch.yaml and options become a pipeline.

use std::collections::BTreeMap;
use std::env::VarError;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cli::images::{BuilderName, CommonArgs};
use crate::images::ImageError;
use crate::images::arguments::{self, Argument};
use crate::images::attest::Attest;
use crate::images::component::{Component, ComponentError, Definition, find, host_platform};
use crate::images::destination::{DOCKER_HUB, Destination};
use crate::images::engine::Engine;
use crate::images::engine::builder::Wanted;
use crate::images::event::Reporter;
use crate::images::execute::{Pinning, Pipeline, Settings};
use crate::images::pin::{self, Asking, PinError};
use crate::images::registry::retry::Policy;
use crate::images::registry::stand_in::StandIn;

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

pub(super) fn destination(
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

/// Pinning for these settings. Works without components, and where nobody says where images go.
pub(super) fn pinning(
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

/// What the options of this run make of `settings`.
pub(super) fn merge(
    mut settings: ImageSettings,
    common: &CommonArgs,
) -> Result<ImageSettings, ImageError> {
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
