//! Waits until the node is Ready and its pods have a network. Ready alone comes too early.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use orch_contract::{Action, Change, ExitCode, Role, Subject};
use orch_runner::{Check, ExitCoded, Probe, Step, StepFailure, StepReport, Wait, WaitError};
use serde::Deserialize;

use super::Context;
use crate::k3s::journal;
use crate::k3s::paths;
use crate::k3s::units::unit_name;
use crate::system::{CommandError, FileError, Invocation};

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The kubelet's own health check, on the loopback interface only.
const KUBELET_HEALTH: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10248);
/// The evidence has more of them.
const SHOWN_LINES: usize = 3;

/// Why the node is not ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WaitReadyError {
    #[error("{name} is not ready: {meaning}\nthe journal of {unit} says: {line}")]
    Cause {
        name: String,
        unit: &'static str,
        meaning: &'static str,
        line: String,
        source: WaitError,
    },
    #[error("{name} is not ready; the journal of {unit} ends with:\n{}", tail.join("\n"))]
    TimedOut {
        name: String,
        unit: &'static str,
        tail: Vec<String>,
        source: WaitError,
    },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for WaitReadyError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::NotReady
    }
}

#[derive(Deserialize)]
struct NodeObject {
    status: NodeStatus,
}

#[derive(Deserialize)]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    message: String,
}

/// The part of a CNI configuration that says which plugins it uses.
#[derive(Deserialize)]
struct CniList {
    #[serde(default)]
    plugins: Vec<CniPlugin>,
}

#[derive(Deserialize)]
struct CniPlugin {
    #[serde(rename = "type")]
    kind: String,
}

pub(crate) struct WaitReady<'a> {
    pub(crate) context: Context<'a>,
}

