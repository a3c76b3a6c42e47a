//! Writes node and pod statuses through the API as a kubelet would: faults of a node on demand.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A node that is Ready, has room, and carries the label `test: NAME`.
pub(crate) async fn add_node(client: &kube::Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"test": name}}});
    nodes
        .create(
            &PostParams::default(),
            &serde_json::from_value(node).unwrap(),
        )
        .await
        .unwrap();
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "100"});
    let status = json!({"status": {
        "capacity": room, "allocatable": room,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
    }});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    // Every new node gets a not-ready taint, which the node lifecycle controller would remove.
    let untainted = Patch::Merge(json!({"spec": {"taints": null}}));
    nodes
        .patch(name, &PatchParams::default(), &untainted)
        .await
        .unwrap();
}

/// Gives every scheduled pod of a namespace this status, until it is aborted.
pub(crate) fn run(client: &kube::Client, namespace: &str, status: Value) -> JoinHandle<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    tokio::spawn(async move {
        loop {
            let scheduled = pods
                .list(&ListParams::default())
                .await
                .into_iter()
                .flatten();
            for pod in scheduled.filter(|pod| {
                pod.spec
                    .as_ref()
                    .is_some_and(|spec| spec.node_name.is_some())
            }) {
                let name = pod.metadata.name.unwrap();
                let patch = Patch::Merge(json!({"status": status}));
                let _ = pods
                    .patch_status(&name, &PatchParams::default(), &patch)
                    .await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
}

fn status(phase: &str, is_ready: bool, container: Value) -> Value {
    let state = if is_ready { "True" } else { "False" };
    let mut container = container;
    container["name"] = json!("main");
    container["image"] = json!("test");
    if container["imageID"].is_null() {
        container["imageID"] = json!("");
    }
    container["ready"] = json!(is_ready);
    json!({
        "phase": phase,
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "ContainersReady", "status": state},
            {"type": "Ready", "status": state},
        ],
        "containerStatuses": [container],
    })
}

/// The pod runs and its probes succeed; `image` is what the container runtime says that it runs.
pub(crate) fn ready(image: &str) -> Value {
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
    let container = json!({"restartCount": 0, "state": running, "started": true, "imageID": image});
    status("Running", true, container)
}

/// The pod runs and its readiness probe has not succeeded.
pub(crate) fn running() -> Value {
    let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
    status(
        "Running",
        false,
        json!({"restartCount": 0, "state": running, "started": true}),
    )
}

/// The container cannot start, for this reason.
pub(crate) fn waiting(reason: &str, message: &str) -> Value {
    let waiting = json!({"waiting": {"reason": reason, "message": message}});
    status(
        "Pending",
        false,
        json!({"restartCount": 0, "state": waiting}),
    )
}

/// The container has ended four times.
pub(crate) fn crashing(message: &str) -> Value {
    let ended = json!({"terminated": {"exitCode": 78, "reason": format!("Error: {message}"),
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}});
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 1m20s"}});
    status(
        "Running",
        false,
        json!({"restartCount": 4, "state": waiting, "lastState": ended}),
    )
}
