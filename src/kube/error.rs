//! Why a cluster could not be read or changed.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// Fields that another field manager owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The other owner, as it named itself to the API server.
    pub manager: String,
    /// Paths such as `.spec.replicas`.
    pub fields: Vec<String>,
}

/// The client library's error, reduced to what a person needs: its own text repeats the whole answer.
#[derive(Debug)]
pub struct Cause(Box<kube::Error>);

impl From<kube::Error> for Cause {
    fn from(error: kube::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for Cause {
    /// The API server's message, or the innermost cause, which is the one that says something.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_ref() {
            kube::Error::Api(status) if status.message.is_empty() => {
                write!(formatter, "HTTP status {}", status.code)
            }
            kube::Error::Api(status) => formatter.write_str(&status.message),
            error => formatter.write_str(&chain(error).last().unwrap_or_default()),
        }
    }
}

impl std::error::Error for Cause {}

/// An error's text and those of its causes, outermost first.
pub(super) fn chain(error: &dyn std::error::Error) -> impl Iterator<Item = String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string)
}

/// An error of one operation against the cluster.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    #[error("cannot use the kubeconfig {path}: {message}; name another one with --kubeconfig")]
    Kubeconfig { path: PathBuf, message: String },
    #[error("{operation}: the API server still does not answer after {} s; is the cluster running? `orch status` shows its machines", waited.as_secs())]
    Unreachable {
        operation: String,
        waited: Duration,
        source: Cause,
    },
    #[error("{operation} failed")]
    Request { operation: String, source: Cause },
    #[error(
        "{origin}: the cluster has no kind {kind} in {api_version}; apply its CustomResourceDefinition first or correct the apiVersion"
    )]
    UnknownKind {
        origin: String,
        api_version: String,
        kind: String,
    },
    #[error("{origin}: the API server refused {object}: {message}")]
    Rejected {
        origin: String,
        object: String,
        message: String,
    },
    #[error(
        "{origin}: fields of {object} belong to others: {}; leave them out of the manifest, or take them over with --force-conflicts",
        owners(conflicts)
    )]
    Conflict {
        origin: String,
        object: String,
        conflicts: Vec<Conflict>,
    },
}

impl KubeError {
    /// Whether the same request may succeed a little later, or after another look at the object.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Request { source, .. } => {
                let error = source.0.as_ref();
                let looked_at_before = matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409);
                looked_at_before || super::retry::is_transient(error)
            }
            _ => false,
        }
    }
}

pub(super) fn owners(conflicts: &[Conflict]) -> String {
    let owners: Vec<_> = conflicts
        .iter()
        .map(|conflict| format!("{:?} owns {}", conflict.manager, conflict.fields.join(", ")))
        .collect();
    owners.join("; ")
}

/// The other owners that a 409 of server-side apply names in its causes, whose messages read
/// `conflict with "MANAGER" using VERSION` or `conflict with "MANAGER" with subresource "x" using ...`.
/// Empty when the 409 has another reason.
pub(super) fn conflicts(status: &kube::core::Status) -> Vec<Conflict> {
    let mut found: Vec<Conflict> = Vec::new();
    let causes = status.details.iter().flat_map(|details| &details.causes);
    for cause in causes.filter(|cause| cause.reason == "FieldManagerConflict") {
        let manager = cause.message.split('"').nth(1).unwrap_or("another manager");
        match found
            .iter_mut()
            .find(|conflict| conflict.manager == manager)
        {
            Some(conflict) => conflict.fields.push(cause.field.clone()),
            None => found.push(Conflict {
                manager: manager.to_owned(),
                fields: vec![cause.field.clone()],
            }),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_names_each_owner_once_with_its_fields() {
        let status: kube::core::Status = serde_json::from_value(serde_json::json!({
            "code": 409, "reason": "Conflict", "status": "Failure",
            "message": "Apply failed with 2 conflicts",
            "details": {"causes": [
                {"reason": "FieldManagerConflict", "field": ".spec.replicas",
                 "message": "conflict with \"kubectl-scale\" with subresource \"scale\" using apps/v1"},
                {"reason": "FieldManagerConflict", "field": ".spec.paused",
                 "message": "conflict with \"kubectl-scale\" using apps/v1"},
                {"reason": "FieldManagerConflict", "field": ".data.a", "message": "conflict with \"helm\""},
            ]}
        }))
        .unwrap();
        assert_eq!(
            owners(&conflicts(&status)),
            "\"kubectl-scale\" owns .spec.replicas, .spec.paused; \"helm\" owns .data.a"
        );
    }

    #[test]
    fn what_the_server_refuses_for_good_does_not_pass() {
        let refused = |code| KubeError::Request {
            operation: "labelling".to_owned(),
            source: Cause::from(kube::Error::Api(Box::new(
                kube::core::Status::failure("no", "reason").with_code(code),
            ))),
        };
        for (code, expected) in [
            (409, true),
            (503, true),
            (404, true),
            (403, false),
            (422, false),
        ] {
            assert_eq!(refused(code).may_pass(), expected, "{code}");
        }
    }

    #[test]
    fn another_409_names_nobody() {
        let status =
            kube::core::Status::failure("object is being deleted", "Conflict").with_code(409);
        assert!(conflicts(&status).is_empty());
    }
}
