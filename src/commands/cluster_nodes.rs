//! `orch cluster plan`, `up` and `facts`: the nodes as orch.yaml wants them, over SSH.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use orch_contract::{Action, Outcome};
use serde::Serialize;

use super::{Context, cluster, cluster_remove, kubeconfig, machines, manifests, reach, status};
use crate::artifacts::Artifacts;
use crate::cli::cluster::{Access, Selection, UpArgs};
use crate::exit::{Exit, WithExit as _};
use crate::kube::nodes::{self as kube_nodes, Reconciled, WantedNode};
use crate::machines::{Prepared, Provider};
use crate::nodes::{self, Delivery, Host, NodeEvent, NodeReport, SharedFile, Watcher};
use crate::ui::{Step, describe_node_event};

const BRINGING_UP: &str = "bringing the nodes up";
/// How long nodes may take to register once their K3s runs.
const REGISTRATION: Duration = Duration::from_secs(60);

/// What would change, or did: on the nodes themselves, and of their Node objects.
#[derive(Debug, Serialize)]
struct Report {
    changes: bool,
    nodes: Vec<NodeReport>,
    /// `None` where the cluster cannot be asked.
    cluster: Option<Reconciled>,
}

/// Shows the nodes' events in one step of the terminal.
pub(super) struct Shown(pub(super) Arc<Step>);

impl Watcher for Shown {
    fn watch(&self, event: NodeEvent) {
        match event {
            NodeEvent::Said { node, text } => self.0.say(&format!("{node}: {text}")),
            NodeEvent::Line(line) => {
                if let Some(text) = describe_node_event(&line) {
                    self.0.say(&text);
                }
            }
        }
    }
}

/// `orch cluster plan`.
pub(super) async fn plan(
    context: &Context,
    selection: &Selection,
    prune: bool,
) -> anyhow::Result<Exit> {
    let step = context.ui.step("plan");
    let provider = context.provider();
    let artifacts = machines::acquire_artifacts(context, provider, step.as_ref()).await?;
    let folder = tempfile::Builder::new().prefix("orch-plan-").tempdir()?;
    let prepared = machines::sketch_folders(context, provider, &artifacts, folder.path())?;
    let hosts = selected(context, selection, &prepared)?;
    let options = options(context, selection)?;
    let shown = Shown(Arc::clone(&step));
    let reports = nodes::plan(&hosts, &delivery(&prepared), &options, &shown).await;
    let asked = ask(context, &wanted_nodes(context)?).await;
    let (cluster, unasked) = match asked {
        Ok(cluster) => (cluster, Ok(())),
        Err(error) => (None, Err(error)),
    };
    let differs = |cluster: &Reconciled| {
        !cluster.changes.is_empty() || (prune && !cluster.orphans.is_empty())
    };
    let report = Report {
        changes: reports.iter().any(NodeReport::is_changed)
            || cluster.as_ref().is_some_and(differs),
        nodes: reports,
        cluster,
    };
    step.done(&summary(&report));
    show(context, &report);
    failures(&report.nodes, "planning")?;
    unasked?;
    Ok(if report.changes {
        Exit::Changes
    } else {
        Exit::Success
    })
}

/// `orch cluster up`.
pub(super) async fn up(context: &Context, arguments: &UpArgs) -> anyhow::Result<Exit> {
    if arguments.dry_run {
        return plan(context, &arguments.selection, arguments.prune).await;
    }
    let provider = context.provider();
    let step = context.ui.step("artifacts");
    let artifacts = machines::acquire_artifacts(context, provider, step.as_ref()).await?;
    step.done("verified");
    if provider != Provider::Ssh && !all_reached(context) {
        machines::prepare_step(context, &artifacts).await?;
        machines::up(context).await?;
    }
    let reports = visit(context, &artifacts, &arguments.selection).await?;
    let failed = failures(&reports, BRINGING_UP);
    let cluster = match &failed {
        Ok(()) => Some(reconcile(context, &arguments.selection.nodes).await?),
        Err(_) => None,
    };
    let report = Report {
        changes: reports.iter().any(NodeReport::is_changed)
            || cluster
                .as_ref()
                .is_some_and(|cluster| !cluster.changes.is_empty()),
        nodes: reports,
        cluster,
    };
    show(context, &report);
    failed?;
    if let (true, Some(cluster)) = (arguments.prune, &report.cluster) {
        let access = &arguments.selection.access;
        for orphan in &cluster.orphans {
            cluster_remove::one(context, orphan, access, arguments.drain).await?;
        }
    }
    cluster::finish(context, "cluster up");
    Ok(Exit::Success)
}

