//! `orch create`: the whole product as a list of steps.
//!
//! Each of them looks before it acts, so running it again is how an interrupted run goes on, and on
//! a live, unchanged cluster nothing happens.

use std::sync::Arc;

use super::{
    Context, artifacts as k3s, bundled, cluster, cluster_labels, cluster_nodes, doctor, machines,
    manifests, publish, status,
};
use crate::artifacts::{Artifacts, Source};
use crate::cli::CreateArgs;
use crate::cli::cluster::Access;
use crate::exit::{Exit, WithExit as _};
use crate::machines::Provider;

pub(super) async fn run(context: &Context, arguments: &CreateArgs) -> anyhow::Result<()> {
    if arguments.dry_run {
        return plan(context).await;
    }
    doctor::preflight(context).await?;
    let artifacts = artifacts(context).await?;
    let has_vagrant = context.provider() != Provider::Ssh;
    if has_vagrant {
        machines::prepare_step(context, &artifacts).await?;
    }
    let nodes = async {
        if has_vagrant {
            machines::up(context, &[]).await
        } else {
            cluster_nodes::run(context, &artifacts, &Access::default()).await
        }
    };
    tokio::try_join!(nodes, images(context))?;
    publish::attach_registry(context).await?;
    cluster_labels::reconcile(context, &[]).await?;
    manifests::apply_all(context, arguments.timeout).await?;
    status::report(context, Some(&artifacts)).await?;
    cluster::finish(context, "cluster created");
    Ok(())
}

/// `orch start`: the machines come back by themselves; this waits until everything on them has.
pub(super) async fn start(context: &Context) -> anyhow::Result<()> {
    if context.provider() == Provider::Ssh {
        return cluster_nodes::start(context).await;
    }
    if !context.vagrant().has_machines() {
        return Err(anyhow::anyhow!(
            "no machine of cluster {} exists",
            context.cluster()
        ))
        .exit(
            Exit::Machine,
            "there is nothing to start; `orch create` makes the machines",
        );
    }
    doctor::preflight(context).await?;
    machines::up(context, &[]).await?;
    publish::start_registry(context).await?;
    manifests::wait_all(context).await?;
    status::report(context, None).await?;
    cluster::finish(context, "cluster started");
    Ok(())
}

async fn artifacts(context: &Context) -> anyhow::Result<Artifacts> {
    let step = context.ui.step("artifacts");
    let artifacts = k3s::acquire(context, context.provider(), step.as_ref()).await?;
    let version = &context.config.k3s.version.value;
    step.done(&match &artifacts.source {
        Source::Directory => format!("K3s {version} from {}", artifacts.directory.display()),
        Source::Cache => format!("K3s {version} from the cache"),
        Source::Release => format!("K3s {version} from its release"),
        Source::Standin { reason } => format!("the stand-in for K3s, because {reason}"),
    });
    Ok(artifacts)
}

async fn images(context: &Context) -> anyhow::Result<()> {
    let step = context.ui.step("images");
    if let Some(unpacked) = bundled::find(context)? {
        let count = unpacked.announced.contents.images.len();
        step.done(&format!("{count} images from the bundle"));
        return Ok(());
    }
    let report = publish::push(context, Arc::clone(&step)).await?;
    step.done(&format!(
        "{} images pinned, {} requests, {} bytes sent",
        report.references.len(),
        report.requests,
        report.bytes_sent
    ));
    Ok(())
}

/// `--dry-run`: what each step would do, asked without changing anything.
async fn plan(context: &Context) -> anyhow::Result<()> {
    let ui = &context.ui;
    let mut lines = Vec::new();
    for missing in doctor::missing(context).await? {
        lines.push(format!(
            "preflight  {missing}: would be installed or started"
        ));
    }
    let has_vagrant = context.provider() != Provider::Ssh;
    let states = if has_vagrant && crate::process::find_program("vagrant").is_some() {
        context
            .vagrant()
            .status()
            .await
            .exit(Exit::Machine, "asking Vagrant")?
    } else {
        std::collections::BTreeMap::new()
    };
    for node in &context.config.nodes {
        let name = &node.name.value;
        lines.push(match states.get(name) {
            None if !has_vagrant => {
                format!("nodes      {name} would be checked; `orch cluster plan` says more")
            }
            Some(crate::machines::MachineState::Running) => {
                format!("machines   {name} runs; would be checked")
            }
            Some(crate::machines::MachineState::Stopped) => {
                format!("machines   {name} would be started")
            }
            _ => format!("machines   {name} would be made and provisioned"),
        });
    }
    if let Some(unpacked) = bundled::find(context)? {
        for image in &unpacked.announced.contents.images {
            lines.push(format!(
                "images     {} would be given to every node",
                crate::bundle::layout::name(image)
            ));
        }
    } else {
        for step in publish::plan(context).await? {
            lines.push(format!("images     {step}"));
        }
    }
    for stack in &context.config.stacks {
        lines.push(format!(
            "apply      {} would be applied",
            context.path(&stack.manifests).display()
        ));
    }
    if ui.is_json() {
        ui.result_json(&serde_json::json!({"plan": lines}));
    } else {
        for line in lines {
            ui.result(&line);
        }
    }
    Ok(())
}
