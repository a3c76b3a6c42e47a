//! What runs on the cluster now, as data: nodes, workloads, autoscalers, endpoints, images.
//!
//! Boundary: reads, never writes. Serialised it is `orch status --output json`; [`table`] is the text.

mod observe;
mod table;

use futures::future::try_join_all;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use serde::Serialize;

use super::{KubeError, Workload};

pub use table::table;

/// Label of nodes that run the stand-in and not K3s.
pub const STAND_IN_LABEL: &str = "orch.dev/k3s-standin";

/// The cluster at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    pub nodes: Vec<NodeStatus>,
    pub workloads: Vec<WorkloadStatus>,
    pub autoscalers: Vec<AutoscalerStatus>,
    pub endpoints: Vec<EndpointStatus>,
    pub images: Vec<ImageStatus>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    pub name: String,
    /// From the `node-role.kubernetes.io/` labels.
    pub roles: Vec<String>,
    pub ready: bool,
    /// False while the node is cordoned.
    pub schedulable: bool,
    /// The kubelet's version, which is K3s's.
    pub version: String,
    /// Its address inside the cluster.
    pub address: Option<String>,
    /// Runs the stand-in for K3s, see [`STAND_IN_LABEL`].
    pub stand_in: bool,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkloadStatus {
    #[serde(flatten)]
    pub workload: Workload,
    pub ready: i32,
    pub desired: i32,
    /// What its rollout still waits for; `None` when it is complete.
    pub waiting: Option<String>,
}

/// One HorizontalPodAutoscaler that scales on CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AutoscalerStatus {
    pub namespace: String,
    pub name: String,
    /// KIND NAME of what is scaled.
    pub scales: String,
    /// Per cent of the requested CPU, averaged over the pods; `None` until metrics arrive.
    pub cpu: Option<i32>,
    /// Per cent that it aims at.
    pub target: Option<i32>,
    pub replicas: i32,
    pub minimum: i32,
    pub maximum: i32,
}

/// One Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointStatus {
    pub namespace: String,
    pub service: String,
    /// ClusterIP, NodePort, LoadBalancer or ExternalName.
    pub kind: String,
    /// `None` for headless Services.
    pub address: Option<String>,
    pub ports: Vec<PortStatus>,
    /// Pod addresses that take traffic.
    pub ready: usize,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortStatus {
    pub port: i32,
    /// The port on every node.
    pub node: Option<i32>,
}

/// A container's image in the manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub workload: Workload,
    pub container: String,
    /// With its digest, if it has one.
    pub image: String,
}

/// Whether what runs is what was pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageVerdict {
    /// Every running container has the pinned digest.
    Matches,
    /// At least one has another.
    Differs,
    /// No such container runs.
    NotRunning,
    /// The runtime reports no registry digest for the image.
    Unknown,
    /// The manifest names no digest that what runs could be compared with.
    Unpinned,
}

/// One container's image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageStatus {
    #[serde(flatten)]
    pub workload: Workload,
    pub container: String,
    /// `sha256:...` of the manifests.
    pub pinned: Option<String>,
    /// The distinct `sha256:...` that pods run.
    pub running: Vec<String>,
    pub verdict: ImageVerdict,
}

/// Reads the nodes, everything of `namespaces`, and what runs of `pins`. All requests go out at once.
pub async fn collect(
    client: &kube::Client,
    namespaces: &[String],
    pins: &[Pin],
) -> Result<ClusterStatus, KubeError> {
    let nodes = async {
        let api: Api<Node> = Api::all(client.clone());
        let list = api
            .list(&ListParams::default())
            .await
            .map_err(reading("nodes"))?;
        Ok(list.items.iter().map(observe::node).collect::<Vec<_>>())
    };
    let rest = try_join_all(
        namespaces
            .iter()
            .map(|namespace| one_namespace(client, namespace, pins)),
    );
    let (nodes, rest) = futures::try_join!(nodes, rest)?;
    let mut status = ClusterStatus {
        nodes,
        ..ClusterStatus::default()
    };
    for part in rest {
        status.workloads.extend(part.workloads);
        status.autoscalers.extend(part.autoscalers);
        status.endpoints.extend(part.endpoints);
        status.images.extend(part.images);
    }
    Ok(status)
}

async fn one_namespace(
    client: &kube::Client,
    namespace: &str,
    pins: &[Pin],
) -> Result<ClusterStatus, KubeError> {
    let (deployments, stateful_sets, daemon_sets, autoscalers, services, slices, pods) = futures::try_join!(
        list::<Deployment>(client, namespace, "deployments"),
        list::<StatefulSet>(client, namespace, "statefulsets"),
        list::<DaemonSet>(client, namespace, "daemonsets"),
        list::<HorizontalPodAutoscaler>(client, namespace, "horizontalpodautoscalers"),
        list::<Service>(client, namespace, "services"),
        list::<EndpointSlice>(client, namespace, "endpointslices"),
        list::<Pod>(client, namespace, "pods"),
    )?;
    let mut workloads = Vec::new();
    workloads.extend(deployments.iter().map(observe::deployment));
    workloads.extend(stateful_sets.iter().map(observe::stateful_set));
    workloads.extend(daemon_sets.iter().map(observe::daemon_set));
    let pins = pins
        .iter()
        .filter(|pin| pin.workload.namespace == namespace);
    Ok(ClusterStatus {
        nodes: Vec::new(),
        workloads,
        autoscalers: autoscalers.iter().map(observe::autoscaler).collect(),
        endpoints: services
            .iter()
            .map(|service| observe::endpoint(service, &slices))
            .collect(),
        images: pins.map(|pin| observe::image(pin, &pods)).collect(),
    })
}

async fn list<K>(client: &kube::Client, namespace: &str, plural: &str) -> Result<Vec<K>, KubeError>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default()).await;
    Ok(list.map_err(reading(plural))?.items)
}

fn reading(what: &str) -> impl FnOnce(kube::Error) -> KubeError {
    let operation = format!("reading the cluster's {what}");
    move |source| KubeError::Request {
        operation,
        source: source.into(),
    }
}