/// Brings every node up; the nodes step of `create` on SSH hosts.
pub(super) async fn run(
    context: &Context,
    artifacts: &Artifacts,
    access: &Access,
) -> anyhow::Result<()> {
    let everyone = Selection {
        nodes: Vec::new(),
        access: access.clone(),
    };
    let reports = visit(context, artifacts, &everyone).await?;
    failures(&reports, BRINGING_UP)
}

/// Brings nodes up, each as far as it goes, and takes the kubeconfig.
async fn visit(
    context: &Context,
    artifacts: &Artifacts,
    selection: &Selection,
) -> anyhow::Result<Vec<NodeReport>> {
    let step = context.ui.step("nodes");
    let prepared = machines::prepare_folders(context, context.provider(), artifacts).await?;
    let hosts = selected(context, selection, &prepared)?;
    let options = options(context, selection)?;
    if context.provider() == Provider::Ssh {
        reach::remember(context)?;
    }
    let shown = Shown(Arc::clone(&step));
    let mut reports = nodes::up(&hosts, &delivery(&prepared), &options, &shown).await;
    for report in &mut reports {
        if let Some(bytes) = report.kubeconfig.take() {
            kubeconfig::keep(context, &bytes)?;
        }
    }
    let changed = reports.iter().filter(|report| report.is_changed()).count();
    let failed = reports
        .iter()
        .filter(|report| report.error.is_some())
        .count();
    let mut text = format!("{} nodes, {changed} changed", reports.len());
    if failed > 0 {
        text.push_str(&format!(", {failed} failed"));
    }
    step.done(&text);
    Ok(reports)
}