impl WaitReady<'_> {
    fn unit(&self) -> &'static str {
        unit_name(self.context.config.node.role)
    }

    /// Looks at each condition in the order in which they come true.
    async fn look(&self) -> Result<Probe<()>, WaitReadyError> {
        let state = self.context.system.services.state(self.unit()).await?;
        if !state.is_active() {
            return Ok(Probe::Pending(format!(
                "{} is {}",
                self.unit(),
                state.active
            )));
        }
        // A node stays Ready in the API for 40 s after its kubelet has gone.
        let endpoints = self.context.system.endpoints;
        match endpoints.http_status(KUBELET_HEALTH, "/healthz").await {
            Ok(status) if status.starts_with("200") => {}
            Ok(status) => return Ok(Probe::Pending(format!("the kubelet answers {status}"))),
            Err(error) => {
                return Ok(Probe::Pending(format!(
                    "the kubelet does not answer: {error}"
                )));
            }
        }
        if let Some(missing) = self.missing_network()? {
            return Ok(Probe::Pending(missing));
        }
        Ok(match self.node_condition().await? {
            Ok(()) => Probe::Met(()),
            Err(seen) => Probe::Pending(seen),
        })
    }

    /// Whether the node is Ready in the API, asked with credentials that this node has: the
    /// administrator's on a server, the kubelet's own on an agent.
    async fn node_condition(&self) -> Result<Result<(), String>, WaitReadyError> {
        let node = &self.context.config.node;
        let kubeconfig = match node.role {
            Role::Server => paths::ADMIN_KUBECONFIG,
            Role::Agent => paths::KUBELET_KUBECONFIG,
        };
        let invocation = Invocation::new(
            paths::BINARY,
            [
                "kubectl",
                "--kubeconfig",
                kubeconfig,
                "--request-timeout=10s",
                "get",
                "node",
                node.name.as_str(),
                "--output=json",
            ],
        )
        .timeout(Duration::from_secs(30));
        let shown = match self.context.system.commands.run_ok(&invocation).await {
            Ok(shown) => shown,
            Err(CommandError::Status { output, .. }) => return Ok(Err(output)),
            // A plan looks before an earlier step has put it back.
            Err(error) if error.is_missing() => return Ok(Err(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        Ok(judge_node(&shown.stdout))
    }

    /// What the pod network still lacks. Flannel writes its subnet file after the CNI configuration;
    /// other networks are there as soon as theirs is.
    fn missing_network(&self) -> Result<Option<String>, FileError> {
        let files = self.context.system.files;
        for directory in paths::CNI_CONFIG_DIRECTORIES {
            for path in files.list(Path::new(directory))? {
                let is_config = path
                    .extension()
                    .is_some_and(|end| ["conflist", "conf"].iter().any(|known| end == *known));
                if !is_config {
                    continue;
                }
                let content = files.read(&path)?.unwrap_or_default();
                let flannel = serde_json::from_slice::<CniList>(&content)
                    .is_ok_and(|list| list.plugins.iter().any(|plugin| plugin.kind == "flannel"));
                if flannel && !files.exists(Path::new(paths::FLANNEL_SUBNET))? {
                    return Ok(Some(format!(
                        "no pod network: {} is missing",
                        paths::FLANNEL_SUBNET
                    )));
                }
                return Ok(None);
            }
        }
        Ok(Some(
            "no pod network: there is no CNI configuration".to_owned(),
        ))
    }

    async fn wait(&self, report: &StepReport<'_>) -> Result<(), WaitReadyError> {
        let config = self.context.config;
        let since = Timestamp::now();
        let wait = Wait {
            condition: format!("node {} Ready with a pod network", config.node.name),
            timeout: Duration::from_secs(config.timeouts.ready_seconds),
            interval: POLL_INTERVAL,
        };
        match wait.until(report, || self.look()).await {
            Ok(result) => result,
            Err(source) => {
                let services = self.context.system.services;
                let lines = services.journal(self.unit(), since, 400).await?;
                let name = config.node.name.to_string();
                let unit = self.unit();
                Err(match journal::find_cause(&lines) {
                    Some(cause) => WaitReadyError::Cause {
                        name,
                        unit,
                        meaning: cause.meaning,
                        line: cause.line,
                        source,
                    },
                    None => WaitReadyError::TimedOut {
                        name,
                        unit,
                        tail: journal::tail(&lines, SHOWN_LINES),
                        source,
                    },
                })
            }
        }
    }
}

fn judge_node(json: &[u8]) -> Result<(), String> {
    let node: NodeObject = serde_json::from_slice(json)
        .map_err(|error| format!("kubectl's answer cannot be read: {error}"))?;
    let ready = node
        .status
        .conditions
        .into_iter()
        .find(|condition| condition.kind == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => Ok(()),
        Some(condition) => Err(format!("not Ready: {}", condition.message)),
        None => Err("the node has reported nothing yet".to_owned()),
    }
}

#[async_trait]
impl Step for WaitReady<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "wait_ready"
    }

    fn title(&self) -> String {
        format!("Wait until {} is ready", self.context.config.node.name)
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        Ok(match self.look().await? {
            Probe::Met(()) => Check::Satisfied(()),
            Probe::Pending(seen) => {
                let name = self.context.config.node.name.to_string();
                let wait = Change::new(
                    Subject::Node,
                    name,
                    Action::Wait,
                    format!("is not ready: {seen}"),
                );
                Check::Needed(vec![wait].into())
            }
        })
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.wait(report).await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::Services;
    use crate::testing::{Machine, agent_config};

    const READY: &str = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    const NOT_READY: &str = r#"{"status":{"conditions":[{"type":"Ready","status":"False","message":"cni not initialized"}]}}"#;

    async fn look(machine: &Machine) -> Probe<()> {
        let config = agent_config();
        let step = WaitReady {
            context: machine.context(&config),
        };
        step.look().await.unwrap()
    }

    fn pending(text: &str) -> impl Fn(Probe<()>) -> bool {
        move |probe| matches!(probe, Probe::Pending(seen) if seen.contains(text))
    }

    #[tokio::test]
    async fn every_condition_counts_and_is_named() {
        let machine = Machine::fit();
        assert!(pending("k3s-agent.service is")(look(&machine).await));
        machine
            .services
            .begin_restart("k3s-agent.service")
            .await
            .unwrap();
        assert!(pending("the kubelet does not answer")(look(&machine).await));
        *machine.endpoints.status.lock().unwrap() = Some("500 Internal Server Error".to_owned());
        assert!(pending("the kubelet answers 500")(look(&machine).await));
        *machine.endpoints.status.lock().unwrap() = Some("200 OK".to_owned());
        assert!(pending("no CNI configuration")(look(&machine).await));
        machine.files.put(
            "/var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist",
            r#"{"plugins":[{"type":"flannel"},{"type":"portmap"}]}"#,
            0o600,
        );
        assert!(pending("subnet.env is missing")(look(&machine).await));
        machine.files.put("/run/flannel/subnet.env", "x", 0o644);
        machine
            .commands
            .answer("/usr/local/bin/k3s kubectl", 1, "nodes \"agent\" not found");
        assert!(pending("not found")(look(&machine).await));
        machine
            .commands
            .answer("/usr/local/bin/k3s kubectl", 0, NOT_READY);
        assert!(pending("cni not initialized")(look(&machine).await));
        machine
            .commands
            .answer("/usr/local/bin/k3s kubectl", 0, READY);
        assert_eq!(look(&machine).await, Probe::Met(()));
        let asked = machine.commands.asked_lines();
        assert!(
            asked
                .iter()
                .all(|line| line.contains("agent/kubelet.kubeconfig"))
        );
    }

    #[tokio::test]
    async fn a_network_without_flannel_needs_no_subnet_file() {
        let machine = Machine::fit();
        machine
            .services
            .begin_restart("k3s-agent.service")
            .await
            .unwrap();
        *machine.endpoints.status.lock().unwrap() = Some("200 OK".to_owned());
        machine
            .commands
            .answer("/usr/local/bin/k3s kubectl", 0, READY);
        machine.files.put(
            "/var/lib/rancher/k3s/agent/etc/cni/net.d/10-bridge.conflist",
            r#"{"plugins":[{"type":"bridge"}]}"#,
            0o600,
        );
        assert_eq!(look(&machine).await, Probe::Met(()));
    }
}
