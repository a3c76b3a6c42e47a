//! `orch cluster keys rotate`: new keys for the join service and for every node, in three stages in which everybody can join.

use orch_contract::{ClusterKeys, NodeName};
use orch_ssh::keys::{Stage, advance_rotation, begin_rotation, read_rotation};

use super::{Context, cluster, cluster_nodes, machines};
use crate::cli::cluster::RotateArgs;
use crate::exit::{Exit, WithExit as _};

const ROTATING: &str = "rotating the join service's keys";

pub(super) async fn rotate(context: &Context, arguments: &RotateArgs) -> anyhow::Result<Exit> {
    let keys = ClusterKeys::new(context.project.state().join("keys"));
    let all = names(context)?;
    let of = if arguments.only.is_empty() {
        all.clone()
    } else {
        chosen(&all, &arguments.only)?
    };
    let begun = read_rotation(&keys).exit(Exit::Machine, ROTATING)?;
    if let Some(rotation) = &begun {
        context.ui.note(&format!(
            "an earlier rotation goes on, at stage {}",
            word(rotation.stage)
        ));
    }
    if arguments.dry_run {
        let names: Vec<_> = of.iter().map(NodeName::as_str).collect();
        let service = if arguments.only.is_empty() {
            "the join service and "
        } else {
            ""
        };
        context.ui.result(&format!(
            "{service}{} would get new keys, in three visits to every node",
            names.join(", ")
        ));
        return Ok(Exit::Success);
    }
    let provider = context.provider();
    let step = context.ui.step("artifacts");
    let artifacts = machines::acquire_artifacts(context, provider, step.as_ref()).await?;
    step.done("verified");
    let host = arguments.only.is_empty();
    let mut rotation = Some(begin_rotation(&keys, &all, host, &of).exit(Exit::Machine, ROTATING)?);
    while let Some(stage) = rotation.as_ref().map(|rotation| rotation.stage) {
        context.ui.note(&format!("keys: {}", meaning(stage)));
        // A stage ends when every node has its files: each was brought them, and its provisioner accepted them.
        cluster_nodes::run(context, &artifacts, &arguments.access).await?;
        rotation = advance_rotation(&keys, &all).exit(Exit::Machine, ROTATING)?;
    }
    cluster::finish(context, "keys rotated");
    Ok(Exit::Success)
}

fn names(context: &Context) -> anyhow::Result<Vec<NodeName>> {
    let nodes = context.config.nodes.iter();
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
