//! Vagrant: up, halt, destroy, status. Its output is a stream of lines among which the nodes'
//! provisioning events travel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use orch_contract::{Event, EventLine, Evidence};

use super::{MachineError, Provider};
use crate::process::{OnCancel, Program};

/// What the Vagrantfile puts before an event.
const EVENT_MARK: &str = "orch-event ";

/// Something that happened while Vagrant worked.
#[derive(Debug, Clone)]
pub enum MachineEvent {
    /// A line of Vagrant's own.
    Line(String),
    /// A node's provisioning event.
    Node(EventLine),
}

/// A machine as Vagrant sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    Running,
    Stopped,
    NotCreated,
    /// A state of the provider's that orch has no word for.
    Other,
}

impl MachineState {
    /// The word in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::NotCreated => "not created",
            Self::Other => "in a state that orch does not know",
        }
    }
}

/// Vagrant in one project, for one cluster.
#[derive(Debug, Clone)]
pub struct Vagrant {
    /// Where the Vagrantfile lies.
    pub root: PathBuf,
    /// The `orch.yaml` in use.
    pub file: PathBuf,
    /// Where Vagrant keeps its machine ids.
    pub state: PathBuf,
    pub provider: Provider,
}

impl Vagrant {
    fn program(&self, arguments: &[&str]) -> Program {
        let mut program = Program::new("vagrant")
            .args(arguments)
            .directory(&self.root)
            .env("VAGRANT_CWD", &self.root)
            .env("VAGRANT_DOTFILE_PATH", &self.state)
            .env("VAGRANT_DEFAULT_PROVIDER", self.provider.as_str())
            .env("VAGRANT_CHECKPOINT_DISABLE", "1")
            .env("VAGRANT_NO_COLOR", "1")
            .env("ORCH_FILE", &self.file)
            .env("ORCH_EVENTS", "1");
        if let Ok(executable) = std::env::current_exe() {
            program = program.env("ORCH_BIN", executable);
        }
        // Half a virtual machine is something that only Vagrant can clear away. Containers carry labels, and one that an
        // interrupted Vagrant removes has to be made anew by the next run.
        program.on_cancel(match self.provider {
            Provider::Docker => OnCancel::KillGroup,
            Provider::Virtualbox | Provider::Libvirt | Provider::Ssh => OnCancel::Interrupt,
        })
    }

    /// Makes, starts and provisions these machines; every one where none is named.
    pub async fn up(
        &self,
        names: &[String],
        on_event: impl FnMut(MachineEvent),
    ) -> Result<(), MachineError> {
        let mut arguments = vec!["up", "--provision"];
        arguments.extend(names.iter().map(String::as_str));
        self.stream("bring the machines up", &arguments, on_event)
            .await
    }

    /// Starts these machines without looking at what is on them.
    pub async fn boot(
        &self,
        names: &[String],
        on_event: impl FnMut(MachineEvent),
    ) -> Result<(), MachineError> {
        let mut arguments = vec!["up", "--no-provision"];
        arguments.extend(names.iter().map(String::as_str));
        self.stream("start the machines", &arguments, on_event)
            .await
    }

    /// Stops every machine.
    pub async fn halt(&self, on_event: impl FnMut(MachineEvent)) -> Result<(), MachineError> {
        self.stream("stop the machines", &["halt"], on_event).await
    }

    /// Removes every machine.
    pub async fn destroy(&self, on_event: impl FnMut(MachineEvent)) -> Result<(), MachineError> {
        self.stream("destroy the machines", &["destroy", "--force"], on_event)
            .await
    }

    /// Removes one machine, also one that orch.yaml no longer has.
    pub async fn destroy_one(
        &self,
        name: &str,
        on_event: impl FnMut(MachineEvent),
    ) -> Result<(), MachineError> {
        let arguments = ["destroy", "--force", name];
        self.stream("destroy the machine", &arguments, on_event)
            .await
    }

    async fn stream(
        &self,
        operation: &'static str,
        arguments: &[&str],
        mut on_event: impl FnMut(MachineEvent),
    ) -> Result<(), MachineError> {
        let failures = Mutex::new(Vec::new());
        let result = self
            .program(arguments)
            .lines(|_, line| {
                let event = parse(line);
                if let MachineEvent::Node(EventLine {
                    node,
                    event:
                        Event::StepFailed {
                            step,
                            reason,
                            causes,
                            evidence,
                            ..
                        },
                    ..
                }) = &event
                    && let Ok(mut failures) = failures.lock()
                {
                    let causes: String = causes
                        .iter()
                        .map(|cause| format!("\n      {cause}"))
                        .collect();
                    let evidence = described(evidence);
                    failures.push(format!("\n  {node}: {step}: {reason}{causes}{evidence}"));
                }
                on_event(event);
            })
            .await;
        result.map_err(|source| MachineError::Vagrant {
            operation,
            causes: failures.into_inner().unwrap_or_default().concat(),
            source,
        })
    }

