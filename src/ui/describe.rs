//! Events of the domains as one line for people.

use orch_contract::{Event, EventLine};

/// A node's event as a line; `None` for what only programs want.
pub fn describe_node_event(line: &EventLine) -> Option<String> {
    let node = &line.node;
    Some(match &line.event {
        Event::StepApplied {
            step, elapsed_ms, ..
        } => {
            format!("{node}: {step} ({:.1} s)", seconds(*elapsed_ms))
        }
        Event::StepFailed { step, reason, .. } => format!("{node}: {step} failed: {reason}"),
        Event::Waiting {
            condition,
            observed,
            elapsed_ms,
            ..
        } => {
            format!(
                "{node}: waiting for {condition}: {observed} ({:.0} s)",
                seconds(*elapsed_ms)
            )
        }
        Event::NodeReady { role, k3s_version } => format!("{node}: {role} ready, {k3s_version}"),
        Event::Log { message, .. } => format!("{node}: {message}"),
        _ => return None,
    })
}

fn seconds(milliseconds: u64) -> f64 {
    std::time::Duration::from_millis(milliseconds).as_secs_f64()
}
