//! What keeps a pod from becoming ready, in the pod's own words.
//!
//! Pure: reads a pod, the claims it mounts and the newest events about them; says nothing about how
//! long that may last, which is [`super::wait`]'s to decide.

mod container;
mod events;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

pub(super) use self::events::Events;

/// Kinds of trouble, from those that time does not heal to those that it usually does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Cause {
    /// The image's name cannot be right.
    InvalidImage,
    /// The registry has no such image, or does not let us have it.
    ImageMissing,
    /// The container exits again and again.
    CrashLoop,
    /// The kubelet cannot make the container: a Secret or ConfigMap is missing, a user is wrong.
    Configuration,
    /// A volume cannot be mounted.
    Mount,
    /// The image cannot be pulled now.
    ImagePull,
    /// The pod was refused or ended by the node.
    PodFailed,
    /// The controller cannot create pods.
    Creation,
    /// No node takes the pod.
    Unschedulable,
    /// The container has ended at least once; it runs again or is about to.
    Crashed,
    /// It runs and its probes fail, or they have not succeeded yet.
    NotReady,
}

/// One pod's trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Symptom {
    pub(super) cause: Cause,
    /// Identifies the pod, or the workload for [`Cause::Creation`], over time.
    pub(super) uid: String,
    pub(super) pod: String,
    pub(super) container: Option<String>,
    pub(super) message: String,
}

/// The controller's own complaint that it cannot create the workload's pods. `uids`: the workload and
/// what it creates pods through.
pub(super) fn creation(uids: &[String], name: &str, events: &Events) -> Option<Symptom> {
    uids.iter().find_map(|uid| {
        let message = events.about(uid, &["FailedCreate"])?;
        Some(Symptom {
            cause: Cause::Creation,
            uid: uid.clone(),
            pod: name.to_owned(),
            container: None,
            message: message.to_owned(),
        })
    })
}

/// The first thing that is wrong with a pod; `None` when it is ready, ending or simply not there yet.
pub(super) fn pod(
    pod: &Pod,
    claims: &[&PersistentVolumeClaim],
    events: &Events,
) -> Option<Symptom> {
    let status = pod.status.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some()
        || is_ready(pod)
        || status.phase.as_deref() == Some("Succeeded")
    {
        return None;
    }
    let symptom = |cause, container: Option<&str>, message: String| Symptom {
        cause,
        uid: uid.clone(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        container: container.map(str::to_owned),
        message,
    };
    if let Some(message) = unschedulable(pod) {
        return Some(symptom(
            Cause::Unschedulable,
            None,
            with_claims(message, claims, events),
        ));
    }
    let containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let mut found: Vec<_> = containers
        .filter_map(|container| {
            container::trouble(container)
                .map(|(cause, message)| symptom(cause, Some(&container.name), message))
        })
        .collect();
    found.sort_by_key(|symptom| symptom.cause);
    if let Some(first) = found.into_iter().next() {
        return Some(first);
    }
    if status.phase.as_deref() == Some("Failed") {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let message = format!("{} {}", text(&status.reason), text(&status.message));
        return Some(symptom(Cause::PodFailed, None, message.trim().to_owned()));
    }
    let started = status.container_statuses.iter().flatten().any(|container| {
        container
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    });
    if started {
        let message = events
            .about(&uid, &["Unhealthy"])
            .unwrap_or("it runs, its readiness probe has not succeeded");
        return Some(symptom(Cause::NotReady, None, message.to_owned()));
    }
    const MOUNTS: [&str; 4] = [
        "FailedMount",
        "FailedAttachVolume",
        "FailedMapVolume",
        "FailedCreatePodSandBox",
    ];
    events
        .about(&uid, &MOUNTS)
        .map(|message| symptom(Cause::Mount, None, message.to_owned()))
}

pub(super) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|(status, _, _)| status == "True")
}

fn condition<'a>(pod: &'a Pod, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let condition = pod
        .status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == name)?;
    Some((
        &condition.status,
        condition.reason.as_deref().unwrap_or_default(),
        condition.message.as_deref().unwrap_or_default(),
    ))
}

fn unschedulable(pod: &Pod) -> Option<String> {
    let (status, reason, message) = condition(pod, "PodScheduled")?;
    (status == "False" && reason == "Unschedulable").then(|| message.to_owned())
}

/// The scheduler only says that a claim is unbound; the claim's own events say why.
fn with_claims(mut message: String, claims: &[&PersistentVolumeClaim], events: &Events) -> String {
    for claim in claims {
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase == Some("Bound") {
            continue;
        }
        let class = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.as_deref());
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        let why = events.about(
            uid,
            &[
                "FailedBinding",
                "ProvisioningFailed",
                "VolumeMismatch",
                "WaitForFirstConsumer",
            ],
        );
        message.push_str(&format!(
            "\nclaim {} (storage class {:?}) is {}{}",
            claim.metadata.name.as_deref().unwrap_or_default(),
            class.unwrap_or("default"),
            phase.unwrap_or("Pending"),
            why.map_or(String::new(), |why| format!(": {why}"))
        ));
    }
    message
}

#[cfg(test)]
mod tests;
