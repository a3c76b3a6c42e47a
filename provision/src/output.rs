//! The one place that prints: events to stdout, an error's chain to stderr.

use std::io::{self, Write};
use std::process;

use jiff::Timestamp;
use orch_contract::{Change, Event, EventLine, Evidence, ExitCode, LogLevel, NodeName, Unit};
use orch_runner::{Reporter, StepFailure, error_chain};

use crate::cli::Output;

/// Writes each event as it happens. A reader that has gone away ends the run, which whoever composes it sees to.
pub(crate) struct StdoutReporter {
    pub(crate) node: NodeName,
    pub(crate) output: Output,
}

impl Reporter for StdoutReporter {
    fn report(&self, event: Event) {
        let line = match self.output {
            Output::Json => serde_json::to_string(&EventLine {
                at: Timestamp::now(),
                node: self.node.clone(),
                event,
            })
            .ok(),
            Output::Plain => plain(&event).map(|text| format!("[{}] {text}", self.node)),
        };
        if let Some(line) = line {
            let mut stdout = io::stdout().lock();
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        }
    }
}

fn plain(event: &Event) -> Option<String> {
    Some(match event {
        Event::RunStarted { role, dry_run, .. } => match dry_run {
            true => format!("this is what would be done for the {role}:"),
            false => format!("provisioning the {role}"),
        },
        Event::StepStarted { .. } | Event::Unknown => return None,
        Event::StepSatisfied { step, .. } => format!("{step}: nothing to do"),
        Event::StepPlanned {
            step,
            reason,
            changes,
        } => match changes.is_empty() {
            true => format!("{step}: needed, {reason}"),
            false => format!("{step}: needed{}", list(changes)),
        },
        Event::StepApplied {
            step,
            reason,
            elapsed_ms,
            ..
        } => format!("{step}: done in {elapsed_ms} ms ({reason})"),
        Event::StepFailed { step, evidence, .. } => {
            let mut text = format!("{step}: failed");
            for Evidence { title, lines } in evidence {
                text.push_str(&format!("\n  {title}:"));
                for line in lines {
                    text.push_str(&format!("\n    {line}"));
                }
            }
            text
        }
        Event::Waiting {
            condition,
            observed,
            elapsed_ms,
            timeout_ms,
            ..
        } => format!(
            "waiting for {condition} ({} of {} s): {observed}",
            elapsed_ms / 1000,
            timeout_ms / 1000
        ),
        Event::Progress {
            step,
            done,
            total,
            unit,
        } => format!("{step}: {}", amount(*done, *total, *unit)),
        Event::Log { level, message, .. } => match level {
            LogLevel::Warn => format!("warning: {message}"),
            LogLevel::Debug | LogLevel::Info | LogLevel::Unknown => message.clone(),
        },
        Event::NodeReady { k3s_version, .. } => format!("ready: {k3s_version}"),
        Event::Summary {
            applied,
            satisfied,
            elapsed_ms,
            ..
        } => format!("{applied} steps applied, {satisfied} satisfied, in {elapsed_ms} ms"),
    })
}

/// What would change, one line each, and what differs in a file below it.
fn list(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        let Change {
            subject,
            name,
            action,
            detail,
            diff,
        } = change;
        text.push_str(&format!("\n  {action} {subject} {name}: {detail}"));
        for line in diff {
            text.push_str(&format!("\n      {line}"));
        }
    }
    text
}

fn amount(done: u64, total: Option<u64>, unit: Unit) -> String {
    let show = |count: u64| match unit {
        Unit::Bytes => format!("{} MiB", count >> 20),
        Unit::Items | Unit::Unknown => count.to_string(),
    };
    match total {
        Some(total) => format!("{} of {}", show(done), show(total)),
        None => show(done),
    }
}

/// Prints one JSON document.
pub(crate) fn document(value: &impl serde::Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Prints what is wrong with the command line, or the help that was asked for.
pub(crate) fn exit_usage(error: &clap::Error) -> process::ExitCode {
    // Nobody is left to tell when this fails.
    let _ = error.print();
    let code = match error.use_stderr() {
        true => ExitCode::Usage,
        false => ExitCode::Success,
    };
    process::ExitCode::from(code.code())
}

/// Prints a failure's chain and turns the outcome into the process's exit code.
pub(crate) fn exit(outcome: Result<ExitCode, StepFailure>) -> process::ExitCode {
    let code = match outcome {
        Ok(code) => code,
        Err(failure) => {
            let mut stderr = io::stderr().lock();
            for (depth, message) in error_chain(failure.error()).iter().enumerate() {
                let lead = if depth == 0 { "error" } else { "  because" };
                let _ = writeln!(stderr, "{lead}: {message}");
            }
            failure.exit_code
        }
    };
    process::ExitCode::from(code.code())
}
