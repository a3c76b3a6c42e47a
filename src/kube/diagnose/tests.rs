//! Pods as kubelets reported them.

use k8s_openapi::api::core::v1::Event;
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
