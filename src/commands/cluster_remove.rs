//! `orch cluster remove`: a node is drained, taken out of the cluster, and freed of K3s.

use std::sync::Arc;
use std::time::Duration;

use super::cluster_nodes::{Shown, delivery, failures};
use super::{Context, cluster, machines, reach};
use crate::cli::cluster::{Access, DrainArgs, RemoveArgs};
use crate::config::Role;
use crate::exit::{Exit, WithExit as _};
use crate::kube::nodes as kube_nodes;
use crate::machines::Provider;
use crate::nodes;
use crate::ui::Step;

/// `orch cluster remove`.
pub(super) async fn run(context: &Context, arguments: &RemoveArgs) -> anyhow::Result<Exit> {
    for name in &arguments.nodes {
        refuse_server(context, name.as_str())?;
    }
    if arguments.dry_run {
        for name in &arguments.nodes {
            context.ui.result(&format!(
                "node {name} would be drained, deleted from the cluster, and freed of K3s"
            ));
        }
        return Ok(Exit::Success);
    }
    for name in &arguments.nodes {
        one(context, name.as_str(), &arguments.access, arguments.drain).await?;
    }
    cluster::finish(context, "nodes removed");
    Ok(Exit::Success)
}

/// `orch destroy` on SSH hosts: K3s and orch go from every host, agents first; the hosts stay.
pub(super) async fn all(context: &Context, step: &Arc<Step>) -> anyhow::Result<()> {
    let mut hosts = reach::hosts(context)?;
    hosts.sort_by_key(|host| host.role == orch_contract::Role::Server);
    let artifacts = machines::acquire_artifacts(context, Provider::Ssh, step.as_ref()).await?;
    let prepared = machines::prepare_folders(context, Provider::Ssh, &artifacts).await?;
    let options = reach::options(context, &Access::default())?;
    let shown = Shown(Arc::clone(step));
    let reports = nodes::reset(&hosts, &delivery(&prepared), &options, &shown).await;
    failures(&reports, "resetting the nodes")
}

/// The only server is the cluster.
fn refuse_server(context: &Context, name: &str) -> anyhow::Result<()> {
    let mut servers = context
        .config
        .nodes
        .iter()
        .filter(|node| node.role == Role::Server);
    if servers.any(|node| node.name.value == name) {
        return Err(anyhow::anyhow!(
            "node {name} is the cluster's server; `orch destroy` removes the whole cluster"
        ))
        .exit(Exit::Input, "choosing nodes");
    }
    Ok(())
}

/// Removes one node, described in orch.yaml or not any more.
pub(super) async fn one(
    context: &Context,
    name: &str,
    access: &Access,
    drain: DrainArgs,
) -> anyhow::Result<()> {
    let step = context.ui.step("remove");
    let removing = || format!("removing node {name}");
    let client = crate::kube::connect_impatient(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, removing())?;
    let registered = kube_nodes::registered(&client)
        .await
        .exit(Exit::Apply, removing())?;
    let is_registered = registered.iter().any(|node| node == name);
    if !is_registered && !reach::is_known(context, name) {
        return Err(anyhow::anyhow!(
            "neither the cluster nor orch.yaml has a node {name:?}; the cluster has: {}",
            registered.join(", ")
        ))
        .exit(Exit::Input, "choosing nodes");
    }
    if is_registered {
        let options = kube_nodes::DrainOptions {
            timeout: Duration::from_secs(drain.drain_timeout),
            force: drain.force,
        };
        let drained = kube_nodes::drain(&client, name, &options, step.as_ref()).await;
        match drained {
            Ok(()) => step.say(&format!("{name}: drained")),
            // Nobody confirms the end of a lost node's pods; they go with its Node object.
            Err(error @ kube_nodes::DrainError::TimedOut { .. }) if drain.force => {
                step.say(&format!("{name}: goes all the same: {error}"));
            }
            Err(error) => return Err(error).exit(Exit::Apply, removing()),
        }
    } else {
        step.say(&format!("{name}: the cluster does not know it"));
    }
    let freed = free(context, name, access, &step).await;
    match freed {
        Ok(()) => {}
        Err(error) if drain.force => {
            step.say(&format!("{name}: the machine stays as it is: {error:#}"))
        }
        Err(error) => return Err(error),
    }
    // Last: a kubelet that still runs would register the node again.
    kube_nodes::delete(&client, name)
        .await
        .exit(Exit::Apply, removing())?;
    machines::forget(context, name)?;
    step.done(&format!("{name} is gone"));
    let mut described = context.config.nodes.iter();
    if described.any(|node| node.name.value == name) {
        context.ui.note(&format!(
            "{name} is still in orch.yaml: take it out, or the next `up` makes it join again"
        ));
    }
    Ok(())
}

/// Stops K3s on the machine and removes what was installed; a machine that orch made goes altogether.
async fn free(
    context: &Context,
    name: &str,
    access: &Access,
    step: &Arc<Step>,
) -> anyhow::Result<()> {
    if context.provider() != Provider::Ssh {
        return machines::destroy_one(context, name, step).await;
    }
    if let Some(other) = reach::same_host(context, name)? {
        step.say(&format!(
            "{name}: its host is {other} now and stays as it is; only the old name goes"
        ));
        return Ok(());
    }
    let Some(host) = reach::remembered(context, name)? else {
        step.say(&format!(
            "{name}: nobody knows any more how it is reached; run `orch-provision reset` there"
        ));
        return Ok(());
    };
    let artifacts = machines::acquire_artifacts(context, Provider::Ssh, step.as_ref()).await?;
    let prepared = machines::prepare_folders(context, Provider::Ssh, &artifacts).await?;
    let options = reach::options(context, access)?;
    let shown = Shown(Arc::clone(step));
    let reports = nodes::reset(&[host], &delivery(&prepared), &options, &shown).await;
    let resetting =
        format!("resetting node {name}; `--force` removes it from the cluster all the same");
    failures(&reports, &resetting)
}
