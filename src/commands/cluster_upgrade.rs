//! `orch cluster upgrade`: another K3s on every node, a few at a time, so that what runs on the cluster goes on running.
//!
//! Servers first, one by one: an agent must never be newer than its server. Where the servers have an etcd, each makes a
//! snapshot before its turn. Each node is emptied, brought up with the new K3s, waited for, and opened again. The first
//! failure ends it and leaves that node as it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use orch_contract::{Action, Outcome, Role, Subject};

use super::cluster_nodes::{Shown, failures, names, sketch, with_folders};
use super::cluster_remove::{Left, without};
use super::{Context, artifacts, cluster, cluster_snapshot, idle, machines};
use crate::cli::cluster::UpgradeArgs;
use crate::exit::{Exit, WithExit as _};
use crate::kube::nodes as kube_nodes;
use crate::nodes::{self, Delivery, Host, NodeReport, Options};
use crate::ui::Step;

/// From a started K3s to a node that the cluster calls Ready.
const READY: Duration = Duration::from_secs(300);

/// `orch cluster upgrade`.
pub(super) async fn run(context: &Context, arguments: &UpgradeArgs) -> anyhow::Result<Exit> {
    let step = context.ui.step("plan");
    let selection = &arguments.selection;
    let sketch = sketch(context, selection, &step).await?;
    let hosts = &sketch.hosts;
    idle::refuse(context, &names(hosts)).await?;
    let shown = Shown(Arc::clone(&step));
    let reports = nodes::plan(hosts, &sketch.delivery, &sketch.options, &shown).await;
    failures(&reports, "planning the upgrade")?;
    let begun = begun(context).await?;
    let waves = waves(
        hosts,
        &reports,
        &begun,
        usize::from(arguments.max_unavailable),
    );
    if let Some(refused) = refusal(context, hosts, &waves.concat()).await? {
        return Err(refused);
    }
    step.done(&match waves.iter().map(Vec::len).sum::<usize>() {
        0 => "every node runs the K3s of orch.yaml".to_owned(),
        count => format!("{count} of {} nodes get another K3s", hosts.len()),
    });
    if arguments.dry_run {
        for wave in &waves {
            let names: Vec<_> = wave.iter().map(|host| host.name.as_str()).collect();
            let line = format!("drain, upgrade, wait for, uncordon: {}", names.join(", "));
            context.ui.result(&line);
        }
        return Ok(if waves.is_empty() {
            Exit::Success
        } else {
            Exit::Changes
        });
    }
    artifacts::hold(context, &sketch.artifacts)?;
    let prepared =
        machines::prepare_folders(context, context.provider(), &sketch.artifacts).await?;
    let delivery = machines::delivery(&prepared);
    let total: usize = waves.iter().map(Vec::len).sum();
    let mut done = 0;
    for wave in waves {
        let step = context.ui.step("upgrade");
        let names: Vec<_> = wave.iter().map(|host| host.name.clone()).collect();
        let hosts = with_folders(wave.into_iter().cloned().collect(), &prepared);
        for host in hosts.iter().filter(|host| host.role == Role::Server) {
            refuse_minority(context, &host.name, arguments.drain.force).await?;
            // One whose upgrade was cut off made its snapshot before, and its K3s may not run.
            if !begun.contains(&host.name) {
                cluster_snapshot::before_upgrade(context, host, &sketch.options, &step).await?;
            }
        }
        let one = Upgrade {
            kubeconfig: &context.project.kubeconfig(),
            delivery: &delivery,
            options: &sketch.options,
            arguments,
            step: &step,
        };
        // All of a wave end before one's failure is told: none is dropped half way.
        let ended = join_all(hosts.iter().map(|host| one.run(host))).await;
        ended
            .into_iter()
            .collect::<anyhow::Result<Vec<()>>>()
            .exit(
                Exit::Machine,
                format!(
                    "upgrading {} ({done} of {total} done); mend the cause and run this again to go on, or put k3s.version back in orch.yaml and run it again to go back",
                    names.join(", ")
                ),
            )?;
        done += names.len();
        step.done(&format!("{} upgraded", names.join(", ")));
    }
    cluster::finish(context, "cluster upgraded");
    Ok(Exit::Success)
}

