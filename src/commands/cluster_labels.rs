//! The Node objects' labels and taints: what the API server is asked to change once the nodes are up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Context;
use crate::exit::{Exit, WithExit as _};
use crate::kube::nodes::{self as kube_nodes, Reconciled, WantedNode};

/// How long nodes may take to register once their K3s runs.
const REGISTRATION: Duration = Duration::from_secs(60);
/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(500);

/// Gives the Node objects their labels and taints, and says what they had otherwise.
/// Waits for `awaited` to register; for all of orch.yaml where it is empty.
pub(super) async fn reconcile(context: &Context, awaited: &[String]) -> anyhow::Result<Reconciled> {
    let wanted = wanted_nodes(context)?;
    let step = context.ui.step("labels");
    let asking = "reconciling the nodes' labels and taints";
    // It asks again by itself, and has to know when to stop.
    let client = crate::kube::connect_impatient(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, asking)?;
    let started = tokio::time::Instant::now();
    let mut changed = BTreeMap::new();
    let result = loop {
        let result = kube_nodes::reconcile(&client, &wanted, &mut changed).await;
        let is_final = match &result {
            Ok(reconciled) => {
                let mut absent = reconciled.absent.iter();
                !absent.any(|name| awaited.is_empty() || awaited.contains(name))
            }
            Err(error) => !error.may_pass(),
        };
        if is_final || started.elapsed() >= REGISTRATION {
            break result;
        }
        tokio::time::sleep(INTERVAL).await;
    };
    // Also where it failed in the end: it was done.
    for (node, changes) in &changed {
        for change in changes {
            step.say(&format!("{node}: {change}"));
        }
    }
    let mut reconciled = result.exit(Exit::Apply, asking)?;
    reconciled.changes = changed;
    for orphan in &reconciled.orphans {
        step.say(&orphan_text(orphan));
    }
    reconciled.absent.sort();
    step.done(&match reconciled.changes.len() {
        0 => "as orch.yaml says".to_owned(),
        1 => "1 node changed".to_owned(),
        more => format!("{more} nodes changed"),
    });
    Ok(reconciled)
}

fn wanted_nodes(context: &Context) -> anyhow::Result<Vec<WantedNode>> {
    let nodes = context.config.nodes.iter();
    nodes
        .map(|node| {
            let taints = node.taints.iter().map(|taint| taint.parse());
            Ok(WantedNode {
                name: node.name.value.clone(),
                labels: node.labels.clone(),
                taints: taints
                    .collect::<Result<_, kube_nodes::InvalidTaint>>()
                    .exit(
                        Exit::Input,
                        format!("reading the taints of node {}", node.name.value),
                    )?,
            })
        })
        .collect()
}

/// Asks the cluster what would change of its Node objects; a cluster that is not there yet has nothing to say.
pub(super) async fn plan(context: &Context) -> anyhow::Result<Option<Reconciled>> {
    let wanted = wanted_nodes(context)?;
    let kubeconfig = context.project.kubeconfig();
    if !kubeconfig.exists() {
        return Ok(None);
    }
    let asking = "asking the cluster for its nodes' labels and taints";
    let client = crate::kube::connect(&kubeconfig)
        .await
        .exit(Exit::Apply, asking)?;
    let plan = kube_nodes::plan(&client, &wanted).await;
    plan.map(Some).exit(Exit::Apply, asking)
}

/// What is said of a node that orch.yaml does not have.
pub(super) fn orphan_text(name: &str) -> String {
    format!(
        "node {name} is in the cluster and not in orch.yaml; `orch cluster up --prune` or `orch cluster remove {name}` drains it, deletes it and resets the machine"
    )
}
