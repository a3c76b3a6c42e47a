//! When a workload's rollout is complete, judged from the object alone.
//!
//! Pure. The rules are those of `kubectl rollout status`: the controller has seen the newest spec, every
//! replica is of it, none of the old ones is left, all are available.

use std::fmt;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

/// The kinds whose rollout can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
    DaemonSet,
    Job,
}

impl WorkloadKind {
    /// From a manifest's kind; `None` for kinds that have no rollout.
    pub fn parse(kind: &str) -> Option<Self> {
        match kind {
            "Deployment" => Some(Self::Deployment),
            "StatefulSet" => Some(Self::StatefulSet),
            "DaemonSet" => Some(Self::DaemonSet),
            "Job" => Some(Self::Job),
            _ => None,
        }
    }
}

/// A workload's identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Workload {
    pub kind: WorkloadKind,
    pub namespace: String,
    pub name: String,
}

impl Workload {
    pub fn new(kind: WorkloadKind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {}", self.kind, self.name)
    }
}

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// The API server has not answered yet.
    Unknown,
    Ready,
    Waiting {
        condition: String,
        observed: String,
    },
    /// The workload's controller has given up.
    Failed {
        reason: String,
    },
}

fn waiting(condition: impl Into<String>, observed: impl Into<String>) -> Progress {
    Progress::Waiting {
        condition: condition.into(),
        observed: observed.into(),
    }
}

/// Not in the cluster: deleted meanwhile.
pub(super) fn unseen() -> Progress {
    waiting("the object to appear", "the API server does not list it")
}

/// The newest spec has not been picked up by its controller.
fn unobserved(metadata: &ObjectMeta, observed: Option<i64>) -> Option<Progress> {
    let generation = metadata.generation.unwrap_or_default();
    let observed = observed.unwrap_or_default();
    (observed < generation).then(|| {
        waiting(
            "its controller to see the new spec",
            format!("generation {observed} of {generation} seen"),
        )
    })
}

pub(super) fn deployment(object: &Deployment) -> Progress {
    let status = object.status.clone().unwrap_or_default();
    if let Some(progress) = unobserved(&object.metadata, status.observed_generation) {
        return progress;
    }
    let conditions = status.conditions.unwrap_or_default();
    let gave_up = conditions.iter().find(|condition| {
        condition.type_ == "Progressing"
            && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    });
    if let Some(condition) = gave_up {
        return Progress::Failed {
            reason: condition.message.clone().unwrap_or_default(),
        };
    }
    let desired = object
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let updated = status.updated_replicas.unwrap_or_default();
    let total = status.replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    if updated < desired {
        return waiting(
            format!("{desired} updated replicas"),
            format!("{updated} of {desired} updated"),
        );
    }
    if total > updated {
        return waiting(
            "old replicas to end",
            format!("{} still there", total - updated),
        );
    }
    if available < updated {
        return waiting(
            format!("{updated} available replicas"),
            format!("{available} of {updated} available"),
        );
    }
    Progress::Ready
}

pub(super) fn stateful_set(object: &StatefulSet) -> Progress {
    let status = object.status.clone().unwrap_or_default();
    if let Some(progress) = unobserved(&object.metadata, status.observed_generation) {
        return progress;
    }
    let spec = object.spec.clone().unwrap_or_default();
    let desired = spec.replicas.unwrap_or(1);
    let ready = status.ready_replicas.unwrap_or_default();
    if ready < desired {
        return waiting(
            format!("{desired} ready replicas"),
            format!("{ready} of {desired} ready"),
        );
    }
    let total = status.replicas;
    if total > desired {
        return waiting(
            "surplus replicas to end",
            format!("{} still there", total - desired),
        );
    }
    let strategy = spec.update_strategy.unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return Progress::Ready;
    }
    let partition = strategy
        .rolling_update
        .and_then(|update| update.partition)
        .unwrap_or_default();
    let wanted = (desired - partition).max(0);
    let updated = status.updated_replicas.unwrap_or_default();
    if updated < wanted {
        return waiting(
            format!("{wanted} updated replicas"),
            format!("{updated} of {wanted} updated"),
        );
    }
    Progress::Ready
}

pub(super) fn daemon_set(object: &DaemonSet) -> Progress {
    let status = object.status.clone().unwrap_or_default();
    if let Some(progress) = unobserved(&object.metadata, status.observed_generation) {
        return progress;
    }
    let desired = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or_default();
    let available = status.number_available.unwrap_or_default();
    let on_delete = object
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref()?.type_.as_deref())
        == Some("OnDelete");
    if updated < desired && !on_delete {
        return waiting(
            format!("updated pods on {desired} nodes"),
            format!("{updated} of {desired} updated"),
        );
    }
    if available < desired {
        return waiting(
            format!("available pods on {desired} nodes"),
            format!("{available} of {desired} available"),
        );
    }
    Progress::Ready
}

