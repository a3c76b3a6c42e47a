//! Starts K3s, and restarts it only when something that it was started with has changed.

mod running;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orch_contract::{Action, Change, ExitCode, Role, Subject};
use orch_runner::{Check, ExitCoded, Probe, Step, StepFailure, StepReport, Wait, WaitError};

use super::{Context, InstalledK3s, Membership};
use crate::applied::{Applied, Inputs, Prepared};
use crate::k3s::journal::{self, Cause};
use crate::k3s::paths;
use crate::k3s::units::unit_name;
use crate::system::{CommandError, FileError, UnitState};

const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// systemd restarts a K3s that ends; one that keeps ending will not start.
const TOLERATED_RESTARTS: u32 = 5;
const JOURNAL_LINES: u32 = 400;
/// The evidence has more of them.
const SHOWN_LINES: usize = 3;

/// Why K3s does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{unit} does not start: {meaning}\nits journal says: {line}")]
    Cause {
        unit: &'static str,
        meaning: &'static str,
        line: String,
    },
    #[error("{unit} ended {restarts} times; its journal ends with:\n{}", tail.join("\n"))]
    KeepsEnding {
        unit: &'static str,
        restarts: u32,
        tail: Vec<String>,
    },
    #[error("{unit} did not start in time; its journal ends with:\n{}", tail.join("\n"))]
    TimedOut {
        unit: &'static str,
        tail: Vec<String>,
        source: WaitError,
    },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for StartError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Start
    }
}

pub(crate) struct StartK3s<'a> {
    context: Context<'a>,
    inputs: Inputs,
    /// Inputs that an earlier step has put right: what runs may have read something else.
    changed: Vec<String>,
    /// It holds a token that K3s has not used yet.
    is_new: bool,
}

impl<'a> StartK3s<'a> {
    /// Takes what K3s is started with: the files of the earlier steps and the binary.
    pub(crate) fn new(
        context: Context<'a>,
        installed: &InstalledK3s,
        files: impl IntoIterator<Item = Prepared>,
        membership: &Membership,
    ) -> Self {
        let (mut inputs, mut changed) = (Inputs::new(), Vec::new());
        for prepared in files {
            inputs.extend(prepared.inputs);
            changed.extend(prepared.changed);
        }
        inputs.insert(paths::BINARY.to_owned(), installed.sha256.clone());
        // Not every K3s watches the folder that it imports images from; all look when they start.
        for (archive, sha256) in &context.config.artifacts.images {
            let path = format!("{}/{archive}", paths::AIRGAP_IMAGES);
            inputs.insert(path, sha256.to_ascii_lowercase());
        }
        if installed.is_replaced {
            changed.push(paths::BINARY.to_owned());
        }
        Self {
            context,
            inputs,
            changed,
            is_new: membership.is_new,
        }
    }

