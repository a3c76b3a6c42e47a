//! What is found around a failed step, while the machine is still as the failure left it.
//!
//! Looks only, gives up quietly on what cannot be seen, and is bounded in lines and in time. Everything that leaves here
//! has lost K3s's tokens and every secret of the node's own configuration.

mod causes;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use orch_contract::{Evidence, NodeConfig};
use orch_runner::{StepFailure, Witness, error_chain};
use zeroize::Zeroizing;

use crate::k3s::journal::component_errors;
use crate::k3s::paths;
use crate::k3s::units::{JOIN_UNIT, unit_name};
use crate::redact::redact;
use crate::steps::{Context, mount_unit_name};
use crate::system::Invocation;

/// Most lines of one kind, and most characters of a line.
const LINES: usize = 20;
const ERRORS: usize = 8;
const COLUMNS: usize = 300;
const JOURNAL_LINES: u32 = 200;
/// A unit that failed before this run still says why.
const LOOK_BACK: SignedDuration = SignedDuration::from_mins(10);
const TIMEOUT: Duration = Duration::from_secs(10);

const HIDDEN: &str = "[hidden]";
/// A shorter secret would take half of the text with it.
const SHORTEST_SECRET: usize = 4;

/// What surrounds the steps of one run.
pub(crate) struct Surroundings<'a> {
    context: Context<'a>,
    since: Timestamp,
}

impl<'a> Surroundings<'a> {
    pub(crate) fn new(context: Context<'a>, now: Timestamp) -> Self {
        Self {
            context,
            since: now.checked_sub(LOOK_BACK).unwrap_or(now),
        }
    }

    /// The unit that a step is about.
    fn unit(&self, step: &str) -> Option<String> {
        let config = self.context.config;
        match step {
            "start_server" | "start_agent" | "wait_ready" => {
                Some(unit_name(config.node.role).to_owned())
            }
            "serve_join" => Some(JOIN_UNIT.to_owned()),
            "mount_storage" => Some(mount_unit_name(&config.storage.path)),
            _ => None,
        }
    }

    async fn journal(&self, unit: &str) -> Vec<String> {
        let services = self.context.system.services;
        let asked = services.journal(unit, self.since, JOURNAL_LINES);
        match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Ok(lines)) => lines,
            _ => Vec::new(),
        }
    }

    /// The last errors of containerd, which has a log of its own.
    async fn containerd_errors(&self) -> Vec<String> {
        let invocation = Invocation::new("tail", ["-n", "500", paths::CONTAINERD_LOG]);
        let text = self.output(invocation).await;
        let errors: Vec<String> = text
            .lines()
            .filter(|line| line.contains("level=error") || line.contains("level=fatal"))
            .map(str::to_owned)
            .collect();
        last(errors, ERRORS)
    }

    async fn output(&self, invocation: Invocation) -> String {
        let commands = self.context.system.commands;
        match commands.run_ok(&invocation.timeout(TIMEOUT)).await {
            Ok(finished) => finished.text().to_string(),
            Err(_) => String::new(),
        }
    }

    async fn look(&self, step: &str, failure: &StepFailure) -> Vec<Evidence> {
        let mut found = Vec::new();
        let mut text = error_chain(failure.error()).join("\n");
        if let Some(unit) = self.unit(step) {
            let lines = self.journal(&unit).await;
            text.push('\n');
            text.push_str(&lines.join("\n"));
            let errors = component_errors(&lines, ERRORS);
            found.push(evidence(format!("journal of {unit}"), last(lines, LINES)));
            if unit == unit_name(self.context.config.node.role) {
                found.push(evidence(
                    "last errors of the kubelet and the other components",
                    errors,
                ));
                let errors = self.containerd_errors().await;
                found.push(evidence("last errors of containerd", errors));
            }
        }
        found.extend(self.causes(&text).await);
        found
    }

    /// Every secret that this node's configuration names, and the tokens that it holds.
    fn secrets(&self) -> Vec<Zeroizing<String>> {
        let mut secrets = secrets_of(self.context.config);
        let files = self.context.system.files;
        for path in [paths::JOIN_TOKEN, paths::SERVER_TOKEN, paths::NODE_PASSWORD] {
            if let Ok(Some(text)) = files.read_text(Path::new(path)) {
                secrets.push(Zeroizing::new(text.trim().to_owned()));
            }
        }
        secrets.retain(|secret| secret.len() >= SHORTEST_SECRET);
        secrets
    }
}

fn secrets_of(config: &NodeConfig) -> Vec<Zeroizing<String>> {
    let environment = config.k3s.environment.values();
    let registries = config.registries.configs.values();
    let passwords = registries.filter_map(|registry| Some(&registry.auth.as_ref()?.password));
    let settings = config.k3s.config.iter();
    environment
        .chain(passwords)
        .map(|secret| Zeroizing::new(secret.expose().to_owned()))
        .chain(
            settings
                .filter(|(key, _)| !crate::k3s::flags::is_public(key))
                .filter_map(|(_, value)| Some(Zeroizing::new(value.as_str()?.to_owned()))),
        )
        .collect()
}

fn evidence(title: impl Into<String>, lines: Vec<String>) -> Evidence {
    Evidence {
        title: title.into(),
        lines,
    }
}

fn last(mut lines: Vec<String>, count: usize) -> Vec<String> {
    lines.split_off(lines.len().saturating_sub(count))
}

/// A line that may be shown.
fn clean(line: &str, secrets: &[Zeroizing<String>]) -> String {
    let mut line = redact(line);
    for secret in secrets {
        line = line.replace(secret.as_str(), HIDDEN);
    }
    // Control characters could move a terminal's cursor.
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(COLUMNS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[async_trait]
impl Witness for Surroundings<'_> {
    async fn evidence(&self, step: &str, failure: &StepFailure) -> Vec<Evidence> {
        let mut found = self.look(step, failure).await;
        let secrets = self.secrets();
        for evidence in &mut found {
            for line in &mut evidence.lines {
                *line = clean(line, &secrets);
            }
        }
        found.retain(|evidence| !evidence.lines.is_empty());
        found
    }
}

#[cfg(test)]
mod tests;
