//! `orch cluster plan`, `up` and `facts`: the nodes as orch.yaml wants them, over SSH.

use std::collections::BTreeSet;
use std::sync::Arc;

use orch_contract::{Action, Outcome, Role};
use serde::Serialize;

use super::idle::{self, Idle};
use super::{
    Context, artifacts, cluster, cluster_labels, cluster_remove, cluster_upgrade, kubeconfig,
    machines, manifests, reach, status,
};
use crate::artifacts::Artifacts;
use crate::cli::cluster::{Access, Selection, UpArgs};
use crate::exit::{Exit, WithExit as _};
use crate::kube::nodes::Reconciled;
use crate::machines::{Prepared, Provider};
use crate::nodes::{self, Delivery, Host, NodeEvent, NodeReport, PlannedStep, Watcher};
use crate::ui::{Step, describe_node_event};

const BRINGING_UP: &str = "bringing the nodes up";

/// What would change, or did: on the nodes themselves, and of their Node objects.
#[derive(Debug, Serialize)]
struct Report {
    changes: bool,
    nodes: Vec<NodeReport>,
    /// `None` where the cluster cannot be asked.
    cluster: Option<Reconciled>,
}

impl Report {
    /// `prune`: nodes that nobody described count as something to change.
    fn new(nodes: Vec<NodeReport>, cluster: Option<Reconciled>, prune: bool) -> Self {
        let differs = |cluster: &Reconciled| {
            !cluster.changes.is_empty() || (prune && !cluster.orphans.is_empty())
        };
        Self {
            changes: nodes.iter().any(NodeReport::is_changed)
                || cluster.as_ref().is_some_and(differs),
            nodes,
            cluster,
        }
    }
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

/// What the nodes are held against without a change to anything; its folder goes with it.
pub(super) struct Sketch {
    pub(super) artifacts: Artifacts,
    pub(super) hosts: Vec<Host>,
    pub(super) delivery: Delivery,
    pub(super) options: nodes::Options,
    _folder: tempfile::TempDir,
}

pub(super) async fn sketch(
    context: &Context,
    selection: &Selection,
    step: &Step,
) -> anyhow::Result<Sketch> {
    let artifacts = artifacts::find(context, context.provider(), step).await?;
    let (folder, prepared) = machines::sketch_folders(context, &artifacts)?;
    Ok(Sketch {
        hosts: selected(context, selection, &prepared)?,
        delivery: machines::delivery(&prepared),
        options: reach::options(context, &selection.access)?,
        artifacts,
        _folder: folder,
    })
}

/// `orch cluster plan`.
pub(super) async fn plan(
    context: &Context,
    selection: &Selection,
    prune: bool,
) -> anyhow::Result<Exit> {
    let step = context.ui.step("plan");
    let sketch = sketch(context, selection, &step).await?;
    let everyone = reach::hosts(context)?;
    let idle = idle::among(context, &names(&everyone)).await?;
    let is_idle = |host: &Host| idle.iter().any(|idle| idle.name == host.name);
    let awake: Vec<Host> = sketch
        .hosts
        .iter()
        .filter(|host| !is_idle(host))
        .cloned()
        .collect();
    let shown = Shown(Arc::clone(&step));
    let mut reports = nodes::plan(&awake, &sketch.delivery, &sketch.options, &shown).await;
    for (place, host) in sketch.hosts.iter().enumerate() {
        if let Some(idle) = idle.iter().find(|idle| idle.name == host.name) {
            reports.insert(place, to_be_made(host, idle));
        }
    }
    let mut servers = everyone.iter().filter(|host| host.role == Role::Server);
    let asked = if servers.any(is_idle) {
        Ok(None)
    } else {
        cluster_labels::plan(context).await
    };
    let (cluster, unasked) = match asked {
        Ok(cluster) => (cluster, Ok(())),
        Err(error) => (None, Err(error)),
    };
    let report = Report::new(reports, cluster, prune);
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
    let mut hosts = chosen(reach::hosts(context)?, &arguments.selection.nodes)?;
    let going: Vec<&Host> = hosts.iter().collect();
    // A server that does not answer is no reason to leave an agent as it is.
    if let Ok(Some(refused)) = cluster_upgrade::refusal(context, &hosts, &going).await {
        return Err(refused);
    }
    let artifacts = artifacts::step(context).await?;
    // Vagrant takes them one after the other where it cannot do otherwise, and an agent waits for its server.
    hosts.sort_by_key(|host| host.role != Role::Server);
    let everyone = reach::hosts(context)?;
    let idle = idle::among(context, &names(&everyone)).await?;
    let (idle, others): (Vec<Idle>, Vec<Idle>) = idle
        .into_iter()
        .partition(|idle| hosts.iter().any(|host| host.name == idle.name));
    if !idle.is_empty() {
        machines::prepare_step(context, &artifacts).await?;
        let is_awake = |host: &Host| {
            !idle
                .iter()
                .chain(&others)
                .any(|idle| idle.name == host.name)
        };
        let servers = everyone.into_iter().filter(is_awake).collect();
        admit(context, servers, &arguments.selection.access).await?;
        let names: Vec<String> = idle.into_iter().map(|idle| idle.name).collect();
        machines::up(context, &names).await?;
    }
    let reports = visit(context, &artifacts, &arguments.selection).await?;
    let failed = failures(&reports, BRINGING_UP);
    let cluster = match &failed {
        Ok(()) => Some(cluster_labels::reconcile(context, &arguments.selection.nodes).await?),
        Err(_) => None,
    };
    let report = Report::new(reports, cluster, false);
    show(context, &report);
    failed?;
    if let (true, Some(cluster)) = (arguments.prune, &report.cluster) {
        let access = &arguments.selection.access;
        let orphans: Vec<&str> = cluster.orphans.iter().map(String::as_str).collect();
        for orphan in &cluster.orphans {
            cluster_remove::one(context, orphan, &orphans, access, arguments.drain).await?;
        }
    }
    cluster::finish(context, "cluster up");
    Ok(Exit::Success)
}

/// Brings the servers among these hosts the keys that there are now: one that is up lets no new machine join before.
async fn admit(context: &Context, mut hosts: Vec<Host>, access: &Access) -> anyhow::Result<()> {
    hosts.retain(|host| host.role == Role::Server);
    if hosts.is_empty() {
        return Ok(());
    }
    let step = context.ui.step("keys");
    let options = reach::options(context, access)?;
    let reports = nodes::renew_keys(&hosts, &options, &Shown(Arc::clone(&step))).await;
    failures(&reports, "bringing the servers the keys of new nodes")?;
    step.done(&format!("{} servers have them", reports.len()));
    Ok(())
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
    let options = reach::options(context, &selection.access)?;
    if context.provider() == Provider::Ssh {
        reach::remember(context)?;
    }
    let shown = Shown(Arc::clone(&step));
    let mut reports = nodes::up(&hosts, &machines::delivery(&prepared), &options, &shown).await;
    let mut answers = reports
        .iter_mut()
        .filter_map(|report| Some((report.node.clone(), report.kubeconfig.take()?)));
    // The first server's, or another's where it is away.
    if let Some((server, bytes)) = answers.next() {
        kubeconfig::take(context, &server, &bytes).await?;
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

/// `orch start` on SSH hosts.
pub(super) async fn start(context: &Context) -> anyhow::Result<()> {
    let artifacts = artifacts::step(context).await?;
    run(context, &artifacts, &Access::default()).await?;
    manifests::wait_all(context).await?;
    status::report(context, None).await?;
    cluster::finish(context, "cluster started");
    Ok(())
}

/// `orch cluster facts`.
pub(super) async fn facts(context: &Context, selection: &Selection) -> anyhow::Result<Exit> {
    let hosts = chosen(reach::hosts(context)?, &selection.nodes)?;
    let options = reach::options(context, &selection.access)?;
    idle::refuse(context, &names(&hosts)).await?;
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

fn selected(
    context: &Context,
    selection: &Selection,
    prepared: &Prepared,
) -> anyhow::Result<Vec<Host>> {
    let hosts = chosen(reach::hosts(context)?, &selection.nodes)?;
    Ok(with_folders(hosts, prepared))
}

/// The hosts with what was prepared for them.
pub(super) fn with_folders(mut hosts: Vec<Host>, prepared: &Prepared) -> Vec<Host> {
    for host in &mut hosts {
        if let Some(node) = prepared.nodes.get(&host.name) {
            host.folder.clone_from(&node.directory);
        }
    }
    hosts
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

pub(super) fn names(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(|host| host.name.clone()).collect()
}

/// The plan of a machine that cannot be asked for one.
fn to_be_made(host: &Host, idle: &Idle) -> NodeReport {
    let Idle { name, why } = idle;
    NodeReport {
        outcome: Outcome::Planned,
        steps: vec![PlannedStep {
            step: "machine".to_owned(),
            reason: format!("{why}; `orch cluster up {name}` makes, starts and provisions it"),
            changes: Vec::new(),
        }],
        ..NodeReport::new(name, host.role)
    }
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
    lines.extend(orphans.map(|orphan| cluster_labels::orphan_text(orphan)));
    lines
}
