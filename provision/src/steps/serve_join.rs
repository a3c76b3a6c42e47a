//! Installs and starts the join service on a server.
//!
//! It runs before K3s is up and answers "not ready" until then, so that nodes that are
//! provisioned at the same time lose no time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::{Action, Change, ExitCode, Subject, node_paths};
use orch_runner::{Check, ExitCoded, Probe, Step, StepFailure, StepReport, Wait, WaitError};
use orch_ssh::AuthorizedKeys;
use orch_ssh::authorized::AuthorizedKeysError;
use orch_ssh::keys::{KeyError, read_private_key};

use super::Context;
use crate::applied::{Applied, Inputs};
use crate::desired::DesiredFiles;
use crate::k3s::journal;
use crate::k3s::units::{JOIN_UNIT, join_unit, unit_path};
use crate::system::{CommandError, FileError};

const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Why agents cannot join.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeJoinError {
    #[error(
        "the join service's key cannot be used; provision this node from the host, which uploads it"
    )]
    Key(#[from] KeyError),
    #[error("{} is missing; provision this node from the host, which uploads it", path.display())]
    NoAuthorizedKeys { path: PathBuf },
    #[error("{} cannot be used", path.display())]
    AuthorizedKeys {
        path: PathBuf,
        source: AuthorizedKeysError,
    },
    #[error("the join service does not start; its journal ends with:\n{}", tail.join("\n"))]
    Start {
        tail: Vec<String>,
        source: WaitError,
    },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for ServeJoinError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Join
    }
}

pub(crate) struct ServeJoin<'a> {
    pub(crate) context: Context<'a>,
    /// The program that is running now.
    pub(crate) program: PathBuf,
    /// The configuration that it was given.
    pub(crate) config_path: PathBuf,
}

impl ServeJoin<'_> {
    fn unit_file(&self) -> DesiredFiles {
        let mut desired = DesiredFiles::default();
        desired.add(unit_path(JOIN_UNIT), join_unit(&self.config_path), 0o644);
        desired
    }

    /// What the service reads when it starts. Its keys are read at each connection.
    fn inputs(&self) -> Result<Inputs, FileError> {
        let files = self.context.system.files;
        let mut inputs = self.unit_file().digests();
        for path in [self.program.as_path(), &self.config_path] {
            // The program is the same one wherever it was started from.
            let name = if path == self.program {
                node_paths::PROVISIONER.to_owned()
            } else {
                path.display().to_string()
            };
            inputs.insert(name, files.sha256(path)?.unwrap_or_default());
        }
        Ok(inputs)
    }

    fn check_keys(&self) -> Result<(), ServeJoinError> {
        let join = &self.context.config.join;
        let files = self.context.system.files;
        read_private_key(&files.locate(&join.host_key))?;
        let path = &join.authorized_keys;
        let text = self
            .context
            .system
            .files
            .read_text(path)?
            .ok_or_else(|| ServeJoinError::NoAuthorizedKeys { path: path.clone() })?;
        AuthorizedKeys::parse(&text).map_err(|source| ServeJoinError::AuthorizedKeys {
            path: path.clone(),
            source,
        })?;
        Ok(())
    }

    async fn needed(&self) -> Result<Option<String>, ServeJoinError> {
        self.check_keys()?;
        let system = self.context.system;
        if !self.unit_file().changes(system.files)?.is_empty() {
            return Ok(Some("has another unit file".to_owned()));
        }
        let state = system.services.state(JOIN_UNIT).await?;
        let inputs = self.inputs()?;
        let applied = Applied::load(system.files)?;
        Ok(match applied.changed(JOIN_UNIT, &inputs) {
            None => Some("was not started yet".to_owned()),
            Some(changed) if !changed.is_empty() => {
                Some(format!("was started with another {}", changed.join(", ")))
            }
            Some(_) if !state.is_active() => Some(format!("is {}", state.active)),
            Some(_) if !state.is_enabled() => Some("would not start at boot".to_owned()),
            Some(_) => None,
        })
    }

    async fn look(&self) -> Result<Probe<()>, CommandError> {
        let state = self.context.system.services.state(JOIN_UNIT).await?;
        Ok(if state.is_active() {
            Probe::Met(())
        } else {
            Probe::Pending(format!("{} ({})", state.active, state.sub))
        })
    }

    async fn start(&self, report: &StepReport<'_>) -> Result<(), ServeJoinError> {
        let system = self.context.system;
        let installed = Path::new(node_paths::PROVISIONER);
        if system.files.sha256(&self.program)? != system.files.sha256(installed)? {
            system.files.copy(&self.program, installed, 0o755)?;
        }
        self.unit_file().write(system.files)?;
        system.services.reload().await?;
        system.services.enable(JOIN_UNIT).await?;
        let since = jiff::Timestamp::now();
        system.services.begin_restart(JOIN_UNIT).await?;
        let wait = Wait {
            condition: format!("{JOIN_UNIT} active"),
            timeout: START_TIMEOUT,
            interval: Duration::from_millis(200),
        };
        let outcome = wait.until(report, || self.look()).await;
        match outcome {
            Ok(result) => result?,
            Err(source) => {
                let lines = system.services.journal(JOIN_UNIT, since, 50).await?;
                let tail = journal::tail(&lines, 10);
                return Err(ServeJoinError::Start { tail, source });
            }
        }
        Ok(Applied::record(system.files, JOIN_UNIT, &self.inputs()?)?)
    }
}

