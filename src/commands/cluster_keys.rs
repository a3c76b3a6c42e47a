//! `orch cluster keys rotate`: new keys for the join service and for every node, in three stages in which everybody can join.

use std::collections::BTreeSet;
use std::sync::Arc;

use orch_contract::{ClusterKeys, NodeName};
use orch_ssh::keys::{Roster, Stage, advance_rotation, begin_rotation, read_rotation};

use super::cluster_nodes::{Shown, failures};
use super::{Context, cluster, idle, machines, reach};
use crate::cli::cluster::{Access, RotateArgs};
use crate::config;
use crate::exit::{Exit, WithExit as _};
use crate::nodes;

const ROTATING: &str = "rotating the join service's keys";

pub(super) async fn rotate(context: &Context, arguments: &RotateArgs) -> anyhow::Result<Exit> {
    let keys = ClusterKeys::new(context.project.state().join("keys"));
    let all = names(context.config.nodes.iter())?;
    let servers = names(context.config.servers())?;
    let roster = Roster {
        nodes: &all,
        servers: &servers,
    };
    let host = arguments.only.is_empty();
    let of = if host {
        all.clone()
    } else {
        chosen(&all, &arguments.only)?
    };
    let asked = whose(host, &of);
    let begun = read_rotation(&keys).exit(Exit::Machine, ROTATING)?;
    // What was cut off is only the same rotation when it was begun for the same keys.
    let mut earlier = None;
    if let Some(rotation) = begun {
        let begun_for = whose(rotation.host, &rotation.nodes);
        context.ui.note(&format!(
            "an earlier rotation, of the keys of {begun_for}, goes on at stage {}",
            word(rotation.stage)
        ));
        earlier = (begun_for != asked).then_some(begun_for);
    }
    if arguments.dry_run {
        context.ui.result(&format!(
            "{asked} would get new keys, in three visits to every node"
        ));
        return Ok(Exit::Changes);
    }
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    idle::refuse(context, &names).await?;
    if let Some(begun_for) = earlier {
        to_the_end(context, &keys, roster, host, &of, &arguments.access).await?;
        context.ui.note(&format!(
            "new keys: {begun_for}; now to what was asked for, {asked}"
        ));
    }
    to_the_end(context, &keys, roster, host, &of, &arguments.access).await?;
    context.ui.note(&format!("new keys: {asked}"));
    cluster::finish(context, "keys rotated");
    Ok(Exit::Success)
}

/// Takes the rotation that is under way through its stages; without one, begins the one that is asked for. Nodes get their
/// keys and nothing else: what else differs from orch.yaml is for `up`.
async fn to_the_end(
    context: &Context,
    keys: &ClusterKeys,
    roster: Roster<'_>,
    host: bool,
    of: &[NodeName],
    access: &Access,
) -> anyhow::Result<()> {
    let mut rotation = Some(begin_rotation(keys, roster, host, of).exit(Exit::Machine, ROTATING)?);
    while let Some(stage) = rotation.as_ref().map(|rotation| rotation.stage) {
        context.ui.note(&format!("keys: {}", meaning(stage)));
        // A stage ends when every node has its files.
        bring(context, access).await?;
        rotation = advance_rotation(keys, roster).exit(Exit::Machine, ROTATING)?;
    }
    Ok(())
}

/// Brings every node the keys of this stage.
async fn bring(context: &Context, access: &Access) -> anyhow::Result<()> {
    let nodes: Vec<_> = context.config.nodes.iter().collect();
    machines::renew_keys(context, &nodes)?;
    let step = context.ui.step("keys");
    let hosts = reach::hosts(context)?;
    let options = reach::options(context, access)?;
    let reports = nodes::renew_keys(&hosts, &options, &Shown(Arc::clone(&step))).await;
    failures(
        &reports,
        "bringing the nodes their keys; everybody can join meanwhile, run this again to go on",
    )?;
    step.done(&format!("{} nodes have theirs", reports.len()));
    Ok(())
}

/// Whose keys a rotation is of, for people.
fn whose<'n>(host: bool, nodes: impl IntoIterator<Item = &'n NodeName>) -> String {
    let nodes: BTreeSet<&str> = nodes.into_iter().map(NodeName::as_str).collect();
    let service = host.then_some("the join service");
    let names: Vec<_> = service.into_iter().chain(nodes).collect();
    names.join(", ")
}

fn names<'a>(nodes: impl Iterator<Item = &'a config::Node>) -> anyhow::Result<Vec<NodeName>> {
    nodes
        .map(|node| {
            let name = node.name.value.parse();
            name.exit(Exit::Input, "reading the nodes' names")
        })
        .collect()
}

fn chosen(all: &[NodeName], only: &[String]) -> anyhow::Result<Vec<NodeName>> {
    only.iter()
        .map(|name| {
            let known = all.iter().find(|node| node.as_str() == name);
            known
                .cloned()
                .ok_or_else(|| anyhow::anyhow!("orch.yaml has no node {name:?}"))
                .exit(Exit::Input, "choosing nodes")
        })
        .collect()
}

const fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Introduce => "introduce",
        Stage::Switch => "switch",
        Stage::Retire => "retire",
    }
}

const fn meaning(stage: Stage) -> &'static str {
    match stage {
        Stage::Introduce => "everybody comes to accept the new ones beside the old",
        Stage::Switch => "everybody comes to show the new ones",
        Stage::Retire => "nobody accepts the old ones any more",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_known_by_whose_keys_it_is_of() {
        let node = |name: &str| name.parse::<NodeName>().unwrap();
        let (one, two) = (node("one"), node("two"));
        assert_eq!(whose(true, [&two, &one]), "the join service, one, two");
        assert_eq!(whose(false, [&two]), "two");
        assert_ne!(whose(true, [&two]), whose(false, [&two]));
    }
}
