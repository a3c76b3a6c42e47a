//! The cluster's Node objects: what labels and taints they should carry, for life; which of them nobody asked for; and how
//! one is emptied and taken away.
//!
//! Boundary: the API server's side of a node only. A kubelet may set labels and taints of its own node when it registers and
//! never change them afterwards (the NodeRestriction admission plugin), so that whoever has the administrator's kubeconfig
//! does it. Only what orch once set is ever taken away: the annotations [`OWNED_LABELS`] and [`OWNED_TAINTS`] say what that
//! is.

mod changes;
mod drain;
mod taint;
mod version;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde::Serialize;
use tokio::time::Instant;

use super::error::Cause;
use super::{FIELD_MANAGER, KubeError};

pub use changes::{Change, Verb, changes};
pub use drain::{DrainError, DrainOptions, drain};
pub use taint::{InvalidTaint, Taint};
pub use version::is_newer;

/// Names of the labels that orch set, with commas.
pub const OWNED_LABELS: &str = "orch.dev/labels";
/// Keys and effects of the taints that orch set, `key:Effect` with commas.
pub const OWNED_TAINTS: &str = "orch.dev/taints";

/// K3s gives it to its servers.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
/// On a node whose upgrade has begun.
const UPGRADING: &str = "orch.dev/upgrading";

/// A node as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedNode {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

/// What a reconciliation came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reconciled {
    /// By node; a node that is as it should be is not in it.
    pub changes: BTreeMap<String, Vec<Change>>,
    /// Wanted nodes that have not registered.
    pub absent: Vec<String>,
    /// Registered nodes that nobody wants.
    pub orphans: Vec<String>,
}

/// How often a node that somebody else changes at the same moment is read again.
const ATTEMPTS: u32 = 5;

/// What [`reconcile`] would do.
pub async fn plan(client: &kube::Client, wanted: &[WantedNode]) -> Result<Reconciled, KubeError> {
    Ok(compare(&list(client).await?, wanted))
}

fn compare(present: &BTreeMap<String, Node>, wanted: &[WantedNode]) -> Reconciled {
    let mut plan = Reconciled::default();
    for node in wanted {
        match present.get(&node.name) {
            None => plan.absent.push(node.name.clone()),
            Some(live) => {
                let changes = changes(live, node);
                if !changes.is_empty() {
                    plan.changes.insert(node.name.clone(), changes);
                }
            }
        }
    }
    let is_wanted = |name: &&String| wanted.iter().any(|node| node.name == **name);
    let names = present.keys();
    plan.orphans = names.filter(|name| !is_wanted(name)).cloned().collect();
    plan
}

/// Gives every registered node the labels and taints that are wanted: one list, one patch for each node that differs, and one
/// get and patch more whenever somebody else changes it at the same moment. What was changed is added to `changed`, also where
/// a later node fails; `changes` of the answer is what this call found.
pub async fn reconcile(
    client: &kube::Client,
    wanted: &[WantedNode],
    changed: &mut BTreeMap<String, Vec<Change>>,
) -> Result<Reconciled, KubeError> {
    let mut present = list(client).await?;
    let plan = compare(&present, wanted);
    for node in wanted {
        if !plan.changes.contains_key(&node.name) {
            continue;
        }
        if let Some(live) = present.remove(&node.name) {
            let changes = reconcile_one(client, node, live).await?;
            if !changes.is_empty() {
                changed
                    .entry(node.name.clone())
                    .or_default()
                    .extend(changes);
            }
        }
    }
    Ok(plan)
}

/// `live` is the node as it was seen last.
async fn reconcile_one(
    client: &kube::Client,
    wanted: &WantedNode,
    mut live: Node,
) -> Result<Vec<Change>, KubeError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let operation = format!("setting labels and taints of node {}", wanted.name);
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let mut attempt = 1;
    loop {
        let changes = changes(&live, wanted);
        if changes.is_empty() {
            return Ok(changes);
        }
        let patch = Patch::Merge(changes::patch(&live, wanted));
        match nodes.patch(&wanted.name, &parameters, &patch).await {
            Ok(_) => return Ok(changes),
            Err(error) if is_conflict(&error) && attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(failed(&operation, error)),
        }
        live = nodes
            .get(&wanted.name)
            .await
            .map_err(|error| failed(&operation, error))?;
    }
}

/// The version that each node's kubelet reports.
pub async fn kubelet_versions(
    client: &kube::Client,
) -> Result<BTreeMap<String, String>, KubeError> {
    let version = |(name, node): (String, Node)| {
        let info = node.status?.node_info?;
        Some((name, info.kubelet_version))
    };
    Ok(list(client)
        .await?
        .into_iter()
        .filter_map(version)
        .collect())
}

/// Names of every registered node.
pub async fn registered(client: &kube::Client) -> Result<Vec<String>, KubeError> {
    Ok(list(client).await?.into_keys().collect())
}

