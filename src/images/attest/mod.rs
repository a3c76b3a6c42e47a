//! What is said about an image that is in a registry: which packages it has, what it was built from, and who vouches for it.
//!
//! [`sbom`] and [`provenance`] write documents, [`artifact`] makes OCI artifacts of them, [`signature`], [`dsse`] and [`key`] sign in
//! cosign's form, [`store`] brings all of it to a registry. Boundary: an image is given by its digest and is never changed;
//! which images and when is for [`super::execute`] to say.

pub mod artifact;
pub mod dsse;
pub mod elf;
pub mod git;
pub mod key;
pub mod packages;
pub mod provenance;
pub mod rootfs;
pub mod sbom;
pub mod signature;
pub mod spdx;
pub mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::context::SOURCE_DATE_EPOCH;
use key::{KeyError, KeyFile};

/// Where the names of orch's own formats live.
const SOURCE: &str = "https://orch.dev";
/// Annotation: the input hash of the image that a document is about.
pub const INPUT: &str = "dev.orch.input";
/// Annotation: version of the document's content. Another version is another document.
pub const FORMAT: &str = "dev.orch.format";
/// The version of lists of packages.
pub const SBOM_VERSION: &str = "2";
/// The version of provenances.
pub const PROVENANCE_VERSION: &str = "1";
/// Annotation: the commit that the sources are.
pub const REVISION: &str = "org.opencontainers.image.revision";
/// Annotation: when an artifact was made.
const CREATED: &str = "org.opencontainers.image.created";
/// Annotation: what a statement states.
const PREDICATE: &str = "in-toto.io/predicate-type";

/// What is attached to images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attest {
    /// A list of packages.
    pub sbom: bool,
    /// What it was built from.
    pub provenance: bool,
    /// A signature with this key.
    pub key: Option<KeyFile>,
}

impl Attest {
    /// Is there nothing to attach?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Something cannot be said about an image.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A layer cannot be read.
    #[error("cannot read layer {digest} of {image}: {reason}")]
    Layer {
        /// The image.
        image: String,
        /// The layer.
        digest: String,
        /// What is wrong.
        reason: String,
    },
    /// What is under the digest is no image.
    #[error("cannot describe {image}: {reason}")]
    Image {
        /// The image.
        image: String,
        /// What it is instead.
        reason: String,
    },
    /// A document cannot be written as JSON.
    #[error("cannot write the {document} of {image}")]
    Document {
        /// The image.
        image: String,
        /// Which document.
        document: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The sources are no longer what was pushed.
    #[error(
        "{component}: its sources changed since it was pushed as {reference}: run `orch images push {component}` first"
    )]
    Stale {
        /// The component.
        component: String,
        /// What the lock says.
        reference: String,
    },
    /// Somebody else's image has the tag.
    #[error(
        "{component}: this run did not push {reference}, and {lock} does not list it, so it is not signed: look at that image; \
         if it is the right one, run `orch images push --no-key {component}`, which puts it into the lock, and then \
         `orch images attest --sign --key KEY {component}`"
    )]
    NotOurs {
        /// The component.
        component: String,
        /// What the registry has.
        reference: String,
        /// The lock.
        lock: PathBuf,
    },
    /// This run speaks to another repository than the lock's.
    #[error(
        "{component}: {lock} lists it as {listed}, and this run would look at {here}: name the lock's with --registry and --namespace"
    )]
    Elsewhere {
        /// The component.
        component: String,
        /// What the lock says.
        listed: String,
        /// Where this run looks.
        here: String,
        /// The lock.
        lock: PathBuf,
    },
    /// The lock does not know it.
    #[error(
        "{component}: it was never pushed, {lock} does not list it: run `orch images push {component}`"
    )]
    NotPushed {
        /// The component.
        component: String,
        /// The lock.
        lock: PathBuf,
    },
    /// A reader stopped.
    #[error("reading the layers of {image} was interrupted")]
    Interrupted {
        /// The image.
        image: String,
    },
}

/// The time of every build, for documents.
fn epoch() -> String {
    i64::try_from(SOURCE_DATE_EPOCH)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
        .to_string()
}

/// The annotations of an SBOM for an image made from `input`.
pub fn sbom_annotations(input: &str) -> BTreeMap<String, String> {
    annotations(input, SBOM_VERSION)
}

/// The annotations of a provenance. `commit` is there if the sources are exactly that.
pub fn provenance_annotations(input: &str, commit: Option<&str>) -> BTreeMap<String, String> {
    let mut annotations = annotations(input, PROVENANCE_VERSION);
    annotations.insert(PREDICATE.to_owned(), provenance::PREDICATE_TYPE.to_owned());
    annotations.extend(commit.map(|commit| (REVISION.to_owned(), commit.to_owned())));
    annotations
}

fn annotations(input: &str, version: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (CREATED.to_owned(), epoch()),
        (FORMAT.to_owned(), version.to_owned()),
        (INPUT.to_owned(), input.to_owned()),
    ])
}
