//! `orch create`.

use super::{Context, cluster, doctor, machines};
use crate::cli::CreateArgs;
use crate::exit::{Exit, WithExit as _};

pub(super) async fn run(context: &Context, _arguments: &CreateArgs) -> anyhow::Result<()> {
    doctor::preflight(context).await?;
    let step = context.ui.step("machines");
    context
        .vagrant()
        .up(|event| machines::relay(&step, event))
        .await
        .exit(Exit::Machine, "bringing the machines up")?;
    step.done("up");
    cluster::finish(context, "cluster created");
    Ok(())
}
