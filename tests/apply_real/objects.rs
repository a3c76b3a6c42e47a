//! What apply and its dry run do to objects.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams};
use orch::commands::apply::ApplyError;
use orch::kube::{ApplyEvent, ApplyResult, KubeError, PlannedAction};
use serde_json::json;

use crate::fixture::{Fixture, config_map, deployment};

const EVERY_STAGE: &str = "\
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: api}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: api}
  maxReplicas: 3
---
apiVersion: example.orch.dev/v1
kind: Gadget
metadata: {name: first}
spec: {size: 1}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {selector: {app: api}, ports: [{port: 80}]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.orch.dev}
spec:
  group: example.orch.dev
  scope: Namespaced
  names: {plural: gadgets, singular: gadget, kind: Gadget}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}
";

#[tokio::test(flavor = "multi_thread")]
async fn a_second_apply_changes_nothing_and_says_so() {
    let fixture = Fixture::new("second-apply").await;
    fixture.write("app.yaml", EVERY_STAGE);
    fixture.write("config.yaml", &config_map("red"));
    fixture.write("deployment.yaml", &deployment("api", 0, ""));
    fixture.write(
        "secrets.example.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: database}\nstringData: {password: <generate:32>}\n",
    );
    insta::assert_debug_snapshot!(fixture.apply().await, @r#"
    [
        "CustomResourceDefinition gadgets.example.orch.dev created",
        "Namespace second-apply created",
        "ConfigMap settings created",
        "Secret database created",
        "Service api created",
        "Gadget first created",
        "Deployment api created",
        "HorizontalPodAutoscaler api created",
    ]
    "#);
    let secrets: Api<Secret> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    let password = secrets.get("database").await.unwrap().data.unwrap()["password"].clone();
    assert_eq!(password.0.len(), 32);

    let again = fixture.apply().await;
    assert!(
        again.iter().all(|line| line.ends_with(" unchanged")),
        "{again:#?}"
    );

    fixture.write("config.yaml", &config_map("blue"));
    let changed: Vec<_> = fixture
        .apply()
        .await
        .into_iter()
        .filter(|line| !line.ends_with(" unchanged"))
        .collect();
    assert_eq!(changed, ["ConfigMap settings configured"]);
    let maps: Api<ConfigMap> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    assert_eq!(
        maps.get("settings").await.unwrap().data.unwrap()["color"],
        "blue"
    );
    assert_eq!(
        secrets.get("database").await.unwrap().data.unwrap()["password"],
        password
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_stores_nothing_and_tells_what_would_change() {
    let mut fixture = Fixture::new("dry-run").await;
    fixture.write("config.yaml", &config_map("red"));
    fixture.write(
        "secret.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: own}\nstringData: {password: first-secret-value}\n",
    );
    fixture.write(
        "secrets.example.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: database}\nstringData: {password: <generate:32>}\n",
    );
    let (plan, text) = fixture.plan().await;
    assert!(
        plan.objects
            .iter()
            .all(|object| object.action == PlannedAction::Create),
        "{text}"
    );
    assert!(
        text.contains("generate    ") && text.contains("3 to create"),
        "{text}"
    );
    assert!(
        !plan
            .objects
            .iter()
            .find(|object| object.kind == "ConfigMap")
            .unwrap()
            .validated
    );
    assert!(!fixture.path().join("secrets.yaml").exists());
    assert!(!fixture.has_namespace().await);

    fixture.apply().await;
    let (plan, text) = fixture.plan().await;
    assert!(plan.is_empty(), "{text}");

    fixture.write("config.yaml", &config_map("blue"));
    fixture.write(
        "secret.yaml",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: own}\nstringData: {password: other-secret-value}\n",
    );
    let (plan, text) = fixture.plan().await;
    assert!(text.contains("/data/color: \"red\" -> \"blue\""), "{text}");
    assert!(text.contains("/data/password\n"), "{text}");
    let json = serde_json::to_string(&plan).unwrap();
    for value in [
        "first-secret-value",
        "other-secret-value",
        "Zmlyc3",
        "b3RoZXI",
    ] {
        assert!(!text.contains(value) && !json.contains(value), "{json}");
    }
    let maps: Api<ConfigMap> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    assert_eq!(
        maps.get("settings").await.unwrap().data.unwrap()["color"],
        "red"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_another_owner_are_named_and_taken_only_by_force() {
    let mut fixture = Fixture::new("conflict").await;
    fixture.write("config.yaml", &config_map("red"));
    fixture.apply().await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.client.clone(), &fixture.namespace);
    let theirs = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"color": "green"}});
    maps.patch(
        "settings",
        &PatchParams::apply("somebody-else").force(),
        &Patch::Apply(&theirs),
    )
    .await
    .unwrap();

    let (error, text) = fixture.failure().await;
    assert!(matches!(
        error,
        ApplyError::Cluster(KubeError::Conflict { .. })
    ));
    assert_eq!(error.exit_code(), 8);
    assert!(
        text.contains("config.yaml:1:1") && text.contains("\"somebody-else\" owns .data.color"),
        "{text}"
    );
    let (plan, text) = fixture.plan().await;
    let planned = plan
        .objects
        .iter()
        .find(|object| object.kind == "ConfigMap")
        .unwrap();
    assert_eq!(planned.action, PlannedAction::Conflict);
    assert!(text.contains("1 in conflict"), "{text}");
    assert_eq!(
        maps.get("settings").await.unwrap().data.unwrap()["color"],
        "green"
    );

    fixture.settings.force_conflicts = true;
    assert!(
        fixture
            .apply()
            .await
            .contains(&"ConfigMap settings configured".to_owned())
    );
    assert_eq!(
        maps.get("settings").await.unwrap().data.unwrap()["color"],
        "red"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_each_objects_result() {
    let fixture = Fixture::new("events").await;
    fixture.write("config.yaml", &config_map("red"));
    fixture.apply().await;
    let expected = ApplyEvent::Applying {
        kind: "ConfigMap".into(),
        namespace: Some("events".into()),
        name: "settings".into(),
        result: ApplyResult::Created,
    };
    assert!(
        fixture.events().contains(&expected),
        "{:#?}",
        fixture.events()
    );
}