pub(super) fn job(object: &Job) -> Progress {
    let status = object.status.clone().unwrap_or_default();
    let spec = object.spec.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let holds = |name: &str| {
        conditions
            .iter()
            .find(|condition| condition.type_ == name && condition.status == "True")
    };
    if let Some(condition) = holds("Failed") {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        return Progress::Failed {
            reason: format!("{}: {}", text(&condition.reason), text(&condition.message)),
        };
    }
    // A suspended job waits for somebody else on purpose.
    if holds("Complete").is_some() || spec.suspend == Some(true) {
        return Progress::Ready;
    }
    let wanted = spec.completions.unwrap_or(1);
    waiting(
        format!("{wanted} completions"),
        format!(
            "{} succeeded, {} active, {} failed",
            status.succeeded.unwrap_or_default(),
            status.active.unwrap_or_default(),
            status.failed.unwrap_or_default()
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment_with(status: Value) -> Progress {
        let object = json!({
            "metadata": {"name": "a", "generation": 2},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": status,
        });
        deployment(&serde_json::from_value(object).unwrap())
    }

    fn observed(progress: Progress) -> String {
        match progress {
            Progress::Unknown => "unknown".into(),
            Progress::Ready => "ready".into(),
            Progress::Waiting {
                condition,
                observed,
            } => format!("{condition} | {observed}"),
            Progress::Failed { reason } => format!("failed: {reason}"),
        }
    }

    #[test]
    fn a_deployment_passes_through_its_stages() {
        let mut status = json!({"observedGeneration": 1});
        assert_eq!(
            observed(deployment_with(status.clone())),
            "its controller to see the new spec | generation 1 of 2 seen"
        );
        status = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2});
        assert_eq!(
            observed(deployment_with(status.clone())),
            "2 updated replicas | 1 of 2 updated"
        );
        status["updatedReplicas"] = json!(2);
        assert_eq!(
            observed(deployment_with(status.clone())),
            "old replicas to end | 1 still there"
        );
        status["replicas"] = json!(2);
        status["availableReplicas"] = json!(1);
        assert_eq!(
            observed(deployment_with(status.clone())),
            "2 available replicas | 1 of 2 available"
        );
        status["availableReplicas"] = json!(2);
        assert_eq!(deployment_with(status.clone()), Progress::Ready);
        status["conditions"] = json!([{"type": "Progressing", "status": "False",
            "reason": "ProgressDeadlineExceeded", "message": "ReplicaSet has timed out progressing."}]);
        assert_eq!(
            observed(deployment_with(status)),
            "failed: ReplicaSet has timed out progressing."
        );
    }

    fn stateful_set_with(spec: Value, status: Value) -> String {
        let mut object = json!({
            "metadata": {"name": "a", "generation": 1},
            "spec": {"replicas": 2, "selector": {}, "template": {}, "serviceName": "a"},
            "status": {"observedGeneration": 1, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2},
        });
        for (part, changes) in [("spec", spec), ("status", status)] {
            for (key, value) in changes.as_object().unwrap() {
                object[part][key] = value.clone();
            }
        }
        observed(stateful_set(&serde_json::from_value(object).unwrap()))
    }

    #[test]
    fn a_stateful_set_is_ready_when_all_replicas_are_new_and_ready() {
        assert_eq!(stateful_set_with(json!({}), json!({})), "ready");
        assert_eq!(
            stateful_set_with(json!({}), json!({"readyReplicas": 1})),
            "2 ready replicas | 1 of 2 ready"
        );
        assert_eq!(
            stateful_set_with(json!({}), json!({"updatedReplicas": 1})),
            "2 updated replicas | 1 of 2 updated"
        );
        let partition = json!({"updateStrategy": {"rollingUpdate": {"partition": 1}}});
        assert_eq!(
            stateful_set_with(partition, json!({"updatedReplicas": 1})),
            "ready"
        );
        let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
        assert_eq!(
            stateful_set_with(on_delete, json!({"updatedReplicas": 0})),
            "ready"
        );
        assert_eq!(
            stateful_set_with(json!({"replicas": 0}), json!({})),
            "surplus replicas to end | 2 still there"
        );
    }

    #[test]
    fn a_daemon_set_counts_nodes_and_a_job_completions() {
        let object = json!({
            "metadata": {"generation": 1},
            "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
                "numberMisscheduled": 0, "numberReady": 1, "updatedNumberScheduled": 2, "numberAvailable": 1},
        });
        assert_eq!(
            observed(daemon_set(&serde_json::from_value(object).unwrap())),
            "available pods on 2 nodes | 1 of 2 available"
        );
        let job_with = |status: Value| {
            observed(job(
                &serde_json::from_value(json!({"status": status})).unwrap()
            ))
        };
        assert_eq!(
            job_with(json!({"active": 1})),
            "1 completions | 0 succeeded, 1 active, 0 failed"
        );
        assert_eq!(
            job_with(json!({"conditions": [{"type": "Complete", "status": "True"}]})),
            "ready"
        );
        assert_eq!(
            job_with(json!({"conditions": [{"type": "Failed", "status": "True",
                "reason": "BackoffLimitExceeded", "message": "too many"}]})),
            "failed: BackoffLimitExceeded: too many"
        );
    }
}
