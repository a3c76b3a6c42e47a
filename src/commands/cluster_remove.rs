//! `orch cluster remove`: a node is drained, taken out of the cluster, and freed of K3s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use orch_contract::{ClusterKeys, StorageKind};

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
    refuse_storage(context, arguments)?;
    let going: Vec<&str> = arguments.nodes.iter().map(|name| name.as_str()).collect();
    for name in &going {
        one(context, name, &going, &arguments.access, arguments.drain).await?;
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

/// The first server exports the volumes' folder, and a reset or its machine's end takes them with it.
fn refuse_storage(context: &Context, arguments: &RemoveArgs) -> anyhow::Result<()> {
    let exports = machines::storage(&context.config, context.provider()) == StorageKind::Nfs;
    let first = context.config.server().map(|first| &first.name.value);
    let mut nodes = arguments.nodes.iter();
    match first {
        Some(first)
            if exports && !arguments.drain.force && nodes.any(|name| name.as_str() == first) =>
        {
            Err(anyhow::anyhow!(
                "node {first} exports the volumes of the cluster over NFS: without it, every one of them is lost"
            ))
            .exit(
                Exit::Input,
                "move what the volumes hold elsewhere first; `--force` removes it, and them, all the same",
            )
        }
        _ => Ok(()),
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

fn still_there(name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "the cluster still has node {name} after {} s: etcd counts it until K3s has taken it out; look at K3s on the other servers \
         (`journalctl -u k3s`) and run this again, or with `--force` to go on all the same",
        MEMBER_GONE.as_secs()
    )
}

/// Who is left when a server goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    Majority,
    Minority { ready: usize, needed: usize },
    Nobody,
}

/// By server, whether it is Ready.
pub(super) fn without(servers: &BTreeMap<String, bool>, name: &str) -> Left {
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

/// Turns this computer to another server before the one goes that its kubeconfig leads to, or where that one does not answer.
async fn turn_away(
    context: &Context,
    name: &str,
    going: &[&str],
    access: &Access,
) -> anyhow::Result<()> {
    let own = context.project.kubeconfig();
    let servers: Vec<(String, String)> = context
        .config
        .servers()
        .map(|node| node.name.value.clone())
        .map(|name| {
            let url = context.api_url(&name);
            (name, url)
        })
        .collect();
    let staying = || {
        servers
            .iter()
            .filter(|(name, _)| !going.contains(&name.as_str()))
    };
    match leads(
        crate::kube::kubeconfig::server_of(&own).as_deref(),
        &servers,
        going,
    ) {
        // The only one there is: it answers or nobody does.
        Leads::Stays if staying().count() == 1 => return Ok(()),
        Leads::Stays if kubeconfig::answers(context).await => return Ok(()),
        Leads::Stays | Leads::Goes => {}
    }
    let before = std::fs::read(&own).map(zeroize::Zeroizing::new).ok();
    let options = reach::options(context, access)?;
    let step = context.ui.step("kubeconfig");
    let shown = Shown(Arc::clone(&step));
    for host in reach::hosts(context)? {
        if !staying().any(|(name, _)| *name == host.name) {
            continue;
        }
        if let Ok(bytes) = nodes::kubeconfig(&host, &options, &shown).await {
            kubeconfig::keep(context, &host.name, &bytes)?;
            if kubeconfig::answers(context).await {
                step.done(&format!("leads to {}", host.name));
                return Ok(());
            }
        }
    }
    if let Some(before) = before {
        crate::files::keep_private(&own, &before).exit(Exit::Host, "writing the kubeconfig")?;
    }
    Err(anyhow::anyhow!("no server that stays answers")).exit(
        Exit::Machine,
        format!("removing node {name}; bring the other servers up first"),
    )
}

/// Where a kubeconfig leads.
#[derive(Debug, PartialEq, Eq)]
enum Leads {
    /// To a server that stays, or to none there is to turn away from.
    Stays,
    Goes,
}

/// `servers`: those of orch.yaml, each with the URL at which this computer reaches it. One that orch.yaml has no more goes, too.
fn leads(url: Option<&str>, servers: &[(String, String)], going: &[&str]) -> Leads {
    let goes = |name: &String| going.contains(&name.as_str());
    let mut staying = servers.iter().filter(|(name, _)| !goes(name)).peekable();
    let Some(url) = url else {
        return Leads::Stays;
    };
    // With none that stays there is nobody to turn to, which the next question tells.
    if staying.peek().is_none() || staying.any(|(_, own)| own == url) {
        return Leads::Stays;
    }
    let is_described = servers.iter().any(|(_, own)| own == url);
    let orphan_goes = going
        .iter()
        .any(|gone| servers.iter().all(|(name, _)| name != gone));
    match is_described || servers.len() > 1 || orphan_goes {
        true => Leads::Goes,
        false => Leads::Stays,
    }
}

/// Removes one node, described in orch.yaml or not any more.
pub(super) async fn one(
    context: &Context,
    name: &str,
    going: &[&str],
    access: &Access,
    drain: DrainArgs,
) -> anyhow::Result<()> {
    let step = context.ui.step("remove");
    let removing = || format!("removing node {name}");
    turn_away(context, name, going, access).await?;
    let client = crate::kube::connect_impatient(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, removing())?;
    let is_server = refuse_server(context, &client, name, drain.force).await?;
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
        let is_gone = kube_nodes::wait_gone(&client, name, MEMBER_GONE)
            .await
            .exit(Exit::Apply, removing())?;
        if !is_gone && !drain.force {
            return Err(still_there(name)).exit(Exit::Apply, removing());
        }
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
    match shut_out(context, name, going, access, &step).await {
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
    going: &[&str],
    access: &Access,
    step: &Arc<Step>,
) -> anyhow::Result<()> {
    let nodes = context.config.nodes.iter();
    let rest = staying(nodes.map(|node| (node.name.value.as_str(), node)), going);
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
    let named = servers
        .iter()
        .map(|host| (host.name.as_str(), host.clone()));
    let servers = staying(named, going);
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

/// Who stays when all that the command names have gone: one that went before must not be let in again by the next one's turn.
fn staying<'n, T>(nodes: impl Iterator<Item = (&'n str, T)>, going: &[&str]) -> Vec<T> {
    nodes
        .filter(|(name, _)| !going.contains(name))
        .map(|(_, node)| node)
        .collect()
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
    fn who_goes_in_the_same_command_is_not_let_in_again() {
        let nodes = [("s0", 0), ("s1", 1), ("s2", 2)];
        assert_eq!(staying(nodes.into_iter(), &["s1", "s2"]), [0]);
    }

    #[test]
    fn a_kubeconfig_is_turned_where_its_server_goes_or_is_none_any_more() {
        let servers: Vec<_> = ["s0", "s1", "s2"]
            .map(|name| (name.to_owned(), format!("https://{name}:6443")))
            .into();
        let of = |url: &str, servers: &[(String, String)], going: &[&str]| {
            leads(Some(&format!("https://{url}:6443")), servers, going)
        };
        assert_eq!(of("s0", &servers, &["s0"]), Leads::Goes);
        assert_eq!(of("s0", &servers, &["s1"]), Leads::Stays);
        assert_eq!(of("s1", &servers, &["s2", "s1"]), Leads::Goes);
        // Out of orch.yaml already.
        assert_eq!(of("s0", &servers[1..], &["s0"]), Leads::Goes);
        assert_eq!(of("s0", &servers[1..2], &["s0"]), Leads::Goes);
        // An only server's, whatever its kubeconfig calls it, and nobody to turn to.
        assert_eq!(of("x", &servers[..1], &["s0"]), Leads::Stays);
        assert_eq!(of("s0", &servers[..1], &["a"]), Leads::Stays);
        // Behind one name they are one.
        let all = servers
            .iter()
            .map(|(name, _)| (name.clone(), "https://lb:6443".to_owned()));
        let all: Vec<_> = all.collect();
        assert_eq!(of("lb", &all, &["s0"]), Leads::Stays);
        assert_eq!(leads(None, &servers, &["s0"]), Leads::Stays);
    }

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
