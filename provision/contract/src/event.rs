//! Events: one JSON object per line on stdout of `orch-provision up --output json`.
//!
//! A host that is older than the provisioner reads an event it does not know as
//! [`Event::Unknown`], and ignores fields it does not know.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Change, Evidence, NodeName, Role};

/// One line of the event stream: when, on which node, what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// When it happened, by the node's own clock (RFC 3339, UTC).
    pub at: Timestamp,
    pub node: NodeName,
    #[serde(flatten)]
    pub event: Event,
}

impl EventLine {
    /// Reads one line of the stream; a line that is no event (a stray print) is an error.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

/// What happened. The tag is the field `event`; durations are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// First line: the steps that will be looked at, in order.
    RunStarted {
        role: Role,
        /// `orch-provision`'s own version.
        provisioner: String,
        steps: Vec<String>,
        dry_run: bool,
    },
    /// A step begins; `title` is for people, `step` is the stable verb-noun name.
    StepStarted { step: String, title: String },
    /// The step had nothing to do.
    StepSatisfied { step: String, elapsed_ms: u64 },
    /// Dry run only: the step would be applied, for this reason.
    StepPlanned {
        step: String,
        reason: String,
        /// Everything that it would change; a provisioner that is older leaves it out.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changes: Vec<Change>,
    },
    /// The step was applied, for this reason.
    StepApplied {
        step: String,
        reason: String,
        elapsed_ms: u64,
        /// What it changed, as the plan said it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changes: Vec<Change>,
    },
    /// The step failed and the run ends.
    StepFailed {
        step: String,
        /// What failed, outermost first.
        reason: String,
        /// The chain of causes below `reason`.
        causes: Vec<String>,
        elapsed_ms: u64,
        /// The process will end with this exit code.
        exit_code: u8,
        /// What else was found; a provisioner that is older leaves it out.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        evidence: Vec<Evidence>,
    },
    /// A wait that is not over yet: what for, and what was last seen.
    Waiting {
        step: String,
        /// The named condition, such as `node Ready`.
        condition: String,
        /// Its last observed state.
        observed: String,
        elapsed_ms: u64,
        timeout_ms: u64,
    },
    /// Work with a measurable amount, such as a download.
    Progress {
        step: String,
        done: u64,
        /// Absent where the amount is not known beforehand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
        unit: Unit,
    },
    /// A remark that belongs to no state of a step.
    Log {
        level: LogLevel,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<String>,
        message: String,
    },
    /// The node is Ready and its pod network works.
    NodeReady {
        role: Role,
        /// What `k3s --version` prints first; a stand-in says here that it is one.
        k3s_version: String,
    },
    /// Last line, whatever happened.
    Summary {
        outcome: Outcome,
        applied: u32,
        satisfied: u32,
        elapsed_ms: u64,
    },
    /// An event of a newer provisioner.
    #[serde(other)]
    Unknown,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing had to be done, or in a dry run, nothing would be.
    Unchanged,
    /// Something was done and the node is ready.
    Changed,
    /// Dry run: something would be done.
    Planned,
    Failed,
    #[serde(other)]
    Unknown,
}

/// What [`Event::Progress`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Bytes,
    Items,
    #[serde(other)]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_json_object() {
        let line = EventLine {
            at: Timestamp::UNIX_EPOCH,
            node: "master".parse().unwrap(),
            event: Event::StepApplied {
                step: "write_config".into(),
                reason: "config.yaml is missing".into(),
                elapsed_ms: 12,
                changes: Vec::new(),
            },
        };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(
            text,
            r#"{"at":"1970-01-01T00:00:00Z","node":"master","event":"step_applied","step":"write_config","reason":"config.yaml is missing","elapsed_ms":12}"#
        );
        assert_eq!(EventLine::parse(&text).unwrap(), line);
    }

    #[test]
    fn events_and_fields_of_a_newer_provisioner_are_tolerated() {
        let text =
            r#"{"at":"1970-01-01T00:00:00Z","node":"a","event":"node_sang","song":["la",{"x":1}]}"#;
        assert_eq!(EventLine::parse(text).unwrap().event, Event::Unknown);
        let text = r#"{"at":"1970-01-01T00:00:00Z","node":"a","event":"step_satisfied","step":"s","elapsed_ms":1,"mood":"good"}"#;
        assert!(matches!(
            EventLine::parse(text).unwrap().event,
            Event::StepSatisfied { .. }
        ));
        let text = r#"{"at":"1970-01-01T00:00:00Z","node":"a","event":"progress","step":"s","done":1,"unit":"parsecs"}"#;
        assert!(matches!(
            EventLine::parse(text).unwrap().event,
            Event::Progress {
                unit: Unit::Unknown,
                total: None,
                ..
            }
        ));
    }

    #[test]
    fn a_line_that_is_no_event_is_an_error() {
        assert!(EventLine::parse("Reading package lists...").is_err());
    }
}
