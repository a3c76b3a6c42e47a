//! From Dockerfiles to pinned images: name by content, build, push what is missing, write digests into manifests.
//!
//! Boundary: takes plain values and folders, reports through [`event::Reporter`], and knows nothing of the command line,
//! `orch.yaml`, machines or clusters. The way through: [`component`] finds folders, [`input`] names them ([`context`],
//! [`dockerfile`], [`bases`]), [`plan`] decides, [`execute`] obeys ([`engine`], [`layers`], [`push`]), [`pin`] edits
//! manifests, [`lock`] remembers, [`check`] compares, [`gc`] cleans up.

pub mod arguments;
pub mod attest;
pub mod bases;
pub mod check;
pub mod compare;
pub mod component;
pub mod context;
pub mod destination;
pub mod difference;
pub mod dockerfile;
pub mod engine;
pub mod event;
pub mod execute;
pub mod gc;
pub mod hash;
pub mod index;
pub mod input;
pub mod layers;
pub mod lock;
pub mod pin;
pub mod plan;
pub mod push;
pub mod reference;
pub mod registry;
pub mod select;
pub mod take;

/// Anything that can go wrong between a Dockerfile and a pinned manifest.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Finding components.
    #[error(transparent)]
    Component(#[from] component::ComponentError),
    /// Reading and naming sources.
    #[error(transparent)]
    Input(#[from] input::InputError),
    /// Base images.
    #[error(transparent)]
    Base(#[from] bases::BaseError),
    /// Building.
    #[error(transparent)]
    Build(#[from] engine::build::BuildError),
    /// The container engine.
    #[error(transparent)]
    Engine(#[from] engine::EngineError),
    /// Layers.
    #[error(transparent)]
    Layer(#[from] layers::LayerError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
    /// What is said about images.
    #[error(transparent)]
    Attest(#[from] attest::AttestError),
    /// Manifests.
    #[error(transparent)]
    Pin(#[from] pin::PinError),
    /// `images.lock`.
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    /// What is reachable.
    #[error(transparent)]
    Gc(#[from] gc::GcError),
    /// Hub needs to know whose images these are.
    #[error(
        "no namespace to push to at {registry}: name it with --namespace, `registry.namespace` in orch.yaml, or DOCKER_HUB_USERNAME"
    )]
    Namespace {
        /// The registry.
        registry: String,
    },
    /// The local registry has no recipe.
    #[error(
        "there are no credentials for docker.io, and {folder} has no `{component}` component to run a local registry from: run \
         `docker login`, or name a registry, e.g. `--registry localhost:5000` or `--registry ghcr.io --namespace NAME`"
    )]
    NoStandIn {
        /// Where components are.
        folder: std::path::PathBuf,
        /// What was looked for.
        component: String,
    },
}
