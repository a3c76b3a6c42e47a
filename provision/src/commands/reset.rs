//! `orch-provision reset`: takes K3s and orch off this machine; data in the shared directory stays.

use std::path::Path;

use orch_contract::{ExitCode, NameError, NodeName, Outcome};
use orch_runner::{ExitCoded, Reporter, Runner, StepFailure};

use super::{LOCK, alone, attended};
use crate::cli::ResetArgs;
use crate::output::StdoutReporter;
use crate::remove::{ClearNetwork, DeleteFiles, KillContainers, StopServices, UnmountVolumes};
use crate::system::{Disk, Https, Processes, Sockets, System, Systemd};

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
enum ResetError {
    #[error("orch-provision must run as root; use sudo")]
    NotRoot,
    #[error("this machine's host name cannot be a node's; set another one")]
    HostName(#[source] NameError),
}

impl ExitCoded for ResetError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Host
    }
}

pub(crate) async fn run(arguments: ResetArgs) -> Result<ExitCode, StepFailure> {
    if !rustix::process::geteuid().is_root() {
        return Err(ResetError::NotRoot.into());
    }
    let commands = Processes;
    let services = Systemd::new(&commands);
    let system = System {
        files: &Disk,
        commands: &commands,
        services: &services,
        download: &Https,
        endpoints: &Sockets,
    };
    let reporter = StdoutReporter {
        node: this_machine().map_err(ResetError::HostName)?,
        output: arguments.output,
    };
    attended(async {
        let _lock = if arguments.dry_run {
            None
        } else {
            Some(alone(Path::new(LOCK), &reporter).await?)
        };
        let outcome = remove(system, &reporter, arguments.dry_run).await?;
        Ok(match outcome {
            Outcome::Planned => ExitCode::Changes,
            _ => ExitCode::Success,
        })
    })
    .await
}

/// The configuration may be gone or broken, so the name is the machine's own, as far as it can be a
/// node's.
fn this_machine() -> Result<NodeName, NameError> {
    let host = rustix::system::uname();
    let name: String = host
        .nodename()
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    name.trim_matches('-').parse()
}

async fn remove(
    system: System<'_>,
    reporter: &dyn Reporter,
    dry_run: bool,
) -> Result<Outcome, StepFailure> {
    let mut runner = Runner::new(reporter, dry_run);
    let result = async {
        runner.run(&StopServices { system }).await?;
        runner.run(&KillContainers { system }).await?;
        runner.run(&UnmountVolumes { system }).await?;
        runner.run(&ClearNetwork { system }).await?;
        runner.run(&DeleteFiles { system }).await
    }
    .await;
    let outcome = runner.finish(result.is_err());
    result.map(|()| outcome)
}

#[cfg(test)]
mod tests;