    fn unit(&self) -> &'static str {
        unit_name(self.context.config.node.role)
    }

    /// Why K3s must be (re)started; None where it runs, or is on its way, with these inputs.
    fn restart_reason(&self, state: &UnitState) -> Result<Option<String>, StartError> {
        let files = self.context.system.files;
        let applied = Applied::load(files)?;
        if self.is_new {
            return Ok(Some("has a new join token".to_owned()));
        }
        let Some(mut changed) = applied.changed(self.unit(), &self.inputs) else {
            return Ok(Some("was not started by orch yet".to_owned()));
        };
        changed.extend(self.changed.iter().cloned());
        changed.sort();
        changed.dedup();
        if !changed.is_empty() {
            return Ok(Some(format!(
                "was started with another {}",
                changed.join(", ")
            )));
        }
        if !state.is_active() && state.active != "activating" {
            return Ok(Some(format!("is {}", state.active)));
        }
        Ok(match state.main_process {
            Some(process) => running::other_program(files, process)?,
            None => None,
        })
    }

    /// What `start` does in this state.
    fn changes(&self, state: &UnitState) -> Result<Vec<Change>, StartError> {
        let mut changes = Vec::new();
        if !state.is_enabled() {
            changes.push(Change::new(
                Subject::Unit,
                self.unit(),
                Action::Enable,
                "would not start at boot",
            ));
        }
        let action = match self.restart_reason(state)? {
            Some(reason) if state.main_process.is_some() || state.is_active() => {
                Some((Action::Restart, reason))
            }
            Some(reason) => Some((Action::Start, reason)),
            None if !state.is_active() => {
                Some((Action::Wait, format!("is still {}", state.active)))
            }
            None => None,
        };
        if let Some((action, detail)) = action {
            changes.push(Change::new(Subject::Service, self.unit(), action, detail));
        }
        Ok(changes)
    }

    async fn start(&self, report: &StepReport<'_>) -> Result<(), StartError> {
        let system = self.context.system;
        let since = Timestamp::now();
        let state = system.services.state(self.unit()).await?;
        if !state.is_enabled() {
            system.services.enable(self.unit()).await?;
        }
        if self.restart_reason(&state)?.is_some() {
            system.services.begin_restart(self.unit()).await?;
            // From here on the running K3s is the one with these inputs, whether or not this
            // process lives to see it started.
            Applied::record(system.files, self.unit(), &self.inputs)?;
        }
        self.wait_active(since, report).await
    }

    async fn wait_active(
        &self,
        since: Timestamp,
        report: &StepReport<'_>,
    ) -> Result<(), StartError> {
        let wait = Wait {
            condition: format!("{} active", self.unit()),
            timeout: Duration::from_secs(self.context.config.timeouts.start_seconds),
            interval: POLL_INTERVAL,
        };
        let outcome = wait.until(report, || self.look(since)).await;
        match outcome {
            Ok(result) => result,
            Err(source) => {
                let lines = self.journal(since).await?;
                Err(match journal::find_cause(&lines) {
                    Some(cause) => self.cause(cause),
                    None => StartError::TimedOut {
                        unit: self.unit(),
                        tail: journal::tail(&lines, SHOWN_LINES),
                        source,
                    },
                })
            }
        }
    }

    async fn look(&self, since: Timestamp) -> Result<Probe<()>, StartError> {
        let state = self.context.system.services.state(self.unit()).await?;
        if state.is_active() {
            return Ok(Probe::Met(()));
        }
        let lines = self.journal(since).await?;
        let cause = journal::find_cause(&lines);
        if let Some(cause) = cause.clone().filter(|cause| cause.is_final) {
            return Err(self.cause(cause));
        }
        if state.restarts >= TOLERATED_RESTARTS {
            return Err(match cause {
                Some(cause) => self.cause(cause),
                None => StartError::KeepsEnding {
                    unit: self.unit(),
                    restarts: state.restarts,
                    tail: journal::tail(&lines, SHOWN_LINES),
                },
            });
        }
        Ok(Probe::Pending(describe(&state, cause.as_ref())))
    }

    fn cause(&self, cause: Cause) -> StartError {
        StartError::Cause {
            unit: self.unit(),
            meaning: cause.meaning,
            line: cause.line,
        }
    }

    async fn journal(&self, since: Timestamp) -> Result<Vec<String>, CommandError> {
        let services = self.context.system.services;
        services.journal(self.unit(), since, JOURNAL_LINES).await
    }
}

fn describe(state: &UnitState, cause: Option<&Cause>) -> String {
    let state = format!("{} ({})", state.active, state.sub);
    match cause {
        Some(cause) => format!("{state}; {}", cause.meaning),
        None => state,
    }
}

