//! The commands: each composes steps or services and decides nothing else.

pub(crate) mod reset;
pub(crate) mod serve;
pub(crate) mod up;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use orch_contract::{ConfigError, ExitCode, NodeConfig};
use orch_runner::{ExitCoded, StepFailure};
use tokio::signal::unix::{SignalKind, signal};

/// What goes wrong before the first step.
#[derive(Debug, thiserror::Error)]
enum CommandFailure {
    #[error("cannot read the node's configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the node's configuration {} is not valid", path.display())]
    Invalid { path: PathBuf, source: ConfigError },
    #[error("--role is {asked}, but {} makes this node a {configured}", path.display())]
    Role {
        path: PathBuf,
        asked: orch_contract::Role,
        configured: orch_contract::Role,
    },
    #[error("cannot find out where this program is")]
    Program(#[source] io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("interrupted; run the same command again to go on")]
    Interrupted,
}

impl ExitCoded for CommandFailure {
    fn exit_code(&self) -> ExitCode {
        match self {
            CommandFailure::Read { .. }
            | CommandFailure::Invalid { .. }
            | CommandFailure::Role { .. } => ExitCode::Config,
            CommandFailure::Program(_) | CommandFailure::Signals(_) => ExitCode::Failure,
            CommandFailure::Interrupted => ExitCode::Interrupted,
        }
    }
}

fn load_config(path: &Path) -> Result<NodeConfig, CommandFailure> {
    let text = fs::read_to_string(path).map_err(|source| CommandFailure::Read {
        path: path.to_owned(),
        source,
    })?;
    NodeConfig::from_json(&text).map_err(|source| CommandFailure::Invalid {
        path: path.to_owned(),
        source,
    })
}

/// Runs until done or until SIGINT, SIGTERM or SIGHUP. Every step is safe to stop at any moment:
/// files are replaced whole, and the next run looks at the machine again.
async fn interruptible<T>(
    work: impl Future<Output = Result<T, StepFailure>>,
) -> Result<T, StepFailure> {
    let mut signals = Vec::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        signals.push(signal(kind).map_err(CommandFailure::Signals)?);
    }
    let [interrupt, terminate, hangup] = signals.as_mut_slice() else {
        return work.await;
    };
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(CommandFailure::Interrupted.into()),
        _ = terminate.recv() => Err(CommandFailure::Interrupted.into()),
        _ = hangup.recv() => Err(CommandFailure::Interrupted.into()),
    }
}
