//! What the nodes are and run, as `orch-provision facts` says it on each of them, and how a server is talked to.

use orch_contract::{NodeFacts, node_paths};
use serde::Serialize;

use super::node::{KUBECONFIG, Node};
use super::{Host, NodeError, Options, Secret, Watcher, chain, fleet};
use crate::remote::Command;

/// One node's answer.
#[derive(Debug, Serialize)]
pub struct FactsReport {
    pub node: String,
    /// The document of `orch-provision facts`; none where the node could not be asked.
    pub facts: Option<NodeFacts>,
    /// Why it could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Asks every node.
pub async fn facts(hosts: &[Host], options: &Options, watcher: &dyn Watcher) -> Vec<FactsReport> {
    fleet::each(hosts, options, |host| async move {
        match ask(&Node::new(host, options, watcher)).await {
            Ok(facts) => FactsReport {
                node: host.name.clone(),
                facts: Some(facts),
                error: None,
            },
            Err(error) => FactsReport {
                node: host.name.clone(),
                facts: None,
                error: Some(chain(&error)),
            },
        }
    })
    .await
}

/// A server's kubeconfig, as K3s wrote it.
pub async fn kubeconfig(
    host: &Host,
    options: &Options,
    watcher: &dyn Watcher,
) -> Result<Secret, NodeError> {
    let session = Node::new(host, options, watcher).open().await?;
    let output = session
        .succeed(Command::program(["cat", KUBECONFIG]))
        .await?;
    session.close().await;
    Ok(Secret::new(output.stdout))
}

async fn ask(node: &Node<'_>) -> Result<NodeFacts, NodeError> {
    let session = node.open().await?;
    let command = Command::program([node_paths::PROVISIONER, "facts"]);
    let output = session.succeed(command).await?;
    session.close().await;
    serde_json::from_slice(&output.stdout).map_err(|error| node.misunderstood(error.to_string()))
}
