//! What happens in the pipeline, for whoever shows it. The domain itself is silent.

use std::io::Write;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// Something worth showing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageEvent {
    /// A base image is made here because its registry cannot be reached.
    Substituted {
        /// The base image asked for.
        image: String,
        /// What takes its place.
        by: String,
    },
    /// The builder starts on a component.
    BuildStarted {
        /// The component.
        component: String,
        /// Why it has to be built.
        reason: String,
    },
    /// A line of the builder's output.
    BuildLine {
        /// The component.
        component: String,
        /// The line.
        line: String,
    },
    /// The builder is done.
    BuildFinished {
        /// The component.
        component: String,
        /// Seconds.
        seconds: f64,
    },
    /// A layer was compressed, which happens once per layer.
    LayerCompressed {
        /// The component whose image it was met in.
        component: String,
        /// Digest of the compressed layer.
        digest: String,
        /// Bytes before.
        uncompressed: u64,
        /// Bytes after.
        compressed: u64,
    },
    /// Bytes of a blob that the registry has taken so far.
    UploadProgress {
        /// The component.
        component: String,
        /// Digest of the blob.
        digest: String,
        /// Bytes sent.
        sent: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The registry has an image it did not have before.
    Pushed {
        /// The component.
        component: String,
        /// `repository:tag@digest`.
        reference: String,
        /// Blobs that had to be sent.
        blobs_sent: u64,
        /// Blobs that were there or could be mounted.
        blobs_reused: u64,
    },
    /// Something is said about an image in the registry.
    Attached {
        /// The component.
        component: String,
        /// What it is.
        document: String,
        /// It was not there before.
        new: bool,
    },
    /// A list of packages lacks some that are known to be there.
    Incomplete {
        /// The component.
        component: String,
        /// What was not read.
        remark: String,
    },
    /// No provenance was attached: neither did this run push the image, nor did the lock list it before.
    Unattested {
        /// The component.
        component: String,
        /// `repository:tag@digest`.
        reference: String,
    },
    /// There was nothing to do for a component.
    Skipped {
        /// The component.
        component: String,
        /// Why.
        reason: String,
    },
    /// A manifest's `image:` was rewritten.
    Pinned {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// The new reference.
        reference: String,
    },
    /// A request is tried again.
    Retrying {
        /// What was asked for.
        operation: String,
        /// Why it failed.
        reason: String,
        /// Seconds until it is tried again.
        seconds: f64,
    },
    /// Everything is done.
    Summary {
        /// Requests to registries, tokens and repetitions included.
        requests: u64,
        /// Bytes of request bodies.
        bytes_sent: u64,
        /// Seconds.
        seconds: f64,
    },
    /// An event of another version of orch.
    #[serde(other)]
    Unknown,
}

/// Takes events as they happen, from any thread.
pub trait Reporter: Send + Sync {
    /// Something happened.
    fn event(&self, event: ImageEvent);
}

/// Keeps events, for tests.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<ImageEvent>>);

impl Recorder {
    /// What was reported so far.
    pub fn events(&self) -> Vec<ImageEvent> {
        self.0
            .lock()
            .map(|events| events.clone())
            .unwrap_or_default()
    }
}

impl Reporter for Recorder {
    fn event(&self, event: ImageEvent) {
        if let Ok(mut events) = self.0.lock() {
            events.push(event);
        }
    }
}

/// Writes one line per event that a person wants to read.
#[derive(Debug)]
pub struct PlainReporter<W>(Mutex<W>);

impl<W: Write + Send> PlainReporter<W> {
    /// Writes to `output`.
    pub fn new(output: W) -> Self {
        Self(Mutex::new(output))
    }
}

impl<W: Write + Send> Reporter for PlainReporter<W> {
    fn event(&self, event: ImageEvent) {
        let (Some(line), Ok(mut output)) = (event.describe(), self.0.lock()) else {
            return;
        };
        // A closed terminal is no reason to stop a push.
        let _ = writeln!(output, "{line}");
    }
}

impl ImageEvent {
    /// One line for people, or nothing where a line would only be noise.
    pub fn describe(&self) -> Option<String> {
        Some(match self {
            Self::Substituted { image, by } => {
                format!("{image} cannot be pulled: {by} takes its place")
            }
            Self::BuildStarted { component, reason } => format!("{component}: building ({reason})"),
            Self::BuildLine { component, line } => format!("{component}: {line}"),
            Self::BuildFinished { component, seconds } => {
                format!("{component}: built in {seconds:.1} s")
            }
            Self::LayerCompressed {
                component,
                uncompressed,
                compressed,
                ..
            } => {
                format!("{component}: compressed a layer from {uncompressed} to {compressed} bytes")
            }
            Self::Pushed {
                component,
                reference,
                blobs_sent,
                blobs_reused,
            } => {
                format!(
                    "{component}: pushed {reference} ({blobs_sent} blobs sent, {blobs_reused} already there)"
                )
            }
            Self::Attached {
                component,
                document,
                new: true,
            } => format!("{component}: attached a {document}"),
            Self::Attached {
                component,
                document,
                new: false,
            } => format!("{component}: the {document} is there"),
            Self::Incomplete { component, remark } => {
                format!("{component}: the list of packages is not complete: {remark}")
            }
            Self::Unattested {
                component,
                reference,
            } => format!(
                "{component}: no provenance for {reference}: this run did not push it, and images.lock did not list it; if it is \
                 yours, `orch images attest --provenance {component}` says so"
            ),
            Self::Skipped { component, reason } => format!("{component}: nothing to do ({reason})"),
            Self::Pinned {
                file,
                line,
                reference,
            } => format!("{file}:{line}: pinned {reference}"),
            Self::Retrying {
                operation,
                reason,
                seconds,
            } => format!("{operation} again in {seconds:.1} s: {reason}"),
            Self::Summary {
                requests,
                bytes_sent,
                seconds,
            } => {
                format!("{requests} requests, {bytes_sent} bytes sent, {seconds:.2} s")
            }
            Self::UploadProgress { .. } | Self::Unknown => return None,
        })
    }
}