#[async_trait]
impl Step for StartK3s<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        match self.context.config.node.role {
            Role::Server => "start_server",
            Role::Agent => "start_agent",
        }
    }

    fn title(&self) -> String {
        format!("Start {}", self.unit())
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let services = self.context.system.services;
        let state = services
            .state(self.unit())
            .await
            .map_err(StartError::Command)?;
        Ok(Check::of(self.changes(&state)?, || ()))
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.start(report).await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use orch_contract::NodeConfig;
    use orch_runner::{Recorder, Runner, error_chain};

    use super::*;
    use crate::testing::{Machine, agent_config, server_config};

    fn installed(sha256: &str) -> InstalledK3s {
        InstalledK3s {
            sha256: sha256.to_owned(),
            version_line: String::new(),
            is_replaced: false,
        }
    }

    fn files(config: &str) -> Prepared {
        Prepared {
            inputs: Inputs::from([(paths::CONFIG.to_owned(), config.to_owned())]),
            changed: Vec::new(),
        }
    }

    async fn run(
        machine: &Machine,
        config: &NodeConfig,
        binary: &str,
        file: &str,
        is_new: bool,
    ) -> Result<Vec<String>, StepFailure> {
        let recorder = Recorder::default();
        let step = StartK3s::new(
            machine.context(config),
            &installed(binary),
            [files(file)],
            &Membership {
                is_new,
                ..Membership::FOUNDER
            },
        );
        Runner::new(&recorder, false).run(&step).await?;
        Ok(machine.services.take_done())
    }

    #[tokio::test]
    async fn it_is_restarted_only_when_an_input_changed() {
        let machine = Machine::fit();
        let mut config = server_config();
        let old = false;
        assert_eq!(
            run(&machine, &config, "b1", "c1", old).await.unwrap(),
            ["enable k3s.service", "restart k3s.service"]
        );
        assert!(
            run(&machine, &config, "b1", "c1", old)
                .await
                .unwrap()
                .is_empty()
        );
        for (binary, file) in [("b1", "c2"), ("b2", "c2")] {
            assert_eq!(
                run(&machine, &config, binary, file, old).await.unwrap(),
                ["restart k3s.service"]
            );
        }
        assert!(
            run(&machine, &config, "b2", "c2", old)
                .await
                .unwrap()
                .is_empty()
        );
        let images = &mut config.artifacts.images;
        images.insert("orch-images.tar".to_owned(), "a".repeat(64));
        for restarts in [["restart k3s.service"].as_slice(), &[]] {
            let done = run(&machine, &config, "b2", "c2", old).await.unwrap();
            assert_eq!(done, restarts);
        }
    }

    #[tokio::test]
    async fn a_new_token_restarts_an_agent() {
        let machine = Machine::fit();
        let config = agent_config();
        run(&machine, &config, "b", "c", true).await.unwrap();
        assert_eq!(
            run(&machine, &config, "b", "c", true).await.unwrap(),
            ["restart k3s-agent.service"]
        );
    }

    #[tokio::test]
    async fn a_start_that_is_under_way_is_waited_for_and_not_repeated() {
        let machine = Machine::fit();
        let mut config = agent_config();
        config.timeouts.start_seconds = 1;
        *machine.services.after_start.lock().unwrap() = Some(UnitState {
            active: "activating".to_owned(),
            sub: "start".to_owned(),
            ..UnitState::default()
        });
        run(&machine, &config, "b", "c", false).await.unwrap_err();
        machine.services.take_done();
        run(&machine, &config, "b", "c", false).await.unwrap_err();
        assert!(machine.services.take_done().is_empty());
    }

    #[tokio::test]
    async fn the_journals_cause_ends_the_wait() {
        let machine = Machine::fit();
        let config = agent_config();
        *machine.services.after_start.lock().unwrap() = Some(UnitState {
            active: "activating".to_owned(),
            sub: "start".to_owned(),
            ..UnitState::default()
        });
        *machine.services.journal.lock().unwrap() = vec![
            "level=info msg=\"Waiting to retrieve agent configuration; server is not ready: Node password rejected\"".to_owned(),
        ];
        let failure = run(&machine, &config, "b", "c", false).await.unwrap_err();
        assert_eq!(failure.exit_code, ExitCode::Start);
        let message = error_chain(failure.error()).join(": ");
        assert!(message.contains("another password"), "{message}");
        assert!(message.contains("Node password rejected"), "{message}");
    }

    #[tokio::test]
    async fn a_service_that_keeps_ending_is_given_up() {
        let machine = Machine::fit();
        let config = server_config();
        *machine.services.after_start.lock().unwrap() = Some(UnitState {
            active: "activating".to_owned(),
            sub: "auto-restart".to_owned(),
            restarts: TOLERATED_RESTARTS,
            ..UnitState::default()
        });
        *machine.services.journal.lock().unwrap() =
            vec!["level=fatal msg=\"something new\"".to_owned()];
        let failure = run(&machine, &config, "b", "c", false).await.unwrap_err();
        assert!(failure.error().to_string().contains("something new"));
    }
}
