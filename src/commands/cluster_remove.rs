//! `orch cluster remove`: a node is drained, taken out of the cluster, and freed of K3s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orch_contract::ClusterKeys;

use super::cluster_nodes::{Shown, failures};
use super::{Context, cluster, kubeconfig, machines, reach};
use crate::cli::cluster::{Access, DrainArgs, RemoveArgs};
use crate::exit::{Exit, WithExit as _};
use crate::kube::nodes as kube_nodes;
use crate::machines::Provider;
use crate::nodes;
use crate::ui::Step;

const CHOOSING: &str = "choosing nodes";
/// How long K3s may take to take a member out of etcd.
const MEMBER_GONE: Duration = Duration::from_secs(60);

/// `orch cluster remove`.
pub(super) async fn run(context: &Context, arguments: &RemoveArgs) -> anyhow::Result<Exit> {
    for name in &arguments.nodes {
        let mut servers = context.config.servers();
        if let (Some(only), None) = (servers.next(), servers.next())
            && only.name.value == name.as_str()
        {
            return Err(only_server(name.as_str())).exit(Exit::Input, CHOOSING);
        }
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
    let delivery = machines::delivery_for_reset(context)?;
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

/// The last server is the cluster; and without it, the servers that are left must have a majority.
async fn refuse_server(
    context: &Context,
    client: &kube::Client,
    name: &str,
    force: bool,
) -> anyhow::Result<bool> {
    let servers = kube_nodes::servers(client)
        .await
        .exit(Exit::Apply, "asking the cluster for its servers")?;
    let mut described = context.config.servers();
    if !servers.contains_key(name) && !described.any(|node| node.name.value == name) {
        return Ok(false);
    }
    match without(&servers, name) {
        Left::Majority => Ok(true),
        Left::Nobody => Err(only_server(name)).exit(Exit::Input, CHOOSING),
        Left::Minority { ready, needed } if !force => Err(anyhow::anyhow!(
            "without node {name}, {ready} of the other servers are Ready, and etcd would need {needed}: the cluster would stand still"
        ))
        .exit(
            Exit::Input,
            "bring the other servers up first; `--force` removes it all the same",
        ),
        Left::Minority { .. } => Ok(true),
    }
}

fn only_server(name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "node {name} is the cluster's only server; `orch destroy` removes the whole cluster"
    )
}

/// Who is left when a server goes.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Majority,
    Minority { ready: usize, needed: usize },
    Nobody,
}

/// By server, whether it is Ready.
fn without(servers: &BTreeMap<String, bool>, name: &str) -> Left {
    let left = servers.iter().filter(|(server, _)| *server != name);
    let left: Vec<bool> = left.map(|(_, is_ready)| *is_ready).collect();
    let (ready, needed) = (
        left.iter().filter(|is_ready| **is_ready).count(),
        left.len() / 2 + 1,
    );
    match left.len() {
        0 => Left::Nobody,
        _ if ready < needed => Left::Minority { ready, needed },
        _ => Left::Majority,
    }
}

/// Turns this computer to another server before the one goes that its kubeconfig leads to.
async fn turn_away(context: &Context, name: &str, access: &Access) -> anyhow::Result<()> {
    if context
        .config
        .server()
        .is_none_or(|first| first.name.value != name)
    {
        return Ok(());
    }
    let options = reach::options(context, access)?;
    let step = context.ui.step("kubeconfig");
    let shown = Shown(Arc::clone(&step));
    for host in reach::hosts(context)? {
        if host.role != orch_contract::Role::Server || host.name == name {
            continue;
        }
        if let Ok(bytes) = nodes::kubeconfig(&host, &options, &shown).await {
            kubeconfig::keep(context, &host.name, &bytes)?;
            step.done(&format!("leads to {}", host.name));
            return Ok(());
        }
    }
    Err(anyhow::anyhow!(
        "no other server can be asked for a kubeconfig"
    ))
    .exit(Exit::Machine, format!("removing node {name}"))
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
    let is_server = refuse_server(context, &client, name, drain.force).await?;
    let client = if is_server {
        turn_away(context, name, access).await?;
        crate::kube::connect_impatient(&context.project.kubeconfig())
            .await
            .exit(Exit::Apply, removing())?
    } else {
        client
    };
    let registered = kube_nodes::registered(&client)
        .await
        .exit(Exit::Apply, removing())?;
    let is_registered = registered.iter().any(|node| node == name);
    if !is_registered && !reach::is_known(context, name) {
        return Err(anyhow::anyhow!(
            "neither the cluster nor orch.yaml has a node {name:?}; the cluster has: {}",
            registered.join(", ")
        ))
        .exit(Exit::Input, CHOOSING);
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
    if is_server {
        // K3s takes the member of a deleted Node out of etcd. One that ends before that still counts for the majority.
        kube_nodes::delete(&client, name)
            .await
            .exit(Exit::Apply, removing())?;
        kube_nodes::wait_gone(&client, name, MEMBER_GONE)
            .await
            .exit(Exit::Apply, removing())?;
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
    servers.retain(|host| host.role == orch_contract::Role::Server && host.name != gone);
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
    let delivery = machines::delivery_for_reset(context)?;
    let options = reach::options(context, access)?;
    let shown = Shown(Arc::clone(step));
    let reports = nodes::reset(&[host], &delivery, &options, &shown).await;
    let resetting =
        format!("resetting node {name}; `--force` removes it from the cluster all the same");
    failures(&reports, &resetting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_goes_only_where_the_others_have_a_majority() {
        let servers = |ready: &[bool]| -> BTreeMap<String, bool> {
            let named = ready.iter().enumerate();
            named
                .map(|(index, ready)| (format!("s{index}"), *ready))
                .collect()
        };
        assert_eq!(without(&servers(&[true]), "s0"), Left::Nobody);
        assert_eq!(without(&servers(&[true; 3]), "s0"), Left::Majority);
        assert_eq!(without(&servers(&[true; 2]), "s1"), Left::Majority);
        // The one that is lost is the one to go.
        let lost = servers(&[true, false, true]);
        assert_eq!(without(&lost, "s1"), Left::Majority);
        assert_eq!(
            without(&lost, "s0"),
            Left::Minority {
                ready: 1,
                needed: 2
            }
        );
    }
}
