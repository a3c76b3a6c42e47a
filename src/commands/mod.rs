//! What each command does, composed from the domains. The only place where they meet, and where
//! errors get their exit codes.

pub mod apply;
mod artifacts;
mod attest;
mod bundle;
mod bundle_collect;
mod bundled;
mod cluster;
mod cluster_keys;
mod cluster_labels;
mod cluster_nodes;
mod cluster_remove;
mod cluster_snapshot;
mod cluster_upgrade;
mod context;
mod create;
mod doctor;
mod idle;
pub mod images;
mod images_check;
mod images_exit;
mod images_gc;
mod images_reproduce;
pub mod images_settings;
mod images_text;
mod images_why;
mod kubeconfig;
mod machines;
mod manifests;
mod publish;
mod reach;
mod status;

use std::time::Duration;

use clap::CommandFactory as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::bundle::BundleCommand;
use crate::cli::cluster::{ClusterCommand, KeysCommand, SnapshotCommand};
use crate::cli::{Cli, Command, ConfigCommand, KubeconfigCommand, MachinesCommand};
use crate::config::images::ImagesOnly;
use crate::exit::{Exit, WithExit as _};
use crate::process;
use crate::ui::Ui;

pub use context::Context;

/// How long programs may clean up after themselves when nobody waits for their result any more.
const PATIENCE: Duration = Duration::from_secs(120);

/// How much later than a child's death of the same signal our own may be read.
const SIGNAL_LAG: Duration = Duration::from_millis(200);

/// Runs the command until it ends or a signal ends it.
pub async fn run(cli: Cli, ui: &Ui) -> anyhow::Result<Exit> {
    // One TLS implementation for every client in this process; a second call is refused and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match until_signalled(dispatch(cli, ui), signalled()).await {
        Some(result) => result,
        None => {
            ui.note("interrupted; run the same command again to go on from here");
            Ok(Exit::Interrupted)
        }
    };
    if process::is_ending() {
        ui.note("waiting for what still runs to clean up; Ctrl-C again ends it at once");
        tokio::select! {
            () = process::settle(PATIENCE) => {}
            () = signalled() => {}
        }
    }
    result
}

/// What the work came to, or `None` when the signal came first.
///
/// A terminal's Ctrl-C goes to our children too. One that dies of it is a failure that we may read before our own signal,
/// so that a failure is believed only after a moment without one.
async fn until_signalled<T, E>(
    work: impl Future<Output = Result<T, E>>,
    signalled: impl Future<Output = ()>,
) -> Option<Result<T, E>> {
    let mut signalled = std::pin::pin!(signalled);
    let result = tokio::select! {
        biased;
        () = &mut signalled => return None,
        result = work => result,
    };
    if result.is_err() && tokio::time::timeout(SIGNAL_LAG, signalled).await.is_ok() {
        return None;
    }
    Some(result)
}

/// Ends with Ctrl-C or a request to terminate.
async fn signalled() {
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signals) => signals.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate => {}
    }
}

