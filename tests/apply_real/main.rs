//! `orch apply` against a real API server, scheduler and controller manager.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may stop at the first surprise, as tests do"
)]

mod api_server;
mod kubelet;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams};
use orch::commands::apply::{
    ApplyError, ApplyOutcome, ApplySettings, StackSettings, pins, run, wait,
};
use orch::images::pin::Kept;
use orch::kube::status::{ImageVerdict, collect};
use orch::kube::{
    ApplyEvent, ApplyResult, KubeError, Patience, PlannedAction, Reporter, RolloutError, Workload,
    WorkloadKind,
};
use serde_json::json;

const IMAGE: &str = "127.0.0.1:5000/orch/test@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Keeps the events.
#[derive(Default)]
struct Recorder(Mutex<Vec<ApplyEvent>>);

impl Reporter for Recorder {
    fn report(&self, event: ApplyEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// A stack in a folder and a namespace of its own.
struct Fixture {
    folder: tempfile::TempDir,
    namespace: String,
    settings: ApplySettings,
    recorder: Recorder,
    client: kube::Client,
}

impl Fixture {
    async fn new(namespace: &str) -> Self {
        let kubeconfig = api_server::kubeconfig();
        let folder = tempfile::tempdir().unwrap();
        let brief = Duration::from_secs(2);
        let settings = ApplySettings {
            stacks: vec![StackSettings {
                name: "test".into(),
                manifests: folder.path().to_owned(),
                namespace: namespace.into(),
            }],
            kubeconfig: kubeconfig.to_owned(),
            storage_class: None,
            kept: Kept::default(),
            dry_run: false,
            force_conflicts: false,
            timeout: Duration::from_secs(90),
            settle: Duration::from_secs(60),
            patience: Patience {
                image_missing: brief,
                image_pull: brief,
                crash_loop: brief,
                configuration: brief,
                mount: brief,
                unschedulable: brief,
                creation: brief,
            },
        };
        let fixture = Self {
            folder,
            namespace: namespace.into(),
            settings,
            recorder: Recorder::default(),
            client: orch::kube::connect(kubeconfig).await.unwrap(),
        };
        fixture.write(
            "namespace.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n"),
        );
        fixture
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn run(&self) -> Result<ApplyOutcome, ApplyError> {
        run(&self.settings, &self.recorder).await
    }

    /// `KIND NAME RESULT` of every object, in order.
    async fn apply(&self) -> Vec<String> {
        match self.run().await.unwrap() {
            ApplyOutcome::Applied { stacks, .. } => stacks[0]
                .objects
                .iter()
                .map(|object| format!("{} {} {}", object.kind, object.name, object.result))
                .collect(),
            ApplyOutcome::Planned { .. } => panic!("planned instead of applied"),
        }
    }

    /// The dry run's objects and its text for people.
    async fn plan(&mut self) -> (orch::kube::Plan, String) {
        self.settings.dry_run = true;
        let outcome = self.run().await.unwrap();
        self.settings.dry_run = false;
        let text = outcome.to_string();
        match outcome {
            ApplyOutcome::Planned { mut stacks } => (stacks.remove(0).plan, text),
            ApplyOutcome::Applied { .. } => panic!("applied instead of planned"),
        }
    }

    async fn failure(&self) -> (ApplyError, String) {
        let error = self.run().await.unwrap_err();
        let text = error.to_string();
        (error, text)
    }

    fn events(&self) -> Vec<ApplyEvent> {
        self.recorder.0.lock().unwrap().clone()
    }
}

fn config_map(value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  color: {value}\n"
    )
}

fn deployment(name: &str, replicas: u32, pod: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec: {{{pod}containers: [{{name: main, image: \"{IMAGE}\"}}]}}\n"
    )
}

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
    let namespaces: Api<Namespace> = Api::all(fixture.client.clone());
    assert!(
        namespaces
            .get_opt(&fixture.namespace)
            .await
            .unwrap()
            .is_none()
    );

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
    let namespaces: Api<Namespace> = Api::all(fixture.client.clone());
    assert!(
        namespaces
            .get_opt(&fixture.namespace)
            .await
            .unwrap()
            .is_none()
    );
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
    fixture.settings.timeout = Duration::from_secs(6);
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

/// The shipped manifests with a digest behind every image that has none.
fn copy_movies(target: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("Manifests/movies");
    let digest = IMAGE.split_once('@').unwrap().1;
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name == "secrets.yaml" {
            continue;
        }
        let pin = |line: &str| match line
            .trim_start()
            .trim_start_matches("- ")
            .strip_prefix("image: ")
        {
            Some(image) if !image.contains('@') => format!("{line}@{digest}\n"),
            _ => format!("{line}\n"),
        };
        let text: String = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(pin)
            .collect();
        fs::write(target.join(name), text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_stack_passes_strict_validation_and_is_unchanged_the_second_time() {
    let fixture = Fixture::new("microservices").await;
    fs::remove_file(fixture.path().join("namespace.yaml")).unwrap();
    copy_movies(fixture.path());
    kubelet::add_node(&fixture.client, "movies-node").await;
    let kubelet = kubelet::run(&fixture.client, &fixture.namespace, kubelet::ready(IMAGE));
    let first = fixture.apply().await;
    assert!(
        first.len() >= 20 && first.iter().all(|line| line.ends_with(" created")),
        "{first:#?}"
    );
    let ApplyOutcome::Applied { stacks, ready } = fixture.run().await.unwrap() else {
        panic!("planned instead of applied");
    };
    kubelet.abort();
    assert_eq!(ready.len(), 6);
    let changed: Vec<_> = stacks[0]
        .objects
        .iter()
        .filter(|object| object.result != ApplyResult::Unchanged)
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");
}
