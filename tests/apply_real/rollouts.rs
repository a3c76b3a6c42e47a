//! Waiting for rollouts, and what is said of those that do not finish.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use orch::commands::apply::{ApplyError, pins, wait};
use orch::kube::status::{ImageVerdict, collect};
use orch::kube::{ApplyEvent, RolloutError, Workload, WorkloadKind};

use crate::fixture::{Fixture, IMAGE, deployment};
use crate::kubelet;

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_waited_for_until_its_pods_are_ready() {
    let fixture = Fixture::new("rollout").await;
    kubelet::add_node(&fixture.client, "rollout-node").await;
    let kubelet = kubelet::run(&fixture.client, &fixture.namespace, kubelet::ready(IMAGE));
    fixture.write(
        "app.yaml",
        &deployment("api", 2, "nodeSelector: {test: rollout-node}, "),
    );
    let outcome = fixture.run().await;
    outcome.unwrap();
    assert_eq!(
        wait(&fixture.settings, &fixture.recorder)
            .await
            .unwrap()
            .len(),
        1
    );
    kubelet.abort();
    let events = fixture.events();
    assert!(
        events
            .iter()
            .any(|event| matches!(event, ApplyEvent::Waiting { .. })),
        "{events:#?}"
    );
    assert!(
        matches!(events.last(), Some(ApplyEvent::Ready { .. })),
        "{events:#?}"
    );
    let deployments: Api<Deployment> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    let status = deployments.get("api").await.unwrap().status.unwrap();
    assert_eq!(status.available_replicas, Some(2));

    let workload = Workload::new(WorkloadKind::Deployment, &fixture.namespace, "api");
    let pins = pins(&fixture.settings.stacks[0]).unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!(
        (&pins[0].workload, pins[0].image.as_str()),
        (&workload, IMAGE)
    );
    let status = collect(
        &fixture.client,
        std::slice::from_ref(&fixture.namespace),
        &pins,
    )
    .await
    .unwrap();
    assert_eq!(
        (status.workloads[0].ready, status.workloads[0].desired),
        (2, 2)
    );
    assert_eq!(status.workloads[0].waiting, None);
    assert_eq!(status.images[0].verdict, ImageVerdict::Matches);
    assert!(
        status
            .nodes
            .iter()
            .any(|node| node.name == "rollout-node" && node.ready)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_no_node_takes_fails_with_the_schedulers_reason() {
    let fixture = Fixture::new("unschedulable").await;
    fixture.write(
        "app.yaml",
        &deployment("api", 1, "nodeSelector: {test: no-such-node}, "),
    );
    let (error, text) = fixture.failure().await;
    assert!(
        matches!(error, ApplyError::Rollout(RolloutError::Failed { .. })),
        "{text}"
    );
    assert_eq!(error.exit_code(), 8);
    assert!(
        text.contains("Deployment api") && text.contains("nodes are available"),
        "{text}"
    );
    assert!(
        fixture
            .events()
            .iter()
            .any(|event| matches!(event, ApplyEvent::Failed { .. })),
        "no event tells of the failure"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_finds_no_volume_is_explained() {
    let fixture = Fixture::new("claim").await;
    fixture.write(
        "database.yaml",
        &format!(
            "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: database}}\nspec:\n  serviceName: database\n  \
             selector: {{matchLabels: {{app: database}}}}\n  template:\n    metadata: {{labels: {{app: database}}}}\n    \
             spec: {{containers: [{{name: main, image: \"{IMAGE}\", volumeMounts: [{{name: data, mountPath: /data}}]}}]}}\n  \
             volumeClaimTemplates:\n  - metadata: {{name: data}}\n    spec: {{accessModes: [ReadWriteOnce], \
             storageClassName: no-such-class, resources: {{requests: {{storage: 1Gi}}}}}}\n"
        ),
    );
    let (error, text) = fixture.failure().await;
    assert!(
        matches!(error, ApplyError::Rollout(RolloutError::Failed { .. })),
        "{text}"
    );
    assert!(
        text.contains("StatefulSet database") && text.contains("PersistentVolumeClaim"),
        "{text}"
    );
    assert!(
        text.contains("claim data-database-0 (storage class \"no-such-class\")"),
        "{text}"
    );
    assert!(text.contains("\"no-such-class\" not found"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_may_not_be_created_fails_with_the_controllers_reason() {
    let fixture = Fixture::new("guarded").await;
    fixture.write(
        "namespace.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: guarded\n  \
         labels: {pod-security.kubernetes.io/enforce: restricted}\n",
    );
    fixture.write("app.yaml", &deployment("api", 1, ""));
    let (error, text) = fixture.failure().await;
    assert!(
        matches!(error, ApplyError::Rollout(RolloutError::Failed { .. })),
        "{text}"
    );
    assert!(
        text.contains("no pod can be created") && text.contains("violates PodSecurity"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_registry_lacks_fails_with_the_kubelets_reason() {
    let fixture = Fixture::new("image").await;
    kubelet::add_node(&fixture.client, "image-node").await;
    let message = format!("failed to pull and unpack image \"{IMAGE}\": not found");
    let kubelet = kubelet::run(
        &fixture.client,
        &fixture.namespace,
        kubelet::waiting("ErrImagePull", &message),
    );
    fixture.write(
        "app.yaml",
        &deployment("api", 1, "nodeSelector: {test: image-node}, "),
    );
    let (error, text) = fixture.failure().await;
    kubelet.abort();
    assert!(
        matches!(error, ApplyError::Rollout(RolloutError::Failed { .. })),
        "{text}"
    );
    assert!(
        text.contains("container main: ErrImagePull: failed to pull"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_loop_fails_and_a_password_in_its_message_is_masked() {
    let fixture = Fixture::new("crash").await;
    kubelet::add_node(&fixture.client, "crash-node").await;
    let kubelet = kubelet::run(
        &fixture.client,
        &fixture.namespace,
        kubelet::crashing("cannot log in with open-sesame-open"),
    );
    fixture.write(
        "secret.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: own}\nstringData: {password: open-sesame-open}\n",
    );
    fixture.write(
        "app.yaml",
        &deployment("api", 1, "nodeSelector: {test: crash-node}, "),
    );
    let (error, text) = fixture.failure().await;
    kubelet.abort();
    assert!(
        matches!(error, ApplyError::Rollout(RolloutError::Failed { .. })),
        "{text}"
    );
    assert!(text.contains("CrashLoopBackOff: exit code 78"), "{text}");
    let shown = format!("{text}{:?}", fixture.events());
    assert!(!shown.contains("open-sesame-open"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_takes_too_long_says_what_it_waited_for() {
    let mut fixture = Fixture::new("timeout").await;
    kubelet::add_node(&fixture.client, "timeout-node").await;
    let kubelet = kubelet::run(&fixture.client, &fixture.namespace, kubelet::running());
    fixture.write(
        "app.yaml",
        &deployment("api", 1, "nodeSelector: {test: timeout-node}, "),
    );
    fixture.settings.timeout = Duration::from_secs(12);
    let (error, text) = fixture.failure().await;
    kubelet.abort();
    assert!(
        matches!(error, ApplyError::Rollout(RolloutError::TimedOut { .. })),
        "{text}"
    );
    assert!(
        text.contains("waited for 1 available replicas; 0 of 1 available"),
        "{text}"
    );
    assert!(text.contains("readiness probe"), "{text}");
}
