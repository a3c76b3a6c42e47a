//! Why a manifest cannot be pinned: what is wrong with a text ([`Fault`]), and with a file or an option ([`PinError`]).

use std::path::PathBuf;

use crate::images::lock::LockError;

/// Something that is wrong at a place in a text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {problem}")]
pub struct Fault {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// What may be wrong there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not YAML.
    #[error("{0}")]
    Yaml(String),
    /// A Helm chart's template.
    #[error("this is a Helm template: render it first (`helm template`) and pin the result")]
    Template,
    /// An image with something else than a string for a name.
    #[error("the name of an image must be one line of text")]
    NotText,
    /// An anchor that is used for an image and for something else.
    #[error(
        "this value is shared with the image in line {image}: write the image out there, so that pinning it changes nothing else"
    )]
    SharedAnchor {
        /// Line of the image.
        image: usize,
    },
    /// Anchors of anchors of anchors.
    #[error(
        "anchors refer to one another too deeply to find the images behind them: write the containers out"
    )]
    Anchors,
    /// An image that no component is.
    #[error(
        "nobody builds `{image}`: it is none of the components ({components}) and not pinned by digest; \
         for a component write its name or add `--map {repository}={component}`, \
         pin somebody else's with `orch images pin --upstream`, or leave it as it is with `--keep {image}`"
    )]
    Unknown {
        /// The image.
        image: String,
        /// Its repository as written.
        repository: String,
        /// Those that exist, nearest first.
        components: String,
        /// The nearest one.
        component: String,
    },
    /// An unpinned image where nothing is built.
    #[error(
        "`{image}` is not pinned by digest, and there are no components here: pin it with `orch images pin --upstream`, \
         or leave it as it is with `--keep {image}`"
    )]
    NoComponents {
        /// The image.
        image: String,
    },
    /// An official image that is called like a component.
    #[error(
        "`{image}` is ambiguous: the component `{component}` is written `{component}` \
         (or add `--map {component}={component}`), and Docker Hub's image is pinned with `orch images pin --upstream`, \
         or left as it is with `--keep {image}`"
    )]
    Ambiguous {
        /// The image.
        image: String,
        /// The component.
        component: String,
    },
    /// A component that has no digest yet.
    #[error("`{image}` has not been pushed yet: run `orch images push --pin {component}`")]
    NotPushed {
        /// The image.
        image: String,
        /// The component.
        component: String,
    },
    /// An image whose name a registry cannot be asked for.
    #[error(
        "`{image}` is not the name of an image, so that no registry can be asked for its digest"
    )]
    NotReference {
        /// What stands there.
        image: String,
    },
    /// The registry does not have a foreign image.
    #[error(
        "{registry} has no `{image}`: check its name and tag, or leave it as it is with `--keep {image}`"
    )]
    Absent {
        /// The image.
        image: String,
        /// The registry.
        registry: String,
    },
    /// The edit did not do what it should.
    #[error("`{image}` cannot be replaced without changing more than it: write it as plain text")]
    Refused {
        /// The image.
        image: String,
    },
}

/// A manifest cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// A folder or file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Not UTF-8.
    #[error("{path} is not UTF-8 text")]
    Encoding {
        /// The file.
        path: PathBuf,
    },
    /// Something is wrong in a file.
    #[error("{path}:{fault}")]
    At {
        /// The file.
        path: PathBuf,
        /// What, and where.
        fault: Box<Fault>,
    },
    /// A repository is mapped to a component that does not exist.
    #[error(
        "`{repository}` is mapped to `{component}`, and there is no such component: {candidates}"
    )]
    MapTarget {
        /// The repository.
        repository: String,
        /// The name given.
        component: String,
        /// Those that exist, nearest first.
        candidates: String,
    },
    /// Two components claim a repository.
    #[error(
        "`{repository}` is ambiguous: it belongs to `{first}`, and the map gives it to `{second}`: leave one of them out"
    )]
    TwoComponents {
        /// The repository.
        repository: String,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// An image that is to be left alone is a component's.
    #[error("`{image}` cannot be left alone: it is the component `{component}`")]
    KeptComponent {
        /// The image.
        image: String,
        /// The component.
        component: String,
    },
    /// Not an image's name.
    #[error("{option}: `{text}` is not the name of an image, e.g. `ghcr.io/acme/web`")]
    Repository {
        /// Where it was given.
        option: &'static str,
        /// What was given.
        text: String,
    },
    /// `--set` with something that is not a digest.
    #[error(
        "--set {name}={text}: give the whole reference with its digest, e.g. `{name}=ghcr.io/acme/web@sha256:<64 digits>`"
    )]
    SetDigest {
        /// What it is for.
        name: String,
        /// What was given.
        text: String,
    },
    /// `--set` twice for one image.
    #[error("--set {name} is given twice, with different digests: leave one of them out")]
    SetTwice {
        /// What it is for.
        name: String,
    },
    /// `--set` for something that is in no manifest.
    #[error("--set {name}: no manifest has such an image; they have: {candidates}")]
    SetUnused {
        /// What it is for.
        name: String,
        /// The images that there are, nearest first.
        candidates: String,
    },
    /// No files to pin in.
    #[error("there are no manifests: name files or folders with `--manifests`")]
    NoManifests,
    /// The lock, which remembers what stood there before.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file cannot be written.
    #[error("cannot write {path}; no manifest was changed")]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}
