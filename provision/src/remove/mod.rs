//! The steps of `orch-provision reset`, in the order of `commands/reset.rs`.
//!
//! They undo what K3s and orch put on a machine. The content of the shared directory is data and
//! never touched.

mod clear_network;
mod delete_files;
mod kill_containers;
mod stop_services;
mod unmount_volumes;

pub(crate) use clear_network::ClearNetwork;
pub(crate) use delete_files::DeleteFiles;
pub(crate) use kill_containers::KillContainers;
pub(crate) use stop_services::StopServices;
pub(crate) use unmount_volumes::UnmountVolumes;

use orch_contract::ExitCode;
use orch_runner::ExitCoded;

use crate::system::{CommandError, FileError};

/// Why something could not be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("some processes of containers do not end: {}", processes.join(", "))]
    StillRunning { processes: Vec<String> },
    #[error("these cannot be removed from the network: {}", left.join(", "))]
    NetworkLeft { left: Vec<String> },
}

impl ExitCoded for RemoveError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Failure
    }
}
