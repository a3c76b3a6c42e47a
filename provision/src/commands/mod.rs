//! The commands: each composes steps or services and decides nothing else.

pub(crate) mod facts;
pub(crate) mod reset;
pub(crate) mod serve;
pub(crate) mod up;

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orch_contract::{ConfigError, Event, ExitCode, LogLevel, NodeConfig};
use orch_runner::{ExitCoded, Reporter, StepFailure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::signal::unix::{SignalKind, signal};

/// Held by whoever changes this machine.
const LOCK: &str = "/run/orch-provision.lock";

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
    #[error("cannot lock {}, which keeps two provisioners from working on this node at once", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("interrupted; run the same command again to go on")]
    Interrupted,
    #[error("whoever started this run has gone away; run the same command again to go on")]
    Abandoned,
}

impl ExitCoded for CommandFailure {
    fn exit_code(&self) -> ExitCode {
        match self {
            CommandFailure::Read { .. }
            | CommandFailure::Invalid { .. }
            | CommandFailure::Role { .. } => ExitCode::Config,
            CommandFailure::Program(_)
            | CommandFailure::Signals(_)
            | CommandFailure::Lock { .. } => ExitCode::Failure,
            CommandFailure::Interrupted | CommandFailure::Abandoned => ExitCode::Interrupted,
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

/// Waits until no other provisioner works on this node. The lock goes with the file.
async fn alone(path: &Path, reporter: &dyn Reporter) -> Result<File, CommandFailure> {
    const INTERVAL: Duration = Duration::from_millis(200);
    let failed = |source| CommandFailure::Lock {
        path: path.to_owned(),
        source,
    };
    let file = File::create(path).map_err(failed)?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        if !told {
            told = true;
            reporter.report(Event::Log {
                level: LogLevel::Info,
                step: None,
                message: "waiting for another provisioner that works on this node".to_owned(),
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Runs until done, or until nobody reads its events any more: a cut SSH connection sends no signal to a program without a
/// terminal, and one that went on would keep the node from the next run.
async fn attended<T>(work: impl Future<Output = Result<T, StepFailure>>) -> Result<T, StepFailure> {
    interruptible(async {
        tokio::select! {
            result = work => result,
            () = abandoned(io::stdout()) => Err(CommandFailure::Abandoned.into()),
        }
    })
    .await
}

/// Runs until done or until SIGINT, SIGTERM or SIGHUP. Every step may be stopped at any moment: files are replaced whole, and the
/// next run looks at the machine again.
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

/// Ends when the other end of this pipe, socket or terminal is closed; of a file, never.
async fn abandoned(output: impl AsFd + Send + 'static) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // Not one of the runtime's threads: it would wait for this one at the end.
    std::thread::spawn(move || {
        let closed = PollFlags::ERR | PollFlags::HUP;
        loop {
            let mut polled = [PollFd::new(&output, PollFlags::empty())];
            match poll(&mut polled, None) {
                Ok(_) if polled[0].revents().intersects(closed) => break,
                Ok(_) if polled[0].revents().contains(PollFlags::NVAL) => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
        // The run may have ended meanwhile.
        let _ = sender.send(());
    });
    if receiver.await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use orch_runner::Recorder;

    use super::*;

    #[tokio::test]
    async fn a_run_is_abandoned_when_its_output_has_no_reader() {
        let (reader, writer) = io::pipe().unwrap();
        let (theirs, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut pipe = Box::pin(abandoned(writer));
        let mut socket = Box::pin(abandoned(ours));
        let mut file = Box::pin(abandoned(file));
        let short = Duration::from_millis(100);
        assert!(tokio::time::timeout(short, &mut pipe).await.is_err());
        assert!(tokio::time::timeout(short, &mut socket).await.is_err());
        drop((reader, theirs));
        pipe.await;
        socket.await;
        assert!(tokio::time::timeout(short, &mut file).await.is_err());
    }

    #[tokio::test]
    async fn the_second_waits_for_the_first_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let recorder = Recorder::default();
        let first = alone(&path, &recorder).await.unwrap();
        let second = alone(&path, &recorder);
        tokio::pin!(second);
        let waited = tokio::time::timeout(Duration::from_millis(500), &mut second).await;
        assert!(waited.is_err());
        assert_eq!(recorder.events().len(), 1);
        drop(first);
        second.await.unwrap();
    }
}
