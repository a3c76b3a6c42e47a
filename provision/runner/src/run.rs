//! Runs steps one by one and reports what became of each.

use std::time::Instant;

use async_trait::async_trait;
use orch_contract::{Event, Evidence, Outcome};

use crate::report::milliseconds;
use crate::{Check, Need, Reporter, Step, StepFailure, StepReport, error_chain};

/// Looks around when a step has failed, before anything else happens. It must not fail itself, nor change anything.
#[async_trait]
pub trait Witness: Send + Sync {
    async fn evidence(&self, step: &str, failure: &StepFailure) -> Vec<Evidence>;
}

/// Runs steps in the order they are given to it, and counts.
pub struct Runner<'a> {
    reporter: &'a dyn Reporter,
    witness: Option<&'a dyn Witness>,
    dry_run: bool,
    started: Instant,
    applied: u32,
    satisfied: u32,
}

impl<'a> Runner<'a> {
    pub fn new(reporter: &'a dyn Reporter, dry_run: bool) -> Self {
        Self {
            reporter,
            witness: None,
            dry_run,
            started: Instant::now(),
            applied: 0,
            satisfied: 0,
        }
    }

    /// Asks for evidence of each failure.
    pub fn with_witness(mut self, witness: &'a dyn Witness) -> Self {
        self.witness = Some(witness);
        self
    }

    /// Reports a failure to make a step out of what is known, as that step's.
    pub async fn prepared<S, E: Into<StepFailure>>(
        &self,
        name: &'static str,
        step: Result<S, E>,
    ) -> Result<S, StepFailure> {
        let started = Instant::now();
        match step.map_err(Into::into) {
            Ok(step) => Ok(step),
            Err(failure) => {
                self.report_failure(name, &failure, started).await;
                Err(failure)
            }
        }
    }

    /// Looks at a step and applies it if needed; a dry run only says so.
    pub async fn run<S: Step>(&mut self, step: &S) -> Result<S::Output, StepFailure> {
        let started = Instant::now();
        let name = step.name();
        self.reporter.report(Event::StepStarted {
            step: name.to_owned(),
            title: step.title(),
        });
        let result = self.check_and_apply(step, started).await;
        if let Err(failure) = &result {
            self.report_failure(name, failure, started).await;
        }
        result
    }

    async fn report_failure(&self, name: &'static str, failure: &StepFailure, started: Instant) {
        let evidence = match self.witness {
            Some(witness) => witness.evidence(name, failure).await,
            None => Vec::new(),
        };
        let mut chain = error_chain(failure.error());
        self.reporter.report(Event::StepFailed {
            step: name.to_owned(),
            reason: chain.remove(0),
            causes: chain,
            elapsed_ms: milliseconds(started.elapsed()),
            exit_code: failure.exit_code.code(),
            evidence,
        });
    }

    async fn check_and_apply<S: Step>(
        &mut self,
        step: &S,
        started: Instant,
    ) -> Result<S::Output, StepFailure> {
        let report = StepReport::new(self.reporter, step.name());
        let name = step.name().to_owned();
        match step.check(&report).await? {
            Check::Satisfied(output) => {
                self.satisfied += 1;
                self.reporter.report(Event::StepSatisfied {
                    step: name,
                    elapsed_ms: milliseconds(started.elapsed()),
                });
                Ok(output)
            }
            Check::Needed(Need { reason, changes }) if self.dry_run => {
                self.applied += 1;
                self.reporter.report(Event::StepPlanned {
                    step: name,
                    reason,
                    changes,
                });
                Ok(step.planned())
            }
            Check::Needed(Need { reason, changes }) => {
                let output = step.apply(&report).await?;
                self.applied += 1;
                self.reporter.report(Event::StepApplied {
                    step: name,
                    reason,
                    elapsed_ms: milliseconds(started.elapsed()),
                    changes,
                });
                Ok(output)
            }
        }
    }

    /// Reports the summary; `failed` says whether a step ended the run.
    pub fn finish(self, failed: bool) -> Outcome {
        let outcome = match (failed, self.dry_run, self.applied) {
            (true, _, _) => Outcome::Failed,
            (false, _, 0) => Outcome::Unchanged,
            (false, true, _) => Outcome::Planned,
            (false, false, _) => Outcome::Changed,
        };
        self.reporter.report(Event::Summary {
            outcome,
            applied: if self.dry_run { 0 } else { self.applied },
            satisfied: self.satisfied,
            elapsed_ms: milliseconds(self.started.elapsed()),
        });
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use async_trait::async_trait;
    use orch_contract::{Action, Change, ExitCode, Subject};

    use super::*;
    use crate::Recorder;

    #[derive(Default)]
    struct Lamp {
        on: AtomicBool,
        broken: bool,
        applied: AtomicU32,
    }

    #[async_trait]
    impl Step for Lamp {
        type Output = u32;

        fn name(&self) -> &'static str {
            "light_lamp"
        }

        fn title(&self) -> String {
            "Light the lamp".to_owned()
        }

        async fn check(&self, _: &StepReport<'_>) -> Result<Check<u32>, StepFailure> {
            Ok(if self.on.load(Ordering::SeqCst) {
                Check::Satisfied(1)
            } else {
                Check::Needed(
                    vec![Change::new(
                        Subject::Service,
                        "lamp",
                        Action::Start,
                        "is dark",
                    )]
                    .into(),
                )
            })
        }

        async fn apply(&self, _: &StepReport<'_>) -> Result<u32, StepFailure> {
            self.applied.fetch_add(1, Ordering::SeqCst);
            if self.broken {
                return Err(StepFailure::new(ExitCode::Host, "no current"));
            }
            self.on.store(true, Ordering::SeqCst);
            Ok(2)
        }

        fn planned(&self) -> u32 {
            3
        }
    }

    fn kinds(recorder: &Recorder) -> Vec<String> {
        recorder
            .events()
            .iter()
            .map(|event| serde_json::to_value(event).unwrap()["event"].to_string())
            .collect()
    }

    #[tokio::test]
    async fn a_needed_step_is_applied_once_and_then_satisfied() {
        let lamp = Lamp::default();
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        assert_eq!(runner.run(&lamp).await.unwrap(), 2);
        assert_eq!(runner.run(&lamp).await.unwrap(), 1);
        assert_eq!(runner.finish(false), Outcome::Changed);
        assert_eq!(lamp.applied.load(Ordering::SeqCst), 1);
        assert_eq!(
            kinds(&recorder),
            [
                "\"step_started\"",
                "\"step_applied\"",
                "\"step_started\"",
                "\"step_satisfied\"",
                "\"summary\""
            ]
        );
    }

    #[tokio::test]
    async fn a_dry_run_applies_nothing() {
        let lamp = Lamp::default();
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, true);
        assert_eq!(runner.run(&lamp).await.unwrap(), 3);
        assert_eq!(runner.finish(false), Outcome::Planned);
        assert_eq!(lamp.applied.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_failure_is_reported_with_its_exit_code() {
        let lamp = Lamp {
            broken: true,
            ..Lamp::default()
        };
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        let failure = runner.run(&lamp).await.unwrap_err();
        assert_eq!(failure.exit_code, ExitCode::Host);
        assert_eq!(runner.finish(true), Outcome::Failed);
        assert!(recorder.events().iter().any(|event| matches!(
            event,
            Event::StepFailed { reason, exit_code: 4, .. } if reason == "no current"
        )));
    }
}
