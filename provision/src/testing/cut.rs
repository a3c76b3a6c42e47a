//! A machine on which a run is killed at its n-th access: to a file, a program, a service, the network, or to whoever reads
//! its events.
//!
//! A file that is written whole counts twice, as it does on a disk: the temporary file, and its new name.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orch_contract::Event;
use orch_runner::{Reporter, StepReport};

use crate::system::{
    CommandError, Commands, Download, DownloadError, Endpoints, FileError, Files, Finished,
    Invocation, Services, Space, System, UnitState, temporary,
};

/// What a killed run unwinds with; nothing catches it on the way.
struct Killed;

/// Everything that a run touches, until it has touched it so often.
pub(crate) struct Cut<'a> {
    pub(crate) system: System<'a>,
    accesses: AtomicUsize,
    last: usize,
}

impl<'a> Cut<'a> {
    /// Allows so many accesses and kills the run at the next one.
    pub(crate) fn after(system: System<'a>, accesses: usize) -> Self {
        Self {
            system,
            accesses: AtomicUsize::new(0),
            last: accesses,
        }
    }

    pub(crate) fn system(&self) -> System<'_> {
        System {
            files: self,
            commands: self,
            services: self,
            download: self,
            endpoints: self,
        }
    }

    pub(crate) fn accesses(&self) -> usize {
        self.accesses.load(Ordering::SeqCst)
    }

    fn count(&self) {
        if self.accesses.fetch_add(1, Ordering::SeqCst) >= self.last {
            resume_unwind(Box::new(Killed));
        }
    }
}

/// Runs to the end, or until it is killed.
pub(crate) async fn until_killed<T>(run: impl Future<Output = T>) -> Option<T> {
    let mut run = Box::pin(run);
    poll_fn(
        |context| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(context))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(payload) => {
                let payload: Box<dyn Any + Send> = payload;
                if !payload.is::<Killed>() {
                    resume_unwind(payload);
                }
                Poll::Ready(None)
            }
        },
    )
    .await
}

impl Reporter for Cut<'_> {
    fn report(&self, _: Event) {
        self.count();
    }
}

impl Files for Cut<'_> {
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        self.count();
        self.system.files.read(path)
    }

    fn mode(&self, path: &Path) -> Result<Option<u32>, FileError> {
        self.count();
        self.system.files.mode(path)
    }

    fn set_mode(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        self.count();
        self.system.files.set_mode(path, mode)
    }

    fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
        self.count();
        let temporary = temporary(path);
        self.system.files.write(&temporary, content, mode)?;
        self.count();
        self.system.files.rename(&temporary, path)
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<String, FileError> {
        self.count();
        let temporary = temporary(to);
        let digest = self.system.files.copy(from, &temporary, mode)?;
        self.count();
        self.system.files.rename(&temporary, to)?;
        Ok(digest)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.count();
        self.system.files.rename(from, to)
    }

    fn sha256(&self, path: &Path) -> Result<Option<String>, FileError> {
        self.count();
        self.system.files.sha256(path)
    }

    fn list(&self, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
        self.count();
        self.system.files.list(directory)
    }

    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        self.count();
        self.system.files.create_directory(path, mode)
    }

    fn symlink(&self, target: &Path, link: &Path) -> Result<(), FileError> {
        self.count();
        self.system.files.symlink(target, link)
    }

    fn link_target(&self, path: &Path) -> Result<Option<PathBuf>, FileError> {
        self.count();
        self.system.files.link_target(path)
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        self.count();
        self.system.files.remove(path)
    }

    fn write_kernel(&self, path: &Path, value: &str) -> Result<(), FileError> {
        self.count();
        self.system.files.write_kernel(path, value)
    }

    fn space(&self, path: &Path) -> Result<Space, FileError> {
        self.count();
        self.system.files.space(path)
    }
}

#[async_trait]
impl Commands for Cut<'_> {
    async fn run(&self, invocation: &Invocation) -> Result<Finished, CommandError> {
        self.count();
        self.system.commands.run(invocation).await
    }
}

#[async_trait]
impl Services for Cut<'_> {
    async fn reload(&self) -> Result<(), CommandError> {
        self.count();
        self.system.services.reload().await
    }

    async fn enable(&self, unit: &str) -> Result<(), CommandError> {
        self.count();
        self.system.services.enable(unit).await
    }

    async fn begin_restart(&self, unit: &str) -> Result<(), CommandError> {
        self.count();
        self.system.services.begin_restart(unit).await
    }

    async fn stop(&self, unit: &str) -> Result<(), CommandError> {
        self.count();
        self.system.services.stop(unit).await
    }

    async fn state(&self, unit: &str) -> Result<UnitState, CommandError> {
        self.count();
        self.system.services.state(unit).await
    }

    async fn journal(
        &self,
        unit: &str,
        since: Timestamp,
        lines: u32,
    ) -> Result<Vec<String>, CommandError> {
        self.count();
        self.system.services.journal(unit, since, lines).await
    }
}

#[async_trait]
impl Download for Cut<'_> {
    async fn fetch(
        &self,
        url: &str,
        to: &Path,
        timeout: Duration,
        report: &StepReport<'_>,
    ) -> Result<(), DownloadError> {
        self.count();
        self.system.download.fetch(url, to, timeout, report).await
    }
}

#[async_trait]
impl Endpoints for Cut<'_> {
    async fn http_status(&self, address: SocketAddr, path: &str) -> io::Result<String> {
        self.count();
        self.system.endpoints.http_status(address, path).await
    }
}
