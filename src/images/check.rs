//! Do sources, lock, manifests and registry agree? Compares and changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::difference::Difference;
use super::input::{Input, UnknownBase};
use super::lock::Lock;
use super::pin::{Manifest, Ours, is_pinned};

/// Something that does not agree, in the order of the way from source to cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The sources are not those that were pushed last.
    SourceChanged {
        /// The component.
        component: String,
        /// What changed, for people.
        reason: String,
        /// The same for programs.
        #[serde(skip_serializing_if = "Difference::is_empty")]
        changes: Difference,
    },
    /// A manifest does not name what was pushed last.
    ManifestUnpinned {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What it says.
        image: String,
        /// The component that it stands for; nothing if nobody builds the image.
        component: Option<String>,
        /// What it should say; nothing if that was never pushed.
        expected: Option<String>,
    },
    /// The registry does not have what the manifests name.
    PinMissing {
        /// The component.
        component: String,
        /// The pinned reference.
        reference: String,
    },
    /// The registry's tag names another image than the lock.
    TagMoved {
        /// The component.
        component: String,
        /// The pinned reference.
        reference: String,
        /// The digest that the tag names now; nothing if the tag is gone.
        found: Option<String>,
    },
}

impl Finding {
    /// One line for people, with the next step.
    pub fn describe(&self) -> String {
        match self {
            Self::SourceChanged {
                component, reason, ..
            } => {
                format!(
                    "{component}: the sources changed since the last push ({reason}): run `orch images push --pin`"
                )
            }
            Self::ManifestUnpinned {
                path,
                line,
                column,
                image,
                component,
                expected,
            } => {
                let place = format!("{}:{line}:{column}", path.display());
                match (expected, component) {
                    (None, Some(component)) => format!(
                        "{place}: `{image}` is the component {component}, which was never pushed: run `orch images push --pin`"
                    ),
                    (Some(expected), _) => format!(
                        "{place}: says `{image}` instead of `{expected}`: run `orch images push --pin`"
                    ),
                    (None, None) => format!(
                        "{place}: `{image}` is not pinned and no component builds it: run `orch images pin --upstream`, or leave it \
                         as it is with --keep {image}"
                    ),
                }
            }
            Self::PinMissing {
                component,
                reference,
            } => {
                format!(
                    "{component}: the registry does not have {reference}: run `orch images push --pin`, which builds it again"
                )
            }
            Self::TagMoved {
                component,
                reference,
                found: Some(found),
            } => {
                format!(
                    "{component}: the tag of {reference} now names {found}: somebody pushed over it; `orch images push --pin` takes \
                     theirs over"
                )
            }
            Self::TagMoved {
                component,
                reference,
                found: None,
            } => {
                format!(
                    "{component}: the registry has the image of {reference} but no longer its tag: run `orch images push`"
                )
            }
        }
    }
}

/// What the registry says about a component of the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// The digest that the tag names.
    pub tag: Option<String>,
    /// Is the lock's digest there?
    pub pin: bool,
}

/// Compares. `inputs` are the names of the selected ones, or why a component has none; `remote` is
/// what the registry says where it was asked.
pub fn check(
    ours: &Ours,
    inputs: &BTreeMap<String, Result<Input, UnknownBase>>,
    lock: &Lock,
    manifests: &[Manifest],
    remote: &BTreeMap<String, Remote>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (component, input) in inputs {
        let mut changes = Difference::default();
        let reason = match (input, lock.components.get(component)) {
            (Err(unknown), _) => Some(unknown.to_string()),
            (Ok(_), None) => Some("it was never pushed".to_owned()),
            (Ok(input), Some(entry)) if entry.input != input.hash.to_string() => {
                changes = Difference::between(entry, input);
                Some(changes.summary())
            }
            _ => None,
        };
        findings.extend(reason.map(|reason| Finding::SourceChanged {
            component: component.clone(),
            reason,
            changes,
        }));
    }
    for manifest in manifests {
        for image in &manifest.images {
            let component = ours.component_of(&image.value);
            let expected = component
                .and_then(|name| lock.components.get(name))
                .map(|entry| entry.pinned());
            let agrees = match (&expected, component) {
                (Some(expected), _) => *expected == image.value,
                (None, Some(_)) => false,
                (None, None) => is_pinned(&image.value) || ours.keeps(&image.value),
            };
            if !agrees {
                findings.push(Finding::ManifestUnpinned {
                    path: manifest.path.clone(),
                    line: image.line,
                    column: image.column,
                    image: image.value.clone(),
                    component: component.map(str::to_owned),
                    expected,
                });
            }
        }
    }
    for (component, remote) in remote {
        let Some(entry) = lock.components.get(component) else {
            continue;
        };
        let (component, reference) = (component.clone(), entry.pinned());
        if !remote.pin {
            findings.push(Finding::PinMissing {
                component,
                reference,
            });
        } else if remote.tag.as_ref() != Some(&entry.digest) {
            findings.push(Finding::TagMoved {
                component,
                reference,
                found: remote.tag.clone(),
            });
        }
    }
    findings.sort();
    findings
}
