//! What K3s's journal means. K3s waits for ever on most mistakes and says why in passing, so the
//! known sayings are looked up here.

mod patterns;

use self::patterns::PATTERNS;
use crate::redact::redact;

/// A cause that the journal names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// What it means and what to do.
    pub(crate) meaning: &'static str,
    /// The line that says so.
    pub(crate) line: String,
    /// Whether waiting cannot help.
    pub(crate) is_final: bool,
}

/// The most telling known cause in some journal lines.
pub(crate) fn find_cause(lines: &[String]) -> Option<Cause> {
    PATTERNS.iter().find_map(|pattern| {
        let line = lines.iter().rev().find(|line| {
            let line = line.to_lowercase();
            pattern.parts.iter().all(|part| line.contains(part))
        })?;
        Some(Cause {
            meaning: pattern.meaning,
            line: redact(line),
            is_final: pattern.is_final,
        })
    })
}

/// The journal's last lines that are worth showing: errors and warnings where there are any.
pub(crate) fn tail(lines: &[String], count: usize) -> Vec<String> {
    let serious: Vec<&String> = lines
        .iter()
        .filter(|line| {
            ["level=error", "level=fatal", "level=warn", "panic:"]
                .iter()
                .any(|mark| line.contains(mark))
        })
        .collect();
    let chosen = if serious.is_empty() {
        lines.iter().collect()
    } else {
        serious
    };
    let start = chosen.len().saturating_sub(count);
    chosen[start..].iter().map(|line| redact(line)).collect()
}

/// The last errors of the kubelet and of the other parts that K3s runs, which log in klog's way (`E0722 18:55:59...`).
pub(crate) fn component_errors(lines: &[String], count: usize) -> Vec<String> {
    let errors: Vec<&String> = lines.iter().filter(|line| is_klog_error(line)).collect();
    let start = errors.len().saturating_sub(count);
    errors[start..].iter().map(|line| redact(line)).collect()
}

fn is_klog_error(line: &str) -> bool {
    let bytes = line.as_bytes();
    matches!(bytes, [b'E' | b'F', rest @ ..] if rest.len() > 4 && rest[..4].iter().all(u8::is_ascii_digit) && rest[4] == b' ')
}

#[cfg(test)]
mod tests;
