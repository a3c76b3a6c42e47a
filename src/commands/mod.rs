//! What each command does, composed from the domains. The only place where they meet, and where
//! errors get their exit codes.

pub mod apply;
mod cluster;
mod context;
mod create;
mod doctor;
pub mod images;
mod kubeconfig;
mod machines;
mod manifests;
mod publish;
mod status;

use clap::CommandFactory as _;

use crate::cli::{Cli, Command, ConfigCommand, KubeconfigCommand, MachinesCommand};
use crate::exit::{Exit, WithExit as _};
use crate::ui::Ui;

pub use context::Context;

/// Runs the command until it ends or Ctrl-C does.
pub async fn run(cli: Cli, ui: &Ui) -> anyhow::Result<Exit> {
    // One TLS implementation for every client in this process; a second call is refused and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::select! {
        result = dispatch(cli, ui) => result,
        _ = tokio::signal::ctrl_c() => {
            ui.note("interrupted; run the same command again to go on from here");
            Ok(Exit::Interrupted)
        }
    }
}

async fn dispatch(cli: Cli, ui: &Ui) -> anyhow::Result<Exit> {
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "orch", &mut script);
        ui.result(String::from_utf8_lossy(&script).trim_end());
        return Ok(Exit::Success);
    }
    let context =
        Context::load(&cli.file, ui).exit(Exit::Input, "reading the cluster's description")?;
    match cli.command {
        Command::Create(arguments) => create::run(&context, &arguments).await?,
        Command::Start => create::start(&context).await?,
        Command::Stop => cluster::stop(&context).await?,
        Command::Destroy => cluster::destroy(&context).await?,
        Command::Images(arguments) => return publish::run(&context, arguments).await,
        Command::Apply(arguments) => manifests::run(&context, &arguments).await?,
        Command::Status => status::run(&context).await?,
        Command::Doctor(arguments) => return doctor::run(&context, arguments.fix).await,
        Command::Machines(MachinesCommand::Prepare { provider }) => {
            machines::prepare_for_vagrant(&context, provider).await?;
        }
        Command::Machines(MachinesCommand::Clean) => machines::clean(&context).await?,
        Command::Kubeconfig(KubeconfigCommand::Import) => kubeconfig::import(&context)?,
        Command::Kubeconfig(KubeconfigCommand::Path) => {
            ui.result(&context.project.kubeconfig().display().to_string());
        }
        Command::Kubectl(arguments) => kubeconfig::kubectl(&context, &arguments.arguments).await?,
        Command::Config(ConfigCommand::Check) => {
            ui.result(&format!("{} is valid", context.project.file().display()));
        }
        Command::Completions { .. } => {}
    }
    Ok(Exit::Success)
}
