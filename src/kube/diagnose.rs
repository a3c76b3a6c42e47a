//! What keeps a pod from becoming ready, in the pod's own words.
//!
//! Pure: reads a pod, the claims it mounts and the newest events about them; says nothing about how
//! long that may last, which is [`super::wait`]'s to decide.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Event, PersistentVolumeClaim, Pod};

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

/// The newest event about each object, by the object's UID.
#[derive(Default)]
pub(super) struct Events {
    newest: HashMap<String, HashMap<String, Note>>,
}

struct Note {
    at: String,
    message: String,
}

impl Events {
    pub(super) fn collect<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut newest: HashMap<String, HashMap<String, Note>> = HashMap::new();
        for event in events {
            let (Some(uid), Some(reason)) = (&event.involved_object.uid, &event.reason) else {
                continue;
            };
            let note = Note {
                at: when(event),
                message: event.message.clone().unwrap_or_default(),
            };
            let notes = newest.entry(uid.clone()).or_default();
            if notes.get(reason).is_none_or(|known| known.at <= note.at) {
                notes.insert(reason.clone(), note);
            }
        }
        Self { newest }
    }

    /// The newest message about the object among these reasons.
    fn about(&self, uid: &str, reasons: &[&str]) -> Option<&str> {
        let notes = self.newest.get(uid)?;
        reasons
            .iter()
            .filter_map(|reason| notes.get(*reason))
            .max_by(|one, other| one.at.cmp(&other.at))
            .map(|note| note.message.as_str())
    }
}

/// RFC 3339 in UTC sorts as text.
fn when(event: &Event) -> String {
    let precise = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let precise = precise.or(event.event_time.as_ref()).map(|time| time.0);
    let coarse = event.last_timestamp.as_ref().map(|time| time.0);
    let created = event
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0);
    coarse
        .max(precise)
        .or(created)
        .map(|time| time.to_string())
        .unwrap_or_default()
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
            container_trouble(container)
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

fn container_trouble(container: &ContainerStatus) -> Option<(Cause, String)> {
    let state = container.state.clone().unwrap_or_default();
    let waiting = state.waiting.unwrap_or_default();
    let reason = waiting.reason.unwrap_or_default();
    let message = waiting.message.unwrap_or_default();
    let say = |cause, message: &str| Some((cause, format!("{reason}: {message}")));
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" | "ImageInspectError" => {
            let text = message.to_lowercase();
            let missing = [
                "not found",
                "manifest unknown",
                "denied",
                "unauthorized",
                "forbidden",
                "does not exist",
            ];
            let cause = if missing.iter().any(|word| text.contains(word)) {
                Cause::ImageMissing
            } else {
                Cause::ImagePull
            };
            say(cause, &message)
        }
        "InvalidImageName" | "ErrImageNeverPull" => say(Cause::InvalidImage, &message),
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError" => say(Cause::Configuration, &message),
        "CrashLoopBackOff" => say(
            Cause::CrashLoop,
            &how_it_ended(container).unwrap_or(message),
        ),
        _ if container.ready => None,
        _ => Some((
            Cause::Crashed,
            format!("it ended: {}", how_it_ended(container)?),
        )),
    }
}

