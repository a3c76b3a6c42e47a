//! `orch-provision facts`: what this machine is, as one JSON document.

use orch_contract::ExitCode;
use orch_runner::StepFailure;

use crate::facts;
use crate::output;
use crate::system::{Disk, Https, Processes, Sockets, System, Systemd};

pub(crate) async fn run() -> Result<(), StepFailure> {
    let commands = Processes;
    let services = Systemd::new(&commands);
    let system = System {
        files: &Disk,
        commands: &commands,
        services: &services,
        download: &Https,
        endpoints: &Sockets,
    };
    let facts = facts::gather(&system).await;
    output::document(&facts).map_err(|error| StepFailure::new(ExitCode::Failure, error))
}
