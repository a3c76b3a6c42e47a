//! K3s's systemd unit and its environment file.

use std::path::Path;

use async_trait::async_trait;
use orch_contract::{Action, Change, ExitCode, Subject};
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::Context;
use crate::applied::{Applied, Prepared};
use crate::desired::{DesiredFiles, MARKER};
use crate::difference::View;
use crate::k3s::paths;
use crate::k3s::units::{environment_file, environment_path, k3s_unit, unit_name, unit_path};
use crate::system::{CommandError, FileError};

/// Why the unit could not be installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteUnitsError {
    #[error("systemd does not answer; orch-provision needs a machine that runs systemd")]
    Systemd(#[source] CommandError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for WriteUnitsError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Host
    }
}

pub(crate) struct WriteUnits<'a> {
    context: Context<'a>,
    desired: DesiredFiles,
}

impl<'a> WriteUnits<'a> {
    pub(crate) fn plan(context: Context<'a>) -> Self {
        let role = context.config.node.role;
        let mut desired = DesiredFiles::default();
        desired.add(unit_path(unit_name(role)), k3s_unit(role), 0o644);
        desired.add_viewed(
            environment_path(role),
            environment_file(&context.config.k3s.environment),
            0o600,
            View::Assignments,
        );
        Self { context, desired }
    }

    fn unit(&self) -> &'static str {
        unit_name(self.context.config.node.role)
    }

    fn prepared(&self, changed: Vec<String>) -> Prepared {
        Prepared {
            inputs: self.desired.digests(),
            changed,
        }
    }

    async fn write(&self) -> Result<Prepared, WriteUnitsError> {
        let system = self.context.system;
        let changed = self.desired.other_content(system.files)?;
        Applied::forget(system.files, self.unit(), &changed)?;
        self.desired.write(system.files)?;
        system
            .services
            .reload()
            .await
            .map_err(WriteUnitsError::Systemd)?;
        Ok(self.prepared(changed))
    }

    /// A drop-in changes the unit, and is how an administrator is meant to do it: it stays, and is named.
    fn warn_of_overrides(&self, report: &StepReport<'_>) -> Result<(), FileError> {
        let files = self.context.system.files;
        for directory in paths::UNIT_DIRECTORIES {
            let drop_ins = format!("{directory}/{}.d", self.unit());
            for path in files.list(Path::new(&drop_ins))? {
                let is_ours = files
                    .read_text(&path)?
                    .is_some_and(|text| text.starts_with(MARKER));
                if !is_ours && path.extension().is_some_and(|end| end == "conf") {
                    report.warn(format!(
                        "{} is not orch's and overrides {}; it stays",
                        path.display(),
                        self.unit()
                    ));
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Step for WriteUnits<'_> {
    type Output = Prepared;

    fn name(&self) -> &'static str {
        "write_units"
    }

    fn title(&self) -> String {
        format!("Install {}", unit_name(self.context.config.node.role))
    }

    async fn check(&self, report: &StepReport<'_>) -> Result<Check<Prepared>, StepFailure> {
        let system = self.context.system;
        let mut changes = self
            .desired
            .changes(system.files)
            .map_err(WriteUnitsError::File)?;
        self.warn_of_overrides(report)
            .map_err(WriteUnitsError::File)?;
        let state = system
            .services
            .state(self.unit())
            .await
            .map_err(WriteUnitsError::Systemd)?;
        if state.needs_reload || !changes.is_empty() {
            changes.push(Change::new(
                Subject::Unit,
                self.unit(),
                Action::Reload,
                "has another file than systemd has read",
            ));
        }
        Ok(Check::of(changes, || self.prepared(Vec::new())))
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<Prepared, StepFailure> {
        Ok(self.write().await?)
    }

    fn planned(&self) -> Prepared {
        let files = self.context.system.files;
        self.prepared(self.desired.other_content(files).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use orch_contract::Secret;
    use orch_runner::{Recorder, Runner};

    use super::*;
    use crate::testing::{Machine, agent_config};

    #[tokio::test]
    async fn systemd_is_told_only_of_changes() {
        let machine = Machine::fit();
        let mut config = agent_config();
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        for expected in [vec!["reload".to_owned()], vec![]] {
            let step = WriteUnits::plan(machine.context(&config));
            runner.run(&step).await.unwrap();
            assert_eq!(machine.services.take_done(), expected);
        }
        config
            .k3s
            .environment
            .insert("HTTPS_PROXY".to_owned(), Secret::new("http://p"));
        let step = WriteUnits::plan(machine.context(&config));
        runner.run(&step).await.unwrap();
        assert_eq!(machine.services.take_done(), ["reload"]);
        let mode = machine
            .system()
            .files
            .mode(Path::new("/etc/systemd/system/k3s-agent.service.env"));
        assert_eq!(mode.unwrap(), Some(0o600));
    }
}
