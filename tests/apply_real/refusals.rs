//! What never reaches the cluster, or is not taken by it.

use std::fs;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use orch::commands::apply::ApplyError;
use orch::images::pin::Kept;
use orch::kube::{ApplyEvent, KubeError};

use crate::fixture::{Fixture, IMAGE, config_map, deployment};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_refuses_is_named_with_its_place() {
    let fixture = Fixture::new("refused").await;
    fixture.write(
        "config.yaml",
        &config_map("red").replace("\ndata:", "\ndta:"),
    );
    let (error, text) = fixture.failure().await;
    assert!(
        matches!(error, ApplyError::Cluster(KubeError::Rejected { .. })),
        "{text}"
    );
    assert!(
        text.contains("config.yaml:1:1") && text.contains("dta"),
        "{text}"
    );

    fixture.write("config.yaml", &config_map("red").replace("v1", "v1beta9"));
    let (error, text) = fixture.failure().await;
    assert!(
        matches!(error, ApplyError::Cluster(KubeError::UnknownKind { .. })),
        "{text}"
    );

    fixture.write(
        "config.yaml",
        &config_map("red").replace("name: settings", "name: settings\n  namespace: nowhere"),
    );
    let (_, text) = fixture.failure().await;
    assert!(
        text.contains("nowhere") && text.contains("add the Namespace"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_image_never_reaches_the_cluster() {
    let fixture = Fixture::new("unpinned").await;
    fixture.write(
        "app.yaml",
        &deployment("api", 1, "").replace(IMAGE, "docker.io/orch/test:latest"),
    );
    let (error, text) = fixture.failure().await;
    assert_eq!(error.exit_code(), 3);
    assert!(
        text.contains("app.yaml:10:45") && text.contains("orch/test:latest"),
        "{text}"
    );
    assert!(!fixture.has_namespace().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_kept_is_applied_and_another_image_beside_it_is_not() {
    let mut fixture = Fixture::new("kept").await;
    fixture.settings.kept = Kept::new(&["redis:7".to_owned()]).unwrap();
    let cache = |image: &str| deployment("cache", 0, "").replace(IMAGE, image);
    fixture.write("app.yaml", &deployment("api", 0, ""));
    fixture.write("cache.yaml", &cache("docker.io/library/redis:8"));
    let (error, text) = fixture.failure().await;
    assert_eq!(error.exit_code(), 3);
    assert!(
        text.contains("cache.yaml:10:45") && !text.contains("app.yaml"),
        "{text}"
    );
    fixture.write("cache.yaml", &cache("docker.io/library/redis:7"));
    let applied = fixture.apply().await;
    assert!(
        applied.contains(&"Deployment cache created".to_owned()),
        "{applied:?}"
    );
    let deployments: Api<Deployment> = Api::namespaced(fixture.client.clone(), "kept");
    let spec = deployments.get("cache").await.unwrap().spec.unwrap();
    let image = spec.template.spec.unwrap().containers.remove(0).image;
    assert_eq!(image.as_deref(), Some("docker.io/library/redis:7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_down_is_asked_again_for_a_while() {
    let mut fixture = Fixture::new("down").await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let text = fs::read_to_string(&fixture.settings.kubeconfig).unwrap();
    let server = text.lines().find(|line| line.contains("server:")).unwrap();
    let kubeconfig = fixture.path().join("kubeconfig");
    fs::write(
        &kubeconfig,
        text.replace(server, &format!("    server: https://{closed}")),
    )
    .unwrap();
    fixture.settings.kubeconfig = kubeconfig;
    fixture.settings.settle = Duration::from_secs(1);
    let (error, _) = fixture.failure().await;
    assert!(matches!(
        error,
        ApplyError::Cluster(KubeError::Unreachable { .. })
    ));
    assert_eq!(error.exit_code(), 8);
    assert!(
        fixture
            .events()
            .iter()
            .any(|event| matches!(event, ApplyEvent::Retrying { .. })),
        "nobody was told that it retries"
    );
}
