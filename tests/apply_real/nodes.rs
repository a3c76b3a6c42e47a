//! Labels, taints, drains and removals of nodes against the real API server, its admission and its eviction API.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use orch::kube::nodes::{
    DrainError, DrainOptions, OWNED_LABELS, WantedNode, delete, drain, plan, reconcile,
};
use orch::progress::Silent;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{api_server, kubelet};

async fn client() -> kube::Client {
    orch::kube::connect_impatient(api_server::kubeconfig())
        .await
        .unwrap()
}

fn wanted(name: &str, labels: &[(&str, &str)], taints: &[&str]) -> WantedNode {
    let labels = labels.iter();
    WantedNode {
        name: name.to_owned(),
        labels: labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        taints: taints.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

async fn create<T>(api: &Api<T>, object: Value) -> T
where
    T: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_and_taints_follow_what_is_wanted_for_life() {
    let client = client().await;
    kubelet::add_node(&client, "labelled").await;
    kubelet::add_node(&client, "nobodys").await;
    let nodes: Api<Node> = Api::all(client.clone());
    let first = [
        wanted(
            "labelled",
            &[("disk", "ssd"), ("zone", "a")],
            &["dedicated=db:NoSchedule"],
        ),
        wanted("not-there", &[], &[]),
    ];
    let planned = plan(&client, &first).await.unwrap();
    assert_eq!(planned.changes["labelled"].len(), 3);
    assert_eq!(planned.absent, ["not-there"]);
    assert!(planned.orphans.contains(&"nobodys".to_owned()));
    let before = nodes.get("labelled").await.unwrap();
    assert!(
        !before.metadata.labels.unwrap().contains_key("disk"),
        "a plan changes nothing"
    );

    let mut changed = BTreeMap::new();
    let reconciled = reconcile(&client, &first, &mut changed).await.unwrap();
    assert_eq!((&reconciled, &changed), (&planned, &planned.changes));
    let again = plan(&client, &first).await.unwrap();
    assert_eq!(again.changes, BTreeMap::new());
    let node = nodes.get("labelled").await.unwrap();
    assert_eq!(
        node.metadata.annotations.as_ref().unwrap()[OWNED_LABELS],
        "disk,zone"
    );

    // Others' labels and taints come and stay.
    let others = json!({"metadata": {"labels": {"theirs": "1"}}, "spec": {"taints": [
        {"key": "dedicated", "value": "db", "effect": "NoSchedule"},
        {"key": "maintenance", "effect": "NoExecute"}]}});
    let parameters = PatchParams::default();
    nodes
        .patch("labelled", &parameters, &Patch::Merge(&others))
        .await
        .unwrap();
    // What was changed before another node was refused is known all the same.
    let second = [
        wanted("labelled", &[("disk", "hdd")], &[]),
        wanted("nobodys", &[("x", "not a value")], &[]),
    ];
    let refused = reconcile(&client, &second, &mut changed).await.unwrap_err();
    assert!(!refused.may_pass(), "{refused:?}");
    let all: Vec<_> = changed["labelled"]
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        all.contains(&"label disk=ssd is missing".to_owned()),
        "{all:?}"
    );
    assert!(
        all.contains(&"label disk=ssd becomes disk=hdd".to_owned()),
        "{all:?}"
    );
    assert!(!changed.contains_key("nobodys"));
    let node = nodes.get("labelled").await.unwrap();
    let labels = node.metadata.labels.unwrap();
    assert_eq!(
        [&labels["disk"], &labels["theirs"], &labels["test"]],
        ["hdd", "1", "labelled"]
    );
    assert!(!labels.contains_key("zone"));
    let taints = node.spec.unwrap().taints.unwrap();
    let keys: Vec<_> = taints.iter().map(|taint| taint.key.as_str()).collect();
    assert_eq!(keys, ["maintenance"]);
}

/// Waits until the disruption controller has seen this many healthy pods.
async fn budget_counts(budgets: &Api<PodDisruptionBudget>, name: &str, healthy: i32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = budgets.get(name).await.unwrap().status;
        if status
            .as_ref()
            .is_some_and(|status| status.current_healthy == healthy)
        {
            return;
        }
        assert!(Instant::now() < deadline, "last seen: {status:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Ends pods that are being deleted, as a kubelet does.
fn reaper(client: &kube::Client, namespace: &str) -> JoinHandle<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    tokio::spawn(async move {
        loop {
            let list = pods.list(&ListParams::default()).await;
            for pod in list.into_iter().flatten() {
                if pod.metadata.deletion_timestamp.is_some() {
                    let now = DeleteParams::default().grace_period(0);
                    let _ = pods.delete(&pod.metadata.name.unwrap(), &now).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

fn pod(name: &str, node: &str, owner: Option<&str>) -> Value {
    let owners: Vec<Value> = owner
        .map(|kind| {
            json!({"apiVersion": "apps/v1", "kind": kind, "name": "owner", "uid": "1", "controller": true})
        })
        .into_iter()
        .collect();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "x"}, "ownerReferences": owners},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1,
            // Or the controllers of the API server's own would take them away as nobody's.
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": "test"}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_respects_budgets_and_what_belongs_to_the_node() {
    let client = client().await;
    let namespace = "drain";
    kubelet::add_node(&client, "drained").await;
    create(
        &Api::<Namespace>::all(client.clone()),
        json!({"metadata": {"name": namespace}}),
    )
    .await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    create(&pods, pod("alone", "drained", None)).await;
    let options = DrainOptions {
        timeout: Duration::from_secs(2),
        force: false,
    };
    let nodes: Api<Node> = Api::all(client.clone());
    let error = drain(&client, "drained", &options, &Silent)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, DrainError::Unmanaged { pods } if pods == &["drain/alone"]),
        "{error}"
    );
    let node = nodes.get("drained").await.unwrap();
    assert_ne!(
        node.spec.unwrap().unschedulable,
        Some(true),
        "nothing was begun"
    );
    let now = DeleteParams::default().grace_period(0);
    pods.delete("alone", &now).await.unwrap();

    // Nobody has these controllers' objects, so the garbage collector must be kept from asking for them.
    let mut kept = pod("kept", "drained", None);
    kept["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    create(&pods, kept).await;
    create(&pods, pod("moved", "drained", None)).await;
    let running = kubelet::run(&client, namespace, kubelet::ready("test"));
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), namespace);
    create(
        &budgets,
        json!({"metadata": {"name": "all"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "x"}}}}),
    )
    .await;
    // A pod that is still Pending is evicted whatever its budget says.
    budget_counts(&budgets, "all", 2).await;
    let options = DrainOptions {
        force: true,
        ..options
    };
    let error = drain(&client, "drained", &options, &Silent)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("drain/moved") && text.contains("kubectl uncordon drained"),
        "{text}"
    );
    assert!(
        pods.get("moved")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_none(),
        "{text}"
    );
    budgets
        .delete("all", &DeleteParams::default())
        .await
        .unwrap();
    let reaper = reaper(&client, namespace);
    let options = DrainOptions {
        timeout: Duration::from_secs(60),
        ..options
    };
    drain(&client, "drained", &options, &Silent).await.unwrap();
    running.abort();
    reaper.abort();
    assert!(pods.get_opt("moved").await.unwrap().is_none());
    assert!(
        pods.get_opt("kept").await.unwrap().is_some(),
        "static pods belong to the node"
    );
    let node = nodes.get("drained").await.unwrap();
    assert_eq!(node.spec.unwrap().unschedulable, Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_node_leaves_no_password_behind() {
    let client = client().await;
    kubelet::add_node(&client, "deleted").await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    create(
        &secrets,
        json!({"metadata": {"name": "deleted.node-password.k3s"}}),
    )
    .await;
    delete(&client, "deleted").await.unwrap();
    assert!(
        Api::<Node>::all(client.clone())
            .get_opt("deleted")
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        secrets
            .get_opt("deleted.node-password.k3s")
            .await
            .unwrap()
            .is_none()
    );
    delete(&client, "deleted").await.unwrap();
}
