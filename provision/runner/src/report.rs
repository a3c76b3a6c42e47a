//! Where events go.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use orch_contract::{Event, LogLevel, Unit};

/// Receives events in order.
pub trait Reporter: Send + Sync {
    fn report(&self, event: Event);
}

/// A reporter that knows which step speaks.
#[derive(Clone, Copy)]
pub struct StepReport<'a> {
    reporter: &'a dyn Reporter,
    step: &'static str,
}

impl<'a> StepReport<'a> {
    pub fn new(reporter: &'a dyn Reporter, step: &'static str) -> Self {
        Self { reporter, step }
    }

    pub fn info(&self, message: impl Into<String>) {
        self.log(LogLevel::Info, message.into());
    }

    pub fn warn(&self, message: impl Into<String>) {
        self.log(LogLevel::Warn, message.into());
    }

    fn log(&self, level: LogLevel, message: String) {
        self.reporter.report(Event::Log {
            level,
            step: Some(self.step.to_owned()),
            message,
        });
    }

    pub fn progress(&self, done: u64, total: Option<u64>, unit: Unit) {
        self.reporter.report(Event::Progress {
            step: self.step.to_owned(),
            done,
            total,
            unit,
        });
    }

    pub(crate) fn waiting(
        &self,
        condition: &str,
        observed: &str,
        elapsed: Duration,
        timeout: Duration,
    ) {
        self.reporter.report(Event::Waiting {
            step: self.step.to_owned(),
            condition: condition.to_owned(),
            observed: observed.to_owned(),
            elapsed_ms: milliseconds(elapsed),
            timeout_ms: milliseconds(timeout),
        });
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Keeps every event: for tests, and for whoever wants to look before showing.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    pub fn events(&self) -> Vec<Event> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Reporter for Recorder {
    fn report(&self, event: Event) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
    }
}