/// How a container ended that is not meant to: now, or before it was started again.
fn how_it_ended(container: &ContainerStatus) -> Option<String> {
    let now = container
        .state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let before = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let ended = now.or(before)?;
    // An init container that has done its work ends with 0.
    if now.is_some() && ended.exit_code == 0 {
        return None;
    }
    Some(format!(
        "exit code {} ({}), {} restarts",
        ended.exit_code,
        ended.reason.as_deref().unwrap_or("no reason"),
        container.restart_count
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod as a kubelet reported it, cut down to what is read here.
    fn recorded(status: Value) -> Pod {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "api-7d4b9c-x2x7v", "namespace": "demo", "uid": "pod-1"},
            "spec": {"containers": [{"name": "main", "image": "docker.io/orch/api@sha256:1"}]},
            "status": status,
        }))
        .unwrap()
    }

    fn waiting(reason: &str, message: &str) -> Pod {
        recorded(json!({
            "phase": "Pending",
            "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady",
                "message": "containers with unready status: [main]"},
                {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "main", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": reason, "message": message}}}],
        }))
    }

    fn event(uid: &str, reason: &str, at: &str, message: &str) -> Event {
        serde_json::from_value(json!({
            "metadata": {"name": "e"}, "involvedObject": {"uid": uid},
            "reason": reason, "message": message, "lastTimestamp": at, "type": "Warning",
        }))
        .unwrap()
    }

    fn diagnose(subject: &Pod) -> Option<(Cause, String)> {
        pod(subject, &[], &Events::default()).map(|symptom| (symptom.cause, symptom.message))
    }

    #[test]
    fn a_missing_image_differs_from_an_unreachable_registry() {
        let missing = "failed to pull and unpack image \"127.0.0.1:5000/x@sha256:1\": failed to resolve reference: not found";
        assert_eq!(
            diagnose(&waiting("ErrImagePull", missing)),
            Some((Cause::ImageMissing, format!("ErrImagePull: {missing}")))
        );
        let unreachable =
            "Back-off pulling image \"x\": dial tcp 10.0.0.1:5000: connect: connection refused";
        assert_eq!(
            diagnose(&waiting("ImagePullBackOff", unreachable))
                .unwrap()
                .0,
            Cause::ImagePull
        );
        assert_eq!(
            diagnose(&waiting("InvalidImageName", "couldn't parse image name"))
                .unwrap()
                .0,
            Cause::InvalidImage
        );
    }

    #[test]
    fn a_missing_secret_is_a_configuration_error_with_its_name() {
        assert_eq!(
            diagnose(&waiting(
                "CreateContainerConfigError",
                "secret \"inventory-database\" not found"
            )),
            Some((
                Cause::Configuration,
                "CreateContainerConfigError: secret \"inventory-database\" not found".into()
            ))
        );
    }

    #[test]
    fn a_crash_loop_tells_exit_code_and_restarts() {
        let crashing = recorded(json!({
            "phase": "Running",
            "containerStatuses": [{"name": "main", "image": "x", "imageID": "x", "ready": false, "restartCount": 4,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 1m20s restarting failed container"}},
                "lastState": {"terminated": {"exitCode": 78, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z"}}}],
        }));
        let symptom = pod(&crashing, &[], &Events::default()).unwrap();
        assert_eq!(
            symptom.message,
            "CrashLoopBackOff: exit code 78 (Error), 4 restarts"
        );
        assert_eq!(symptom.container.as_deref(), Some("main"));
    }

    #[test]
    fn between_two_crashes_the_last_one_is_still_told() {
        let with_state = |state: Value, last: Value| {
            recorded(json!({
                "phase": "Running",
                "containerStatuses": [{"name": "main", "image": "x", "imageID": "x", "ready": false, "restartCount": 2,
                    "state": state, "lastState": last}],
            }))
        };
        let ended = json!({"terminated": {"exitCode": 1, "reason": "Error"}});
        let told = Some((
            Cause::Crashed,
            "it ended: exit code 1 (Error), 2 restarts".to_owned(),
        ));
        assert_eq!(diagnose(&with_state(ended.clone(), json!({}))), told);
        assert_eq!(diagnose(&with_state(json!({"running": {}}), ended)), told);
        let done = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        assert_eq!(diagnose(&with_state(done, json!({}))), None);
    }

    #[test]
    fn an_unbound_claim_explains_the_scheduler() {
        let pending = recorded(json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."}],
        }));
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "data-db-0", "uid": "claim-1"},
            "spec": {"storageClassName": "orch-shared"}, "status": {"phase": "Pending"},
        }))
        .unwrap();
        let notes = [
            event(
                "claim-1",
                "FailedBinding",
                "2026-01-01T00:00:00Z",
                "old news",
            ),
            event(
                "claim-1",
                "ProvisioningFailed",
                "2026-01-01T00:00:09Z",
                "storageclass \"orch-shared\" not found",
            ),
        ];
        let symptom = pod(&pending, &[&claim], &Events::collect(&notes)).unwrap();
        assert_eq!(symptom.cause, Cause::Unschedulable);
        insta::assert_snapshot!(symptom.message, @r#"
        0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.
        claim data-db-0 (storage class "orch-shared") is Pending: storageclass "orch-shared" not found
        "#);
    }

    #[test]
    fn a_volume_that_does_not_mount_is_found_in_the_events() {
        let creating = waiting("ContainerCreating", "");
        assert_eq!(diagnose(&creating), None);
        let notes = [event(
            "pod-1",
            "FailedMount",
            "2026-01-01T00:00:00Z",
            "MountVolume.SetUp failed: no such directory",
        )];
        let symptom = pod(&creating, &[], &Events::collect(&notes)).unwrap();
        assert_eq!(symptom.cause, Cause::Mount);
        assert!(symptom.message.contains("no such directory"));
    }

    #[test]
    fn a_failing_probe_is_quoted_and_a_ready_or_ending_pod_is_fine() {
        let mut running = json!({
            "phase": "Running",
            "containerStatuses": [{"name": "main", "image": "x", "imageID": "x", "ready": false, "restartCount": 0,
                "state": {"running": {}}}],
        });
        let notes = [event(
            "pod-1",
            "Unhealthy",
            "2026-01-01T00:00:00Z",
            "Readiness probe failed: HTTP 503",
        )];
        let symptom = pod(&recorded(running.clone()), &[], &Events::collect(&notes)).unwrap();
        assert_eq!(
            (symptom.cause, symptom.message.as_str()),
            (Cause::NotReady, "Readiness probe failed: HTTP 503")
        );

        running["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(diagnose(&recorded(running)), None);

        let mut ending = waiting("CrashLoopBackOff", "");
        ending.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(diagnose(&ending), None);
    }

    #[test]
    fn an_evicted_pod_says_so() {
        let evicted = recorded(
            json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
        );
        assert_eq!(
            diagnose(&evicted),
            Some((
                Cause::PodFailed,
                "Evicted The node was low on resource: memory.".into()
            ))
        );
    }
}
