//! The Docker engine: does it answer, and starting it where no systemd does.

use std::path::PathBuf;
use std::time::Duration;

use super::{HostError, Privilege};
use crate::process::Program;

/// How long a fresh engine may take to answer: with a large build cache on a busy disk, more than a minute.
const START_TIMEOUT: Duration = Duration::from_secs(300);

/// The Docker engine that the `docker` command talks to.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// The engine's version, if it answers.
    pub async fn version() -> Option<String> {
        let text = Program::new("docker")
            .args(["version", "--format", "{{.Server.Version}}"])
            .output()
            .await
            .ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Where the engine keeps images and containers; `None` when that is not a folder of this host.
    pub(super) async fn data() -> Option<PathBuf> {
        let text = Program::new("docker")
            .args(["info", "--format", "{{.DockerRootDir}}"])
            .output()
            .await
            .ok()?;
        Some(PathBuf::from(text.trim())).filter(|path| path.is_dir())
    }

    /// Fails when an engine runs that this user may not talk to: starting another one would not help.
    pub(super) async fn check_allowed() -> Result<(), HostError> {
        match Program::new("docker").args(["version"]).run().await {
            Err(error) if error.to_string().contains("permission denied") => {
                Err(HostError::EngineRefused {
                    detail: error.to_string(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The buildx plugin's version, if there is one.
    pub async fn buildx_version() -> Option<String> {
        let text = Program::new("docker")
            .args(["buildx", "version"])
            .output()
            .await
            .ok()?;
        Some(text.split_whitespace().nth(1)?.to_owned())
    }

    /// Starts the engine: through systemd where it runs, as a session of its own elsewhere.
    pub(super) async fn start(privilege: &Privilege) -> Result<(), HostError> {
        if std::path::Path::new("/run/systemd/system").is_dir() {
            privilege
                .command("systemctl", &["start", "docker.service"])?
                .run()
                .await
                .map_err(|source| HostError::EngineStart { source })?;
            return Self::wait(PathBuf::from("`journalctl -u docker`"), || true).await;
        }
        let log = PathBuf::from("/var/log/dockerd.log");
        // A killed engine leaves its pid file behind, and a new one refuses to start beside it.
        let script = format!(
            "pid=$(cat /var/run/docker.pid 2>/dev/null || true); \
             if [ -n \"$pid\" ] && ! grep -q dockerd \"/proc/$pid/comm\" 2>/dev/null; then rm -f /var/run/docker.pid; fi; \
             for p in /run/docker/containerd/containerd.pid /var/run/docker/containerd/containerd.pid; do \
               [ -f \"$p\" ] && ! grep -q containerd \"/proc/$(cat \"$p\")/comm\" 2>/dev/null && rm -f \"$p\"; done; \
             setsid dockerd >>{log} 2>&1 </dev/null & echo $!",
            log = log.display()
        );
        let pid = privilege
            .command("sh", &["-c", &script])?
            .output()
            .await
            .map_err(|source| HostError::EngineStart { source })?;
        let process = PathBuf::from("/proc").join(pid.trim());
        Self::wait(log, || process.exists()).await
    }

    async fn wait(log: PathBuf, lives: impl Fn() -> bool) -> Result<(), HostError> {
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        while tokio::time::Instant::now() < deadline {
            if Self::version().await.is_some() {
                return Ok(());
            }
            Self::check_allowed().await?;
            if !lives() {
                return Err(HostError::EngineEnded { log });
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        Err(HostError::EngineSilent {
            seconds: START_TIMEOUT.as_secs(),
            log,
        })
    }
}
