//! What became of a node, or would.

use orch_contract::{Outcome, Role};
use serde::Serialize;

use super::NodeError;
use super::deliver::Parcel;

/// A step that was applied, or would be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedStep {
    /// Its verb-noun name; `deliver` is the host's own.
    pub step: String,
    pub reason: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<orch_contract::Change>,
}

/// One node's outcome.
#[derive(Debug, Serialize)]
pub struct NodeReport {
    pub node: String,
    pub role: Role,
    pub outcome: Outcome,
    pub steps: Vec<PlannedStep>,
    /// K3s's version line, once it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k3s: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub error: Option<NodeError>,
    /// A server's kubeconfig, as K3s wrote it.
    #[serde(skip)]
    pub kubeconfig: Option<super::Secret>,
}

fn as_text<S: serde::Serializer>(
    error: &Option<NodeError>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match error {
        Some(error) => serializer.collect_str(&chain(error)),
        None => serializer.serialize_none(),
    }
}

/// An error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let errors = std::iter::successors(Some(error), |error| error.source());
    errors
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

impl NodeReport {
    /// Of a node with nothing to do so far.
    pub fn new(node: &str, role: Role) -> Self {
        Self {
            node: node.to_owned(),
            role,
            outcome: Outcome::Unchanged,
            steps: Vec::new(),
            k3s: None,
            error: None,
            kubeconfig: None,
        }
    }

    pub(super) fn failed(mut self, error: NodeError) -> Self {
        self.outcome = Outcome::Failed;
        self.error = Some(error);
        self
    }

    /// Takes what travels into the report as its first step.
    pub(super) fn delivers(&mut self, parcels: &[Parcel]) {
        if parcels.is_empty() {
            return;
        }
        let reasons: Vec<String> = parcels.iter().map(Parcel::to_string).collect();
        self.steps.push(PlannedStep {
            step: "deliver".to_owned(),
            reason: reasons.join(", "),
            changes: Vec::new(),
        });
    }

    /// Whether anything would be, or was, changed.
    pub fn is_changed(&self) -> bool {
        !self.steps.is_empty()
    }
}