/// A server that is being upgraded does not count: the others must have a majority by then.
async fn refuse_minority(context: &Context, name: &str, force: bool) -> anyhow::Result<()> {
    if force || context.config.servers().count() < 2 {
        return Ok(());
    }
    let asking = "asking the cluster for its servers";
    let client = crate::kube::connect_impatient(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, asking)?;
    let servers = kube_nodes::servers(&client).await;
    match without(&servers.exit(Exit::Apply, asking)?, name) {
        Left::Minority { ready, needed } => Err(anyhow::anyhow!(
            "while server {name} is upgraded, {ready} of the other servers are Ready, and etcd would need {needed}: the cluster would stand still"
        ))
        .exit(
            Exit::Input,
            "bring the other servers up first and run this again; `--force` upgrades it all the same",
        ),
        Left::Majority | Left::Nobody => Ok(()),
    }
}

/// Why agents must not go alone: they would become newer than a server that stays behind.
pub(super) async fn refusal(
    context: &Context,
    hosts: &[Host],
    going: &[&Host],
) -> anyhow::Result<Option<anyhow::Error>> {
    let agents: Vec<&str> = going
        .iter()
        .filter(|host| host.role == Role::Agent)
        .map(|host| host.name.as_str())
        .collect();
    let nodes = context.config.nodes.iter();
    let behind: Vec<&str> = nodes
        .filter(|node| Role::from(node.role) == Role::Server)
        .map(|node| node.name.value.as_str())
        .filter(|name| !hosts.iter().any(|host| host.name == *name))
        .collect();
    if agents.is_empty() || behind.is_empty() {
        return Ok(None);
    }
    let asking = "asking the servers for their versions";
    let client = crate::kube::connect_impatient(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, asking)?;
    let running = kube_nodes::kubelet_versions(&client).await;
    let running = running.exit(Exit::Apply, asking)?;
    let wanted = &context.config.k3s.version.value;
    let Some((server, version)) = older(wanted, &behind, &running) else {
        return Ok(None);
    };
    let choosing = format!(
        "choosing nodes; `orch cluster upgrade {server} {}` takes the server first",
        agents.join(" ")
    );
    let refused: anyhow::Result<()> = Err(anyhow::anyhow!(
        "server {server} runs {version}, orch.yaml says {wanted}, and an agent must never be newer than its server"
    ));
    Ok(refused.exit(Exit::Input, choosing).err())
}

/// The first of the servers that runs something older than `wanted`.
fn older<'v>(
    wanted: &str,
    servers: &[&'v str],
    running: &'v BTreeMap<String, String>,
) -> Option<(&'v str, &'v str)> {
    let mut known = servers
        .iter()
        .filter_map(|server| Some((*server, running.get(*server)?.as_str())));
    known.find(|(_, version)| kube_nodes::is_newer(wanted, version) == Some(true))
}

/// Nodes that an upgrade left cordoned when it was cut off.
async fn begun(context: &Context) -> anyhow::Result<Vec<String>> {
    let asking = "asking the cluster for upgrades that have begun";
    let client = crate::kube::connect_impatient(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, asking)?;
    let begun = kube_nodes::being_upgraded(&client).await;
    begun.exit(Exit::Apply, asking)
}

/// Who gets another K3s, in the order of it: each server alone, then agents together up to the limit.
fn waves<'h>(
    hosts: &'h [Host],
    reports: &[NodeReport],
    begun: &[String],
    limit: usize,
) -> Vec<Vec<&'h Host>> {
    let due = |host: &&Host| {
        let mut reports = reports.iter();
        begun.contains(&host.name)
            || reports.any(|report| report.node == host.name && changes_k3s(report))
    };
    let (servers, agents): (Vec<&Host>, Vec<&Host>) = hosts
        .iter()
        .filter(due)
        .partition(|host| host.role == Role::Server);
    let agents = agents.chunks(limit.max(1)).map(<[_]>::to_vec);
    servers
        .into_iter()
        .map(|host| vec![host])
        .chain(agents)
        .collect()
}

