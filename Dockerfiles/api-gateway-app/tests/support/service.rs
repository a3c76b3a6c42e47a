//! One of the services, run as its real binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::StatusCode;
use uuid::Uuid;

use super::http;
use super::process::{Process, free_port};
use super::wait::until;

/// How much of a service's log a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// Environment variables for a service.
pub(crate) type Variables = Vec<(&'static str, String)>;

/// A running service on a port of its own, killed on drop.
pub(crate) struct Service {
    process: Process,
    log: PathBuf,
    url: String,
}

impl Service {
    /// Starts the binary with nothing in its environment but `variables`, and waits until it
    /// answers; whether it is ready is up to what it depends on.
    pub(crate) async fn start(binary: &str, variables: &[Variables]) -> Self {
        let name = Path::new(binary).file_name().unwrap().to_string_lossy();
        let log = std::env::temp_dir().join(format!("{name}-{}.log", Uuid::now_v7()));
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(binary);
        command.env_clear().env("LISTEN_ADDR", &address);
        command.envs(
            variables
                .iter()
                .flatten()
                .map(|(name, value)| (name, value)),
        );
        let mut service = Self {
            process: Process::start(&mut command, &log),
            log,
            url: format!("http://{address}"),
        };
        let health = service.url("/healthz");
        until("the service answers", async || {
            assert!(service.process.is_running(), "it ended: {}", service.log());
            http::get(&health).await
        })
        .await;
        service
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(crate) async fn until_readiness(&self, status: StatusCode) {
        let url = self.url("/readyz");
        until(&format!("{url} answers {status}"), async || {
            http::get(&url)
                .await
                .filter(|answer| answer.status == status)
        })
        .await;
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Asks it to stop, as Kubernetes does, and waits until it has; the log's last line.
    pub(crate) async fn stop(mut self) -> String {
        self.process.signal("TERM");
        until("the service ends", async || {
            (!self.process.is_running()).then_some(())
        })
        .await;
        self.log().lines().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("log of {}:\n{}", self.url, last.join("\n"));
        }
        let _ = std::fs::remove_file(&self.log);
    }
}
