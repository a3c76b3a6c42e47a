//! What happens while a stack is applied, as data.
//!
//! Boundary: how it looks is for whoever implements [`Reporter`].

use std::fmt;
use std::io::Write;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::rollout::Workload;

/// What the API server made of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplyResult {
    Created,
    Configured,
    Unchanged,
}

impl fmt::Display for ApplyResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        })
    }
}

/// One step of an apply or of the wait after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ApplyEvent {
    /// An object was applied.
    Applying {
        kind: String,
        /// `None` for cluster-wide objects.
        namespace: Option<String>,
        name: String,
        result: ApplyResult,
    },
    /// The API server cannot answer yet; the same request is made again.
    Retrying { operation: String, reason: String },
    /// A workload is not ready: what is waited for, and what was seen last.
    Waiting {
        workload: Workload,
        condition: String,
        observed: String,
    },
    /// A workload's rollout is complete.
    Ready { workload: Workload },
    /// A workload will not become ready, and why.
    Failed { workload: Workload, reason: String },
    /// From a newer orch.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for ApplyEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applying {
                kind, name, result, ..
            } => write!(formatter, "{kind} {name} {result}"),
            Self::Retrying { operation, reason } => {
                write!(
                    formatter,
                    "{operation}: the API server is not ready yet ({reason})"
                )
            }
            Self::Waiting {
                workload,
                condition,
                observed,
            } => write!(formatter, "{workload}: waiting for {condition}; {observed}"),
            Self::Ready { workload } => write!(formatter, "{workload} ready"),
            Self::Failed { workload, reason } => write!(formatter, "{workload} failed: {reason}"),
            Self::Unknown => formatter.write_str("an event of a newer orch"),
        }
    }
}

/// Who is told.
pub trait Reporter: Send + Sync {
    fn report(&self, event: ApplyEvent);
}

/// One line per event.
pub struct PlainReporter<W> {
    output: Mutex<W>,
}

impl<W: Write> PlainReporter<W> {
    pub fn new(output: W) -> Self {
        Self {
            output: Mutex::new(output),
        }
    }
}

impl<W: Write + Send> Reporter for PlainReporter<W> {
    fn report(&self, event: ApplyEvent) {
        if let Ok(mut output) = self.output.lock() {
            // Progress is a courtesy: a closed pipe must not stop an apply half way.
            let _ = writeln!(output, "{event}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rollout::WorkloadKind;
    use super::*;

    #[test]
    fn events_are_lines_for_people_and_tagged_json_for_programs() {
        let workload = Workload::new(WorkloadKind::StatefulSet, "microservices", "rabbitmq");
        let event = ApplyEvent::Waiting {
            workload,
            condition: "1 ready replica".into(),
            observed: "0 of 1 ready".into(),
        };
        let reporter = PlainReporter::new(Vec::new());
        reporter.report(event.clone());
        let text = String::from_utf8(reporter.output.into_inner().unwrap()).unwrap();
        assert_eq!(
            text,
            "StatefulSet rabbitmq: waiting for 1 ready replica; 0 of 1 ready\n"
        );
        insta::assert_json_snapshot!(event, @r#"
        {
          "event": "waiting",
          "workload": {
            "kind": "StatefulSet",
            "namespace": "microservices",
            "name": "rabbitmq"
          },
          "condition": "1 ready replica",
          "observed": "0 of 1 ready"
        }
        "#);
    }

    #[test]
    fn an_event_of_a_newer_orch_is_no_error() {
        let event: ApplyEvent = serde_json::from_str(r#"{"event":"pondering","about":1}"#).unwrap();
        assert_eq!(event, ApplyEvent::Unknown);
    }
}