/// Whether a node that is up already would get another K3s.
fn changes_k3s(report: &NodeReport) -> bool {
    let changes = report.steps.iter().flat_map(|step| &step.changes);
    report.outcome != Outcome::Failed
        && changes
            .into_iter()
            .any(|change| change.subject == Subject::Version && change.action == Action::Update)
}

/// What every node's upgrade needs.
struct Upgrade<'a> {
    kubeconfig: &'a Path,
    delivery: &'a Delivery,
    options: &'a Options,
    arguments: &'a UpgradeArgs,
    step: &'a Arc<Step>,
}

impl Upgrade<'_> {
    async fn run(&self, host: &Host) -> anyhow::Result<()> {
        let client = crate::kube::connect_impatient(self.kubeconfig).await?;
        let drain = kube_nodes::DrainOptions {
            timeout: Duration::from_secs(self.arguments.drain.drain_timeout),
            force: self.arguments.drain.force,
        };
        kube_nodes::mark_upgrade(&client, &host.name, true).await?;
        kube_nodes::drain(&client, &host.name, &drain, self.step.as_ref()).await?;
        let shown = Shown(Arc::clone(self.step));
        let hosts = std::slice::from_ref(host);
        let reports = nodes::up(hosts, self.delivery, self.options, &shown).await;
        failures(&reports, &format!("upgrading {}", host.name))?;
        kube_nodes::wait_ready(&client, &host.name, READY).await?;
        kube_nodes::set_schedulable(&client, &host.name, true).await?;
        kube_nodes::mark_upgrade(&client, &host.name, false).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use orch_contract::Change;

    use super::*;
    use crate::nodes::PlannedStep;

    #[test]
    fn a_server_that_is_older_keeps_its_agents_back() {
        let running = |version: &str| BTreeMap::from([("s".to_owned(), version.to_owned())]);
        let wanted = "v1.34.2+k3s1";
        let before = running("v1.33.5+k3s1");
        assert_eq!(older(wanted, &["s"], &before), Some(("s", "v1.33.5+k3s1")));
        for version in [wanted, "v1.35.0+k3s1", "unknown"] {
            assert_eq!(older(wanted, &["s"], &running(version)), None);
        }
        assert_eq!(older(wanted, &["t"], &before), None);
    }

    #[test]
    fn servers_go_alone_and_first_and_only_who_is_due_goes_at_all() {
        let names = ["a", "s", "b", "c", "d", "t"];
        let hosts: Vec<Host> = names
            .iter()
            .map(|name| Host {
                name: (*name).to_owned(),
                role: if ["s", "t"].contains(name) {
                    Role::Server
                } else {
                    Role::Agent
                },
                folder: "/none".into(),
                wanted: crate::remote::Wanted::default(),
            })
            .collect();
        let report = |name: &str, subject| NodeReport {
            steps: vec![PlannedStep {
                step: "acquire_k3s".to_owned(),
                reason: String::new(),
                changes: vec![Change::new(subject, "k3s", Action::Update, "")],
            }],
            ..NodeReport::new(name, Role::Agent)
        };
        let reports: Vec<_> = names
            .iter()
            .map(|name| {
                let subject = if *name == "c" {
                    Subject::File
                } else {
                    Subject::Version
                };
                report(name, subject)
            })
            .collect();
        let shown: Vec<Vec<&str>> = waves(&hosts, &reports, &["c".to_owned()], 2)
            .into_iter()
            .map(|wave| wave.into_iter().map(|host| host.name.as_str()).collect())
            .collect();
        assert_eq!(
            shown,
            [vec!["s"], vec!["t"], vec!["a", "b"], vec!["c", "d"]]
        );
        let none = waves(&hosts, &[], &[], 2);
        assert!(none.is_empty(), "{none:?}");
    }
}
