//! `start`, `stop` and `destroy`: the machines that `create` made.

use super::{Context, cluster_remove, doctor, machines};
use crate::exit::{Exit, WithExit as _};
use crate::machines::Provider;
use crate::process::find_program;

pub(super) async fn stop(context: &Context) -> anyhow::Result<()> {
    if context.provider() == Provider::Ssh {
        return Err(anyhow::anyhow!(
            "the hosts of cluster {} are not orch's",
            context.cluster()
        ))
        .exit(
            Exit::Input,
            "orch stops only machines that it made; `orch destroy` removes K3s from the hosts",
        );
    }
    let vagrant = context.vagrant();
    if vagrant.has_machines() {
        let step = context.ui.step("machines");
        vagrant
            .halt(|event| machines::relay(&step, event))
            .await
            .exit(Exit::Machine, "stopping the machines")?;
        step.done("stopped; their data stays");
    } else {
        context
            .ui
            .note("there are no machines; `create` makes them");
    }
    finish(context, "cluster stopped");
    Ok(())
}

pub(super) async fn destroy(context: &Context, force: bool) -> anyhow::Result<()> {
    let step = context.ui.step("machines");
    if context.provider() == Provider::Ssh {
        cluster_remove::all(context, &step, force).await?;
    }
    let vagrant = context.vagrant();
    let resources = context.resources();
    // The registry is a container whatever makes the machines. Without Docker there is none.
    let uses_docker = find_program("docker").is_some();
    if uses_docker {
        doctor::engine(context).await?;
        resources
            .check_owner()
            .await
            .exit(Exit::Machine, "looking for the cluster's containers")?;
        resources
            .kill_nodes()
            .await
            .exit(Exit::Machine, "ending the machines")?;
    }
    if vagrant.has_machines() {
        vagrant
            .destroy(|event| machines::relay(&step, event))
            .await
            .exit(Exit::Machine, "destroying the machines")?;
    }
    if uses_docker {
        // Also what a killed run left and Vagrant never knew.
        resources.remove_all().await.exit(
            Exit::Machine,
            "removing the cluster's containers, network and volumes",
        )?;
    }
    for path in [context.project.kubeconfig(), context.project.state()] {
        machines::remove(&path)?;
    }
    step.done(if context.provider() == Provider::Ssh {
        "freed of K3s and orch; the hosts stay"
    } else {
        "gone, with their network and volumes"
    });
    finish(context, "cluster destroyed");
    Ok(())
}

/// The line that scripts wait for is the last one on stdout.
pub(super) fn finish(context: &Context, line: &str) {
    if context.ui.is_json() {
        context
            .ui
            .result_json(&serde_json::json!({"result": line, "phases": context.ui.phases()}));
    } else {
        context.ui.result(line);
    }
}
