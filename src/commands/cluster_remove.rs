//! `orch cluster remove`: a node is drained, taken out of the cluster, and freed of K3s.

use std::sync::Arc;
use std::time::Duration;

use orch_contract::ClusterKeys;

use super::cluster_nodes::{Shown, failures};
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
        return Ok(Exit::Changes);
    }
    for name in &arguments.nodes {
        one(context, name.as_str(), &arguments.access, arguments.drain).await?;
    }
    cluster::finish(context, "nodes removed");
    Ok(Exit::Success)
}

/// `orch destroy` on SSH hosts: K3s and orch go from every host, also from those that orch.yaml has no more; the hosts stay.
/// A host that cannot be freed keeps none of the others; `force` forgets it.
pub(super) async fn all(context: &Context, step: &Arc<Step>, force: bool) -> anyhow::Result<()> {
    let delivery = machines::delivery_for_reset()?;
    let options = reach::options(context, &Access::default())?;
    let shown = Shown(Arc::clone(step));
    let mut hosts = reach::hosts(context)?;
    hosts.extend(reach::former(context)?);
    // Agents before their servers, whose export they may have mounted.
    let (servers, agents): (Vec<_>, Vec<_>) = hosts
        .into_iter()
        .partition(|host| host.role == orch_contract::Role::Server);
    let mut reports = nodes::reset(&agents, &delivery, &options, &shown).await;
    reports.extend(nodes::reset(&servers, &delivery, &options, &shown).await);
    let freed = failures(
        &reports,
        "freeing the hosts; the others are free. Run this again when those can be reached, or with `--force` to forget them",
    );
    match freed {
        Err(error) if force => {
            step.say(&format!("some hosts stay as they are: {error:#}"));
            Ok(())
        }
        freed => freed,
    }
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
    match shut_out(context, name, access, &step).await {
        Err(error) if drain.force => {
            step.say(&format!("{name}: its key is still accepted: {error:#}"));
        }
        shut => shut?,
    }
    step.done(&format!("{name} is gone"));
    let mut described = context.config.nodes.iter();
    if described.any(|node| node.name.value == name) {
        context.ui.note(&format!(
            "{name} is still in orch.yaml: take it out, or the next `up` makes it join again"
        ));
    }
    Ok(())
}

/// Takes a removed node's key off the list of those who may join. The join service reads it anew at each request.
async fn shut_out(
    context: &Context,
    gone: &str,
    access: &Access,
    step: &Arc<Step>,
) -> anyhow::Result<()> {
    let nodes = context.config.nodes.iter();
    let rest: Vec<_> = nodes.filter(|node| node.name.value != gone).collect();
    if !ClusterKeys::new(context.project.state().join("keys"))
        .host_key()
        .exists()
    {
        step.say(&format!(
            "{gone}: this computer does not have the cluster's keys, so its key stays on the server's list"
        ));
        return Ok(());
    }
    machines::renew_keys(context, &rest)?;
    let mut servers = reach::hosts(context)?;
    servers.retain(|host| host.role == orch_contract::Role::Server);
    let options = reach::options(context, access)?;
    let shown = Shown(Arc::clone(step));
    let reports = nodes::renew_keys(&servers, &options, &shown).await;
    failures(
        &reports,
        &format!(
            "taking the key of {gone}, which is gone, off the server's list; `orch cluster up` does it, too"
        ),
    )
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
    let delivery = machines::delivery_for_reset()?;
    let options = reach::options(context, access)?;
    let shown = Shown(Arc::clone(step));
    let reports = nodes::reset(&[host], &delivery, &options, &shown).await;
    let resetting =
        format!("resetting node {name}; `--force` removes it from the cluster all the same");
    failures(&reports, &resetting)
}