/// Servers, each with whether it is Ready.
pub async fn servers(client: &kube::Client) -> Result<BTreeMap<String, bool>, KubeError> {
    let is_server = |(name, node): (String, Node)| {
        let labels = node.metadata.labels.as_ref()?;
        labels.get(CONTROL_PLANE)?;
        Some((name, readiness(&node) == READY))
    };
    Ok(list(client)
        .await?
        .into_iter()
        .filter_map(is_server)
        .collect())
}

/// Waits until the cluster has no such node any more: what K3s does about its end is done then. Whether that came in time.
pub async fn wait_gone(
    client: &kube::Client,
    name: &str,
    limit: Duration,
) -> Result<bool, KubeError> {
    let started = Instant::now();
    while list(client).await?.contains_key(name) {
        if started.elapsed() >= limit {
            return Ok(false);
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(true)
}

async fn list(client: &kube::Client) -> Result<BTreeMap<String, Node>, KubeError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let list = nodes
        .list(&ListParams::default())
        .await
        .map_err(|error| failed("listing the nodes", error))?;
    let named = |node: Node| Some((node.metadata.name.clone()?, node));
    Ok(list.items.into_iter().filter_map(named).collect())
}

/// Whether new pods may be put on the node.
pub async fn set_schedulable(
    client: &kube::Client,
    name: &str,
    schedulable: bool,
) -> Result<(), KubeError> {
    let nodes: Api<Node> = Api::all(client.clone());
    // Null removes the field, which is how it looks where nobody ever set it.
    let value = (!schedulable).then_some(true);
    let patch = Patch::Merge(serde_json::json!({"spec": {"unschedulable": value}}));
    let word = if schedulable {
        "uncordoning"
    } else {
        "cordoning"
    };
    nodes
        .patch(name, &PatchParams::default(), &patch)
        .await
        .map(|_| ())
        .map_err(|error| failed(&format!("{word} node {name}"), error))
}

/// Nodes whose upgrade was begun and has not ended.
pub async fn being_upgraded(client: &kube::Client) -> Result<Vec<String>, KubeError> {
    let marked = |(name, node): (String, Node)| {
        let annotations = node.metadata.annotations.unwrap_or_default();
        annotations.contains_key(UPGRADING).then_some(name)
    };
    Ok(list(client).await?.into_iter().filter_map(marked).collect())
}

/// Marks the node as one whose upgrade has begun, or ended: a run that is cut off in between is known by it.
pub async fn mark_upgrade(client: &kube::Client, name: &str, begun: bool) -> Result<(), KubeError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let value = begun.then_some("true");
    let patch = Patch::Merge(serde_json::json!({"metadata": {"annotations": {UPGRADING: value}}}));
    nodes
        .patch(name, &PatchParams::default(), &patch)
        .await
        .map(|_| ())
        .map_err(|error| failed(&format!("marking the upgrade of node {name}"), error))
}

/// Waits until the cluster calls the node Ready.
pub async fn wait_ready(
    client: &kube::Client,
    name: &str,
    limit: Duration,
) -> Result<(), NotReady> {
    let nodes: Api<Node> = Api::all(client.clone());
    let started = Instant::now();
    loop {
        // A restarting server does not answer.
        let observed = match nodes.get(name).await {
            Ok(node) => readiness(&node),
            Err(error) => Cause::from(error).to_string(),
        };
        if observed == READY {
            return Ok(());
        }
        if started.elapsed() >= limit {
            return Err(NotReady {
                node: name.to_owned(),
                waited: limit,
                observed,
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// A node that did not become ready.
#[derive(Debug, thiserror::Error)]
#[error("node {node} is not Ready after {} s: {observed}", waited.as_secs())]
pub struct NotReady {
    node: String,
    waited: Duration,
    observed: String,
}

const READY: &str = "Ready";
/// Between two looks at a node.
const INTERVAL: Duration = Duration::from_secs(1);

fn readiness(node: &Node) -> String {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let condition = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition.type_ == READY);
    match condition {
        Some(condition) if condition.status == "True" => READY.to_owned(),
        Some(condition) => condition
            .message
            .clone()
            .unwrap_or_else(|| format!("its condition Ready is {}", condition.status)),
        None => "its kubelet has said nothing yet".to_owned(),
    }
}

/// Takes the node out of the cluster, and with it the password that K3s would hold a successor of the same name to.
pub async fn delete(client: &kube::Client, name: &str) -> Result<(), KubeError> {
    let nodes: Api<Node> = Api::all(client.clone());
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    let parameters = DeleteParams::default();
    absent_is_fine(nodes.delete(name, &parameters).await)
        .map_err(|error| failed(&format!("deleting node {name}"), error))?;
    let password = format!("{name}.node-password.k3s");
    absent_is_fine(secrets.delete(&password, &parameters).await)
        .map_err(|error| failed(&format!("deleting the Secret {password}"), error))
}

fn absent_is_fine<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(|_| ()),
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

fn failed(operation: &str, error: kube::Error) -> KubeError {
    KubeError::Request {
        operation: operation.to_owned(),
        source: Cause::from(error),
    }
}
