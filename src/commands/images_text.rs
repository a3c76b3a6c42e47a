//! What `orch images` prints of steps, reports and changes.

use serde_json::json;

use crate::images::execute::Report;
use crate::images::pin::Change;
use crate::images::plan::{Action, Step};

/// A result in both formats.
pub(super) struct Text {
    pub(super) plain: String,
    pub(super) json: serde_json::Value,
}

pub(super) fn steps_text(steps: &[Step]) -> Text {
    let line = |step: &Step| {
        let action = match step.action {
            Action::Skip { .. } => "skip",
            Action::Retag { .. } => "retag",
            Action::Push { .. } => "push",
            Action::Build if step.published => "build and push",
            Action::Build => "build",
        };
        format!(
            "{}:{} {action}: {}\n",
            step.component, step.tag, step.reason
        )
    };
    Text {
        plain: steps.iter().map(line).collect(),
        json: json!(steps),
    }
}

pub(super) fn report_text(report: &Report) -> Text {
    let plain = report
        .references
        .values()
        .map(|reference| format!("{reference}\n"))
        .collect();
    let json = json!({
        "images": report.references,
        "steps": report.steps,
        "attested": report.attested,
        "pinned": report.pinned.iter().map(change_json).collect::<Vec<_>>(),
        "requests": report.requests,
        "bytes_sent": report.bytes_sent,
        "seconds": report.seconds,
    });
    Text { plain, json }
}

pub(super) fn changes_text(changes: &[Change]) -> Text {
    Text {
        plain: changes.iter().map(change_line).collect(),
        json: changes.iter().map(change_json).collect(),
    }
}

fn change_line(change: &Change) -> String {
    format!(
        "{}:{}:{}: {} -> {}\n",
        change.path.display(),
        change.line,
        change.column,
        change.before,
        change.after
    )
}

fn change_json(change: &Change) -> serde_json::Value {
    json!({
        "file": change.path,
        "line": change.line,
        "column": change.column,
        "before": change.before,
        "after": change.after,
    })
}
