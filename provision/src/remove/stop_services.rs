//! Stops and disables the units.

use async_trait::async_trait;
use orch_contract::{Action, Change, Role, Subject};
use orch_runner::{Check, Step, StepFailure, StepReport};

use super::RemoveError;
use crate::k3s::units::{JOIN_UNIT, unit_name};
use crate::system::System;

pub(crate) struct StopServices<'a> {
    pub(crate) system: System<'a>,
}

const UNITS: [&str; 3] = [JOIN_UNIT, unit_name(Role::Server), unit_name(Role::Agent)];

impl StopServices<'_> {
    async fn present(&self) -> Result<Vec<&'static str>, RemoveError> {
        let mut present = Vec::new();
        for unit in UNITS {
            let state = self.system.services.state(unit).await?;
            let stopped = ["inactive", ""].contains(&state.active.as_str());
            if !stopped || state.is_enabled() {
                present.push(unit);
            }
        }
        Ok(present)
    }

    async fn stop(&self) -> Result<(), RemoveError> {
        for unit in self.present().await? {
            self.system.services.stop(unit).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Step for StopServices<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "stop_services"
    }

    fn title(&self) -> String {
        "Stop K3s and the join service".to_owned()
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let present = self.present().await?;
        let changes = present
            .into_iter()
            .map(|unit| Change::new(Subject::Service, unit, Action::Stop, "is there"));
        Ok(Check::of(changes.collect(), || ()))
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.stop().await?)
    }

    fn planned(&self) {}
}
