//! Emptying a node: cordon it, ask for the eviction of its pods, wait until they are gone.
//!
//! Evictions respect PodDisruptionBudgets; a budget that allows none is waited for, within the limit. Pods of DaemonSets and
//! static pods stay: they belong to the node. The client should be one of [`connect_impatient`](crate::kube::connect_impatient):
//! another one would wait for a budget by itself, and longer than it was told to.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{EvictParams, ListParams};
use tokio::time::Instant;

use super::{KubeError, failed, set_schedulable};
use crate::progress::Progress;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How a node is emptied.
#[derive(Debug, Clone, Copy)]
pub struct DrainOptions {
    /// For all pods together.
    pub timeout: Duration,
    /// Also pods that no controller will make again elsewhere.
    pub force: bool,
}

/// Why a node still has pods.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error("{} no controller would make again: {}; take them away yourself, or say --force", count(pods.len()), pods.join(", "))]
    Unmanaged { pods: Vec<String> },
    #[error("{} still on node {node} after {} s: {}; the node stays cordoned, `kubectl uncordon {node}` takes that back", count(pods.len()), waited.as_secs(), pods.join(", "))]
    TimedOut {
        node: String,
        waited: Duration,
        /// Each with the last thing that was seen of it.
        pods: Vec<String>,
    },
    #[error(transparent)]
    Kube(#[from] KubeError),
}

fn count(pods: usize) -> String {
    match pods {
        1 => "1 pod".to_owned(),
        more => format!("{more} pods"),
    }
}

/// `namespace/name`.
struct PodName<'a>(&'a Pod);

impl fmt::Display for PodName<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metadata = &self.0.metadata;
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        write!(
            formatter,
            "{}/{}",
            part(&metadata.namespace),
            part(&metadata.name)
        )
    }
}

/// Cordons the node and empties it. Nothing is evicted when a pod stands in the way that nobody would make again.
pub async fn drain(
    client: &kube::Client,
    node: &str,
    options: &DrainOptions,
    progress: &dyn Progress,
) -> Result<(), DrainError> {
    let unmanaged: Vec<String> = to_evict(client, node)
        .await?
        .iter()
        .filter(|pod| !is_managed(pod) && !is_finished(pod))
        .map(|pod| PodName(pod).to_string())
        .collect();
    if !unmanaged.is_empty() && !options.force {
        return Err(DrainError::Unmanaged { pods: unmanaged });
    }
    set_schedulable(client, node, false).await?;
    let started = Instant::now();
    let mut told = 0;
    loop {
        let pods = to_evict(client, node).await?;
        if pods.is_empty() {
            return Ok(());
        }
        if pods.len() != told {
            told = pods.len();
            progress.note(&format!("{node}: {} to move", count(told)));
        }
        let mut waiting = Vec::new();
        for pod in &pods {
            waiting.push(format!("{} ({})", PodName(pod), evict(client, pod).await?));
        }
        if started.elapsed() >= options.timeout {
            return Err(DrainError::TimedOut {
                node: node.to_owned(),
                waited: started.elapsed(),
                pods: waiting,
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Asks for one pod's eviction, and says how it stands with it.
async fn evict(client: &kube::Client, pod: &Pod) -> Result<String, KubeError> {
    let metadata = &pod.metadata;
    if metadata.deletion_timestamp.is_some() {
        return Ok("is ending".to_owned());
    }
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.evict(name, &EvictParams::default()).await {
        Ok(_) => Ok("was asked to go".to_owned()),
        // Gone meanwhile, or on its way.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
            Ok("is ending".to_owned())
        }
        // A PodDisruptionBudget allows none at the moment.
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(status.message.clone()),
        Err(error) => Err(failed(&format!("evicting pod {}", PodName(pod)), error)),
    }
}

async fn to_evict(client: &kube::Client, node: &str) -> Result<Vec<Pod>, KubeError> {
    let pods: Api<Pod> = Api::all(client.clone());
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let list = pods
        .list(&on_node)
        .await
        .map_err(|error| failed(&format!("listing the pods of node {node}"), error))?;
    Ok(list
        .items
        .into_iter()
        .filter(|pod| !belongs_to_node(pod))
        .collect())
}

/// Static pods and those of DaemonSets: they would be back at once.
fn belongs_to_node(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.iter().flatten();
    let mut names = annotations.map(|(name, _)| name.as_str());
    let is_static = names.any(|name| name == "kubernetes.io/config.mirror");
    is_static || controller(pod) == Some("DaemonSet")
}

fn is_managed(pod: &Pod) -> bool {
    controller(pod).is_some()
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn controller(pod: &Pod) -> Option<&str> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(&owner.kind)
}