#[async_trait]
impl Step for ServeJoin<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "serve_join"
    }

    fn title(&self) -> String {
        format!(
            "Let nodes join at port {}",
            self.context.config.own_server().join_port
        )
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        Ok(match self.needed().await? {
            None => Check::Satisfied(()),
            Some(reason) => {
                let files = self.context.system.files;
                let mut changes = self
                    .unit_file()
                    .changes(files)
                    .map_err(ServeJoinError::File)?;
                changes.push(Change::new(
                    Subject::Service,
                    JOIN_UNIT,
                    Action::Restart,
                    reason,
                ));
                Check::Needed(changes.into())
            }
        })
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.start(report).await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use orch_contract::ClusterKeys;
    use orch_runner::{Recorder, Runner};
    use orch_ssh::keys::ensure_cluster_keys;

    use super::*;
    use crate::testing::{Machine, server_config};

    #[tokio::test]
    async fn it_is_started_once_and_again_for_a_new_program() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        ensure_cluster_keys(&layout, &["agent".parse().unwrap()]).unwrap();
        let machine = Machine::fit();
        let mut config = server_config();
        config.join.host_key = layout.host_key();
        let authorized = std::fs::read_to_string(layout.authorized_keys()).unwrap();
        machine
            .files
            .put("/etc/orch/authorized_keys", &authorized, 0o600);
        machine.files.put("/tmp/orch-provision", "v1", 0o755);
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        let step = ServeJoin {
            context: machine.context(&config),
            program: "/tmp/orch-provision".into(),
            config_path: "/etc/orch/node.json".into(),
        };
        runner.run(&step).await.unwrap();
        assert_eq!(
            machine.services.take_done(),
            [
                "reload",
                "enable orch-join.service",
                "restart orch-join.service"
            ]
        );
        assert_eq!(machine.files.text(node_paths::PROVISIONER).unwrap(), "v1");
        runner.run(&step).await.unwrap();
        assert!(machine.services.take_done().is_empty());
        // A new host key is read at the next connection: nobody who is joining is cut off.
        std::fs::remove_file(layout.host_key()).unwrap();
        ensure_cluster_keys(&layout, &["agent".parse().unwrap()]).unwrap();
        runner.run(&step).await.unwrap();
        assert!(machine.services.take_done().is_empty());
        machine.files.put("/tmp/orch-provision", "v2", 0o755);
        runner.run(&step).await.unwrap();
        assert_eq!(
            machine.services.take_done().last().unwrap(),
            "restart orch-join.service"
        );
    }

    #[tokio::test]
    async fn damaged_authorized_keys_are_an_error_before_anything_starts() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        ensure_cluster_keys(&layout, &[]).unwrap();
        let machine = Machine::fit();
        let mut config = server_config();
        config.join.host_key = layout.host_key();
        machine
            .files
            .put("/etc/orch/authorized_keys", "nonsense", 0o600);
        let recorder = Recorder::default();
        let step = ServeJoin {
            context: machine.context(&config),
            program: "/tmp/orch-provision".into(),
            config_path: "/etc/orch/node.json".into(),
        };
        let failure = Runner::new(&recorder, false).run(&step).await.unwrap_err();
        assert_eq!(failure.exit_code, ExitCode::Join);
        assert!(machine.services.take_done().is_empty());
    }
}