/// Gives the Node objects their labels and taints, and says what they had otherwise.
/// Waits for `awaited` to register; for all of orch.yaml where it is empty.
pub(super) async fn reconcile(context: &Context, awaited: &[String]) -> anyhow::Result<Reconciled> {
    let wanted = wanted_nodes(context)?;
    let step = context.ui.step("labels");
    let asking = "reconciling the nodes' labels and taints";
    let client = crate::kube::connect(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, asking)?;
    let started = tokio::time::Instant::now();
    let mut reconciled = loop {
        let reconciled = kube_nodes::reconcile(&client, &wanted).await;
        match reconciled {
            Ok(reconciled)
                if !reconciled
                    .absent
                    .iter()
                    .any(|name| awaited.is_empty() || awaited.contains(name)) =>
            {
                break reconciled;
            }
            result if started.elapsed() >= REGISTRATION => {
                break result.exit(Exit::Apply, asking)?;
            }
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    for (node, changes) in &reconciled.changes {
        for change in changes {
            step.say(&format!("{node}: {change}"));
        }
    }
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

/// `orch start` on SSH hosts.
pub(super) async fn start(context: &Context) -> anyhow::Result<()> {
    let step = context.ui.step("artifacts");
    let artifacts = machines::acquire_artifacts(context, Provider::Ssh, step.as_ref()).await?;
    step.done("verified");
    run(context, &artifacts, &Access::default()).await?;
    manifests::wait_all(context).await?;
    status::report(context, None).await?;
    cluster::finish(context, "cluster started");
    Ok(())
}

/// `orch cluster facts`.
pub(super) async fn facts(context: &Context, selection: &Selection) -> anyhow::Result<Exit> {
    let hosts = chosen(reach::hosts(context)?, &selection.nodes)?;
    let options = options(context, selection)?;
    let step = context.ui.step("facts");
    let shown = Shown(Arc::clone(&step));
    let facts = nodes::facts(&hosts, &options, &shown).await;
    step.done(&format!("{} nodes asked", facts.len()));
    if context.ui.is_json() {
        context.ui.result_json(&serde_json::json!({"nodes": facts}));
    } else {
        for answer in &facts {
            let shown = serde_json::to_string_pretty(&answer.facts)?;
            context.ui.result(&format!("node {}: {shown}", answer.node));
        }
    }
    let failed: Vec<_> = facts
        .into_iter()
        .filter_map(|answer| answer.error)
        .collect();
    none_failed(&failed, "asking the nodes")?;
    Ok(Exit::Success)
}

pub(super) fn selected(
    context: &Context,
    selection: &Selection,
    prepared: &Prepared,
) -> anyhow::Result<Vec<Host>> {
    let mut hosts = chosen(reach::hosts(context)?, &selection.nodes)?;
    for host in &mut hosts {
        if let Some(node) = prepared.nodes.get(&host.name) {
            host.folder.clone_from(&node.directory);
        }
    }
    Ok(hosts)
}

fn chosen(hosts: Vec<Host>, names: &[String]) -> anyhow::Result<Vec<Host>> {
    let known: BTreeSet<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name.as_str())) {
        let known: Vec<_> = known.into_iter().collect();
        return Err(anyhow::anyhow!(
            "orch.yaml has no node {unknown:?}; it has: {}",
            known.join(", ")
        ))
        .exit(Exit::Input, "choosing nodes");
    }
    Ok(hosts
        .into_iter()
        .filter(|host| names.is_empty() || names.contains(&host.name))
        .collect())
}

pub(super) fn options(context: &Context, selection: &Selection) -> anyhow::Result<nodes::Options> {
    reach::options(context, &selection.access)
}

pub(super) fn delivery(prepared: &Prepared) -> Delivery {
    let file = |file: &machines::PreparedFile| SharedFile {
        path: file.path.clone(),
        sha256: file.sha256.clone(),
    };
    Delivery {
        provisioner: file(&prepared.provisioner),
        artifacts: if prepared.artifacts_mounted {
            Vec::new()
        } else {
            prepared.artifacts.iter().map(file).collect()
        },
    }
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
async fn ask(context: &Context, wanted: &[WantedNode]) -> anyhow::Result<Option<Reconciled>> {
    let kubeconfig = context.project.kubeconfig();
    if !kubeconfig.exists() {
        return Ok(None);
    }
    let asking = "asking the cluster for its nodes' labels and taints";
    let client = crate::kube::connect(&kubeconfig)
        .await
        .exit(Exit::Apply, asking)?;
    let plan = kube_nodes::plan(&client, wanted).await;
    plan.map(Some).exit(Exit::Apply, asking)
}

/// Whether it was noted how each of Vagrant's machines is reached.
fn all_reached(context: &Context) -> bool {
    let reached = context.project.reached();
    let mut nodes = context.config.nodes.iter();
    nodes.all(|node| reached.join(&node.name.value).exists())
}

/// The failures of all nodes as one error.
pub(super) fn failures(reports: &[NodeReport], doing: &str) -> anyhow::Result<()> {
    let failed: Vec<String> = reports
        .iter()
        .filter_map(|node| node.error.as_ref())
        .map(|error| nodes::chain(error))
        .collect();
    none_failed(&failed, doing)
}

fn none_failed(failed: &[String], doing: &str) -> anyhow::Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    Err(anyhow::anyhow!("{}", failed.join("\n  "))).exit(Exit::Machine, doing)
}

fn summary(report: &Report) -> String {
    let changed = report.nodes.iter().filter(|node| node.is_changed()).count();
    match changed {
        0 if !report.changes => "nothing to do".to_owned(),
        0 => "labels or taints would change".to_owned(),
        more => format!("{more} of {} nodes would change", report.nodes.len()),
    }
}

fn orphan_text(name: &str) -> String {
    format!(
        "node {name} is in the cluster and not in orch.yaml; `orch cluster up --prune` or `orch cluster remove {name}` drains it, deletes it and resets the machine"
    )
}

fn show(context: &Context, report: &Report) {
    if context.ui.is_json() {
        context.ui.result_json(report);
        return;
    }
    for line in lines(report) {
        context.ui.result(&line);
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for node in &report.nodes {
        let state = match (node.outcome, node.steps.len()) {
            (Outcome::Failed, _) => "failed".to_owned(),
            (_, 0) => "as it should be".to_owned(),
            (Outcome::Planned, steps) => format!("{steps} to do"),
            (_, steps) => format!("{steps} done"),
        };
        lines.push(format!("node {} ({}): {state}", node.node, node.role));
        for step in &node.steps {
            lines.push(format!("  {}: {}", step.step, step.reason));
            // All of a file that is not there yet is no difference that anybody would look for.
            let changes = step.changes.iter();
            let diffs = changes
                .filter(|change| change.action != Action::Create)
                .flat_map(|change| &change.diff);
            lines.extend(diffs.map(|line| format!("      {line}")));
        }
    }
    for (node, changes) in report.cluster.iter().flat_map(|cluster| &cluster.changes) {
        lines.extend(
            changes
                .iter()
                .map(|change| format!("node {node}: {change}")),
        );
    }
    let orphans = report.cluster.iter().flat_map(|cluster| &cluster.orphans);
    lines.extend(orphans.map(|orphan| orphan_text(orphan)));
    lines
}
