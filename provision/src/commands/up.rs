//! `orch-provision up`: the whole story of a node, from top to bottom.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orch_contract::{Event, ExitCode, NodeConfig, Outcome, Role};
use orch_runner::{Reporter, Runner, StepFailure};

use super::{CommandFailure, LOCK, alone, attended, load_config};
use crate::cli::UpArgs;
use crate::evidence::Surroundings;
use crate::output::StdoutReporter;
use crate::steps::{
    AcquireK3s, CheckHost, Context, HostFacts, InstalledK3s, MakeVolumes, Membership, MountStorage,
    PrepareHost, RequestJoin, ServeJoin, StartK3s, WaitReady, WriteConfig, WriteUnits,
};
use crate::system::{Disk, Files, Https, Processes, Sockets, Staged, System, Systemd};

/// The steps of a node, in their order.
fn steps(config: &NodeConfig) -> Vec<String> {
    let is_server = config.node.role == Role::Server;
    let all = [
        ("check_host", true),
        ("prepare_host", true),
        ("mount_storage", true),
        ("make_volumes", config.is_first_server()),
        ("acquire_k3s", true),
        ("serve_join", is_server),
        ("request_join", joins(config)),
        ("write_config", true),
        ("write_units", true),
        ("start_server", is_server),
        ("start_agent", !is_server),
        ("wait_ready", true),
    ];
    let own = all.into_iter().filter(|(_, is_own)| *is_own);
    own.map(|(name, _)| name.to_owned()).collect()
}

/// Whether there is a server that this node may join. Also the first of several may: it may have lost its data.
fn joins(config: &NodeConfig) -> bool {
    config.other_servers().next().is_some()
}

pub(crate) async fn run(arguments: UpArgs) -> Result<ExitCode, StepFailure> {
    let disk: Box<dyn Files> = match &arguments.staged {
        Some(folder) => Box::new(Staged::new(Disk, folder.clone())),
        None => Box::new(Disk),
    };
    let config = load_config(&disk.locate(&arguments.config))?;
    let asked = Role::from(arguments.role);
    if asked != config.node.role {
        return Err(CommandFailure::Role {
            path: arguments.config,
            asked,
            configured: config.node.role,
        }
        .into());
    }
    let program = std::env::current_exe().map_err(CommandFailure::Program)?;
    let commands = Processes;
    let services = Systemd::new(&commands);
    let system = System {
        files: disk.as_ref(),
        commands: &commands,
        services: &services,
        download: &Https,
        endpoints: &Sockets,
    };
    let reporter = StdoutReporter {
        node: config.node.name.clone(),
        output: arguments.output,
    };
    let up = Up {
        context: Context {
            system,
            config: &config,
        },
        program,
        config_path: arguments.config,
        is_root: rustix::process::geteuid().is_root(),
        is_new_cluster: arguments.new_cluster,
    };
    attended(async {
        let _lock = if up.is_root && !arguments.dry_run {
            Some(alone(Path::new(LOCK), &reporter).await?)
        } else {
            None
        };
        up.run(&reporter, arguments.dry_run)
            .await
            .map(|outcome| match outcome {
                Outcome::Planned => ExitCode::Changes,
                _ => ExitCode::Success,
            })
    })
    .await
}

/// One run of `up` on one machine.
pub(crate) struct Up<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) program: PathBuf,
    pub(crate) config_path: PathBuf,
    pub(crate) is_root: bool,
    /// No server of this cluster has been up before, as far as the host knows.
    pub(crate) is_new_cluster: bool,
}

impl Up<'_> {
    pub(crate) async fn run(
        &self,
        reporter: &dyn Reporter,
        dry_run: bool,
    ) -> Result<Outcome, StepFailure> {
        let role = self.config().node.role;
        reporter.report(Event::RunStarted {
            role,
            provisioner: env!("CARGO_PKG_VERSION").to_owned(),
            steps: steps(self.config()),
            dry_run,
        });
        let surroundings = Surroundings::new(self.context, Timestamp::now());
        let mut runner = Runner::new(reporter, dry_run).with_witness(&surroundings);
        let result = self.run_steps(&mut runner).await;
        if let (Ok(installed), false) = (&result, dry_run) {
            reporter.report(Event::NodeReady {
                role,
                k3s_version: installed.version_line.clone(),
            });
        }
        let outcome = runner.finish(result.is_err());
        result.map(|_| outcome)
    }

    fn config(&self) -> &NodeConfig {
        self.context.config
    }

    async fn run_steps(&self, runner: &mut Runner<'_>) -> Result<InstalledK3s, StepFailure> {
        let context = self.context;
        let host: HostFacts = runner
            .run(&CheckHost {
                context,
                is_root: self.is_root,
                now: Timestamp::now(),
            })
            .await?;
        runner.run(&PrepareHost { context }).await?;
        runner.run(&MountStorage { context }).await?;
        if self.config().is_first_server() {
            runner.run(&MakeVolumes { context }).await?;
        }
        let installed = runner
            .run(&AcquireK3s {
                context,
                architecture: host.architecture,
            })
            .await?;
        // Before this server asks the others: they may be asking it.
        if self.config().node.role == Role::Server {
            let serve_join = ServeJoin {
                context,
                program: self.program.clone(),
                config_path: self.config_path.clone(),
            };
            runner.run(&serve_join).await?;
        }
        let membership = if joins(self.config()) {
            let request_join = RequestJoin {
                context,
                is_new_cluster: self.is_new_cluster,
            };
            runner.run(&request_join).await?
        } else {
            Membership::FOUNDER
        };
        let write_config = runner
            .prepared(
                "write_config",
                WriteConfig::plan(context, &host, &membership.place),
            )
            .await?;
        let config = runner.run(&write_config).await?;
        let units = runner.run(&WriteUnits::plan(context)).await?;
        let start = StartK3s::new(context, &installed, [config, units], &membership);
        runner.run(&start).await?;
        runner.run(&WaitReady { context }).await?;
        Ok(installed)
    }
}

#[cfg(test)]
mod drift_tests;

#[cfg(test)]
mod plan_tests;

#[cfg(test)]
mod resume_tests;

#[cfg(test)]
mod servers_tests;

#[cfg(test)]
mod tests;