/// Waits until no other orch works on this cluster's machines; the lock goes with the file.
async fn alone(context: &Context) -> anyhow::Result<std::fs::File> {
    let path = context.project.file();
    let file = std::fs::File::open(path)?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => {
                if !told {
                    told = true;
                    context.ui.note(&format!(
                        "waiting for another orch that works on {}",
                        path.display()
                    ));
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).exit(Exit::Host, format!("locking {}", path.display()));
            }
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
    if let Command::Bundle(arguments) = &cli.command {
        match &arguments.command {
            BundleCommand::Create(_) => {}
            BundleCommand::List(arguments) => {
                bundle::list(ui, arguments).await?;
                return Ok(Exit::Success);
            }
            BundleCommand::Install(arguments) => {
                bundle::install(ui, arguments).await?;
                return Ok(Exit::Success);
            }
        }
    }
    let command = match cli.command {
        Command::Images(arguments) => {
            match ImagesOnly::load(&cli.file)
                .exit(Exit::Input, "reading the project's description")?
            {
                Some(description) => {
                    doctor::enter_docker_group(ui);
                    return publish::run_alone(&cli.file, description, *arguments, ui).await;
                }
                None => Command::Images(arguments),
            }
        }
        command => command,
    };
    let context =
        Context::load(&cli.file, ui).exit(Exit::Input, "reading the cluster's description")?;
    let changes_machines = match &command {
        Command::Create(arguments) => !arguments.dry_run,
        Command::Start | Command::Stop | Command::Destroy(_) => true,
        Command::Cluster(arguments) => match &arguments.command {
            ClusterCommand::Up(arguments) => !arguments.dry_run,
            ClusterCommand::Remove(arguments) => !arguments.dry_run,
            ClusterCommand::Upgrade(arguments) => !arguments.dry_run,
            ClusterCommand::Keys(KeysCommand::Rotate(arguments)) => !arguments.dry_run,
            ClusterCommand::Snapshot(SnapshotCommand::Restore(_)) => true,
            _ => false,
        },
        _ => false,
    };
    let _lock = if changes_machines {
        Some(alone(&context).await?)
    } else {
        None
    };
    if changes_machines || matches!(command, Command::Images(_) | Command::Machines(_)) {
        doctor::enter_docker_group(&context.ui);
    }
    match command {
        Command::Create(arguments) => create::run(&context, &arguments).await?,
        Command::Start => create::start(&context).await?,
        Command::Stop => cluster::stop(&context).await?,
        Command::Destroy(arguments) => cluster::destroy(&context, arguments.force).await?,
        Command::Cluster(arguments) => return cluster_command(&context, arguments.command).await,
        Command::Images(arguments) => return publish::run(&context, *arguments).await,
        Command::Bundle(arguments) => {
            if let BundleCommand::Create(arguments) = &arguments.command {
                bundle::create(&context, arguments).await?;
            }
        }
        Command::Apply(arguments) => manifests::run(&context, &arguments).await?,
        Command::Status => status::run(&context).await?,
        Command::Doctor(arguments) => return doctor::run(&context, arguments.fix).await,
        Command::Machines(MachinesCommand::Prepare { provider }) => {
            machines::prepare_for_vagrant(&context, provider).await?;
        }
        Command::Machines(MachinesCommand::Clean) => machines::clean(&context).await?,
        Command::Kubeconfig(KubeconfigCommand::Import { server }) => {
            kubeconfig::import(&context, server.as_deref()).await?;
        }
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

async fn cluster_command(context: &Context, command: ClusterCommand) -> anyhow::Result<Exit> {
    match command {
        ClusterCommand::Plan(selection) => cluster_nodes::plan(context, &selection, false).await,
        ClusterCommand::Up(arguments) => cluster_nodes::up(context, &arguments).await,
        ClusterCommand::Upgrade(arguments) => cluster_upgrade::run(context, &arguments).await,
        ClusterCommand::Remove(arguments) => cluster_remove::run(context, &arguments).await,
        ClusterCommand::Keys(KeysCommand::Rotate(arguments)) => {
            cluster_keys::rotate(context, &arguments).await
        }
        ClusterCommand::Snapshot(command) => cluster_snapshot::run(context, &command).await,
        ClusterCommand::Facts(selection) => cluster_nodes::facts(context, &selection).await,
        ClusterCommand::Kubeconfig(arguments) => {
            kubeconfig::show(context, &arguments).map(|()| Exit::Success)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_that_a_signal_follows_at_once_is_an_interruption() {
        let failed = async || Err::<(), _>("a child died of SIGINT");
        let soon = tokio::task::yield_now();
        assert_eq!(until_signalled(failed(), soon).await, None);
        let never = std::future::pending();
        assert_eq!(
            until_signalled(failed(), never).await,
            Some(Err("a child died of SIGINT"))
        );
        let done = until_signalled(async { Ok::<_, ()>(1) }, tokio::task::yield_now()).await;
        assert_eq!(done, Some(Ok(1)));
    }
}
