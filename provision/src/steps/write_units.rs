//! K3s's systemd unit and its environment file.

use async_trait::async_trait;
use orch_contract::ExitCode;
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::Context;
use crate::applied::Inputs;
use crate::desired::DesiredFiles;
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
        desired.add(
            environment_path(role),
            environment_file(&context.config.k3s.environment),
            0o600,
        );
        Self { context, desired }
    }
}

#[async_trait]
impl Step for WriteUnits<'_> {
    type Output = Inputs;

    fn name(&self) -> &'static str {
        "write_units"
    }

    fn title(&self) -> String {
        format!("Install {}", unit_name(self.context.config.node.role))
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<Inputs>, StepFailure> {
        let differences = self
            .desired
            .differences(self.context.system.files)
            .map_err(WriteUnitsError::File)?;
        Ok(if differences.is_empty() {
            Check::Satisfied(self.desired.digests())
        } else {
            Check::Needed(differences.join(", "))
        })
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<Inputs, StepFailure> {
        let system = self.context.system;
        self.desired
            .write(system.files)
            .map_err(WriteUnitsError::File)?;
        system
            .services
            .reload()
            .await
            .map_err(WriteUnitsError::Systemd)?;
        Ok(self.desired.digests())
    }

    fn planned(&self) -> Inputs {
        self.desired.digests()
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
        let mode = machine.system().files.mode(std::path::Path::new(
            "/etc/systemd/system/k3s-agent.service.env",
        ));
        assert_eq!(mode.unwrap(), Some(0o600));
    }
}
