//! Stacks of Kubernetes manifests: a folder of YAML files, read, checked, ordered.
//!
//! Boundary: files in, objects out. Nothing here talks to a cluster; [`Stack<Pinned>`] is the only
//! form that yields objects to apply, so an image that could change under its name gets there only if
//! somebody declared that it may.

mod load;
mod order;
mod pinned;
mod secrets;
mod storage;
mod volumes;
mod yaml;

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::Serialize;

pub use order::{Stage, WAVE_ANNOTATION, Wave};
pub use secrets::{
    EXAMPLE_FILE, SECRETS_FILE, SecretsError, SecretsOutcome, ensure_secrets, secrets_needed,
};
pub use storage::SHARED_STORAGE_CLASS;
pub use volumes::VOLUME_OWNER_ANNOTATION;

/// Images may still be named by tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpinned {}

/// Every image is named by digest, but for those that somebody declared to be kept without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {}

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub file: PathBuf,
    pub line: u64,
    pub column: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}:{}:{}",
            self.file.display(),
            self.line,
            self.column
        )
    }
}

/// An image that a container (or an image volume) runs from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// The container's name; an image volume's name for volumes.
    pub container: String,
    pub image: String,
    pub origin: Origin,
}

/// One Kubernetes object of a stack.
#[derive(Clone)]
pub struct Manifest<State> {
    pub api_version: String,
    pub kind: String,
    pub name: String,
    /// As written; `None` for cluster-wide objects and for those that take the stack's namespace.
    pub namespace: Option<String>,
    /// Lower is applied first within a stage, see [`WAVE_ANNOTATION`].
    pub wave: i32,
    pub images: Vec<ImageUse>,
    pub origin: Origin,
    object: serde_json::Value,
    state: PhantomData<State>,
}

impl<State> fmt::Debug for Manifest<State> {
    /// Leaves the object out: it may be a Secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} ({})", self.kind, self.name, self.origin)
    }
}

impl Manifest<Pinned> {
    /// The object as it is sent to the API server.
    pub fn into_object(self) -> serde_json::Value {
        self.object
    }
}

/// All manifests of one folder.
#[derive(Debug, Clone)]
pub struct Stack<State> {
    pub directory: PathBuf,
    pub manifests: Vec<Manifest<State>>,
}

/// Why a stack cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error(
        "{origin}: {owner:?} of PersistentVolume {volume} is no owner; write \"uid:gid\" in numbers"
    )]
    VolumeOwner {
        origin: Origin,
        volume: String,
        owner: String,
    },
    #[error("{origin}: PersistentVolume {volume} is of class orch-shared, so its hostPath must lie below {}", root.display())]
    VolumePath {
        origin: Origin,
        volume: String,
        root: PathBuf,
    },
    #[error(
        "cannot read the manifests in {path}; name the folder with --manifests or in orch.yaml"
    )]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} holds no manifest: expected at least one *.yaml file with a Kubernetes object")]
    Empty { path: PathBuf },
    #[error("{origin}: {message}")]
    Invalid { origin: Origin, message: String },
    #[error("{second}: {kind} {name} is already defined at {first}; keep one of them")]
    Duplicate {
        kind: String,
        name: String,
        first: Box<Origin>,
        second: Box<Origin>,
    },
    #[error(
        "images that are not pinned by digest; run `orch images push --pin`, or keep other people's as they are with \
         `--keep IMAGE` or `images.keep` in orch.yaml:{}",
        pinned::list(images)
    )]
    Unpinned { images: Vec<ImageUse> },
}