    /// Every machine's state. Reads the ids that Vagrant stored rather than starting Vagrant when
    /// there are none.
    pub async fn status(&self) -> Result<BTreeMap<String, MachineState>, MachineError> {
        let text = self
            .program(&["status", "--machine-readable"])
            .output()
            .await
            .map_err(|source| MachineError::Vagrant {
                operation: "say how the machines are",
                causes: String::new(),
                source,
            })?;
        Ok(parse_status(&text))
    }

    /// The ids of the machines that Vagrant has made with the docker provider.
    pub fn docker_ids(&self) -> Vec<String> {
        let machines = self.state.join("machines");
        let Ok(entries) = std::fs::read_dir(machines) else {
            return Vec::new();
        };
        entries
            .filter_map(Result::ok)
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("docker/id")).ok())
            .map(|id| id.trim().to_owned())
            .collect()
    }

    /// Whether Vagrant has made any machine of this cluster.
    pub fn has_machines(&self) -> bool {
        existing_provider(&self.state).is_some()
    }
}

/// The provider of the machines whose ids Vagrant keeps in `state`; `None` when there are none.
pub fn existing_provider(state: &Path) -> Option<Provider> {
    let machines = std::fs::read_dir(state.join("machines")).ok()?;
    machines.filter_map(Result::ok).find_map(|machine| {
        Provider::VAGRANT.into_iter().find(|provider| {
            let id = machine.path().join(provider.as_str()).join("id");
            id.exists()
        })
    })
}

/// What was found around a failure, below it.
fn described(evidence: &[Evidence]) -> String {
    let mut text = String::new();
    for Evidence { title, lines } in evidence {
        text.push_str(&format!("\n      {title}:"));
        for line in lines {
            text.push_str(&format!("\n        {line}"));
        }
    }
    text
}

fn parse(line: &str) -> MachineEvent {
    line.split_once(EVENT_MARK)
        .and_then(|(_, json)| EventLine::parse(json).ok())
        .map_or_else(
            || MachineEvent::Line(line.trim().to_owned()),
            MachineEvent::Node,
        )
}

/// Vagrant's machine-readable output: `timestamp,machine,type,data...`.
fn parse_status(text: &str) -> BTreeMap<String, MachineState> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(',').skip(1);
            let (machine, kind, state) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "state").then(|| {
                let state = match state {
                    "running" => MachineState::Running,
                    "stopped" | "poweroff" | "shutoff" | "saved" | "host_state_unknown" => {
                        MachineState::Stopped
                    }
                    "not_created" => MachineState::NotCreated,
                    _ => MachineState::Other,
                };
                (machine.to_owned(), state)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vagrants_prefix_before_an_event_is_cut() {
        let line = r#"    master: orch-event {"at":"2026-01-01T00:00:00Z","node":"master","event":"step_satisfied","step":"install_k3s","elapsed_ms":3}"#;
        match parse(line) {
            MachineEvent::Node(event) => assert_eq!(event.node.to_string(), "master"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn evidence_is_shown_below_its_title() {
        let evidence = Evidence {
            title: "who listens".to_owned(),
            lines: vec!["port 6443: haproxy, process 7".to_owned()],
        };
        assert_eq!(
            described(&[evidence]),
            "\n      who listens:\n        port 6443: haproxy, process 7"
        );
    }

    #[test]
    fn machines_are_known_by_the_ids_that_vagrant_keeps() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(existing_provider(state.path()), None);
        let machine = state.path().join("machines/master/libvirt");
        std::fs::create_dir_all(&machine).unwrap();
        assert_eq!(existing_provider(state.path()), None, "made and destroyed");
        std::fs::write(machine.join("id"), "1234").unwrap();
        assert_eq!(existing_provider(state.path()), Some(Provider::Libvirt));
    }

    #[test]
    fn a_line_that_is_no_event_stays_a_line() {
        assert!(matches!(
            parse("==> master: Booting"),
            MachineEvent::Line(_)
        ));
        assert!(matches!(parse("orch-event {broken"), MachineEvent::Line(_)));
    }

    #[test]
    fn states_are_read_from_the_machine_readable_output() {
        let text = "1,master,metadata,provider,docker\n1,master,state,running\n1,agent,state,not_created\n1,,ui,info,hello\n";
        let states = parse_status(text);
        assert_eq!(states["master"], MachineState::Running);
        assert_eq!(states["agent"], MachineState::NotCreated);
        assert_eq!(states.len(), 2);
    }
}
