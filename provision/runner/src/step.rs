//! What a step is.

use std::error::Error;

use async_trait::async_trait;
use orch_contract::{Change, ExitCode};

use crate::StepReport;

/// Whether a step has anything to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check<T> {
    /// It is as it should be already; this is what the step would have produced.
    Satisfied(T),
    /// It is not; this is why, and what `apply` would change.
    Needed(Need),
}

impl<T> Check<T> {
    /// Satisfied where nothing is to be changed.
    pub fn of(changes: Vec<Change>, output: impl FnOnce() -> T) -> Self {
        if changes.is_empty() {
            Check::Satisfied(output())
        } else {
            Check::Needed(changes.into())
        }
    }
}

/// Why a step must be applied, and what that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// A clause for people: `config.yaml differs`.
    pub reason: String,
    pub changes: Vec<Change>,
}

impl From<Vec<Change>> for Need {
    fn from(changes: Vec<Change>) -> Self {
        let reason = changes
            .iter()
            .map(|change| format!("{} {}", change.name, change.detail))
            .collect::<Vec<_>>()
            .join(", ");
        Self { reason, changes }
    }
}

/// One thing that must hold on a machine.
///
/// `check` changes nothing. `apply` is called only after `check` said [`Check::Needed`], and must
/// leave the machine so that the next `check` is satisfied.
#[async_trait]
pub trait Step: Send + Sync {
    /// What later steps need from this one; the compiler then checks the order.
    type Output: Send;

    /// Stable verb-noun name, the same as the step's file.
    fn name(&self) -> &'static str;

    /// What it does, for people.
    fn title(&self) -> String;

    async fn check(&self, report: &StepReport<'_>) -> Result<Check<Self::Output>, StepFailure>;

    async fn apply(&self, report: &StepReport<'_>) -> Result<Self::Output, StepFailure>;

    /// What a dry run hands to later steps in place of `apply`'s output.
    fn planned(&self) -> Self::Output;
}

/// An error that knows which exit code its kind of failure has.
pub trait ExitCoded: Error {
    fn exit_code(&self) -> ExitCode;
}

/// A step's failure: any error, and the exit code it ends the process with.
#[derive(Debug)]
pub struct StepFailure {
    pub exit_code: ExitCode,
    source: Box<dyn Error + Send + Sync>,
}

impl StepFailure {
    pub fn new(exit_code: ExitCode, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit_code,
            source: source.into(),
        }
    }

    /// The error itself; its chain is to be printed once, at the edge.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.source
    }
}

impl<E: ExitCoded + Send + Sync + 'static> From<E> for StepFailure {
    fn from(error: E) -> Self {
        Self::new(error.exit_code(), error)
    }
}

/// The messages of an error and of its causes, outermost first.
pub fn error_chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut chain = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        chain.push(cause.to_string());
        source = cause.source();
    }
    chain
}
