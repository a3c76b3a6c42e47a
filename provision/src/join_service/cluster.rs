//! The cluster's bootstrap tokens, through K3s's own commands.
//!
//! Nothing secret is in an argument: a token is deleted by its public half. They are listed with
//! kubectl and a template of their public fields, because `k3s token list --output json` prints every
//! token of the cluster whole.

use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use jiff::Timestamp;
use orch_contract::{JoinToken, NodeName, is_token_id};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::k3s::datastore::Datastore;
use crate::k3s::paths;
use crate::redact::redact;
use crate::system::{CommandError, Commands, Invocation};

const TIMEOUT: Duration = Duration::from_secs(15);
/// Each command is a process of K3s's size; the others wait their turn.
const CONCURRENT_COMMANDS: usize = 2;
/// By which the service knows its own tokens.
const DESCRIPTION: &str = "orch: join of node ";
const SECRET_PREFIX: &str = "bootstrap-token-";
/// Below K3s's folder of a server.
const SERVER_TOKEN: &str = "token";
/// Name, expiration and description of each token, tabs between them.
const TOKEN_TEMPLATE: &str = "{{range .items}}{{.metadata.name}}{{with .data}}\
    {{\"\\t\"}}{{with .expiration}}{{base64decode .}}{{end}}\
    {{\"\\t\"}}{{with .description}}{{base64decode .}}{{end}}{{end}}{{\"\\n\"}}{{end}}";
/// Node and renewal of each lease.
const LEASE_TEMPLATE: &str = "{{range .items}}{{.metadata.name}}{{\"\\t\"}}\
    {{with .spec}}{{with .renewTime}}{{.}}{{end}}{{end}}{{\"\\n\"}}{{end}}";

/// A token of this service that is in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListedToken {
    pub(super) id: String,
    pub(super) node: NodeName,
    pub(super) expires_at: Option<Timestamp>,
}

/// When a node's kubelet last said that it lives. It takes the node's certificate to say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) node: String,
    pub(super) renewed: String,
}

pub(super) struct ClusterTokens<C> {
    pub(super) commands: C,
    admin_kubeconfig: PathBuf,
    /// K3s's folder of this server.
    server_data: PathBuf,
    turns: Semaphore,
}

impl<C: Commands> ClusterTokens<C> {
    pub(super) fn new(
        commands: C,
        admin_kubeconfig: impl Into<PathBuf>,
        server_data: impl Into<PathBuf>,
    ) -> Self {
        Self {
            commands,
            admin_kubeconfig: admin_kubeconfig.into(),
            server_data: server_data.into(),
            turns: Semaphore::new(CONCURRENT_COMMANDS),
        }
    }

    /// Before this file is there K3s has not started; asking it would only cost time.
    pub(super) fn is_up(&self) -> bool {
        self.admin_kubeconfig.exists()
    }

    /// What this server keeps the cluster's state in.
    pub(super) fn datastore(&self) -> io::Result<Datastore> {
        Datastore::below(&self.server_data, |path| path.try_exists())
    }

    /// The token with which servers join. K3s has no other for them, and this one never expires.
    pub(super) fn server_token(&self) -> Result<JoinToken, String> {
        let path = self.server_data.join(SERVER_TOKEN);
        let read = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = fs::read_to_string(&path)
            .map(Zeroizing::new)
            .map_err(|error| read(&error))?;
        let token = JoinToken::parse(text.trim()).map_err(|error| read(&error))?;
        if token.is_a_servers() {
            return Ok(token);
        }
        Err(read(&"this is no server's token"))
    }

    /// Takes a server that lost its data out of the cluster: K3s takes the member of a deleted Node out of etcd, and would
    /// not let in another of that name.
    pub(super) async fn forget_server(&self, node: &NodeName) -> Result<(), CommandError> {
        let mut arguments = self.kubectl("kube-system", &["delete", "node", node.as_str()]);
        arguments.push("--ignore-not-found".to_owned());
        self.run(arguments).await?;
        self.delete(Some(node), &[]).await
    }

    /// Makes a token; its public half beside it.
    pub(super) async fn create(
        &self,
        node: &NodeName,
        ttl: Duration,
    ) -> Result<(JoinToken, String), String> {
        let arguments = [
            "token".to_owned(),
            "create".to_owned(),
            "--ttl".to_owned(),
            format!("{}s", ttl.as_secs()),
            "--description".to_owned(),
            format!("{DESCRIPTION}{node}"),
        ];
        let shown = self
            .run(arguments)
            .await
            .map_err(|error| describe(&error))?;
        // K3s prints the token alone; a warning before it must not be taken for one.
        let line = shown.lines().map(str::trim).rfind(|line| !line.is_empty());
        let token = JoinToken::parse(line.unwrap_or_default())
            .map_err(|error| format!("`k3s token create` printed no token: {error}"))?;
        match token.id().map(str::to_owned) {
            Some(id) => Ok((token, id)),
            None => Err("`k3s token create` printed a token that cannot be revoked".to_owned()),
        }
    }

    /// Deletes tokens, and a node's password if one is named; what is gone already is as wanted.
    pub(super) async fn delete(
        &self,
        password_of: Option<&NodeName>,
        ids: &[String],
    ) -> Result<(), CommandError> {
        let passwords = password_of
            .iter()
            .map(|node| format!("{node}.node-password.k3s"));
        let secrets = passwords.chain(ids.iter().map(|id| format!("{SECRET_PREFIX}{id}")));
        let mut arguments = self.kubectl("kube-system", &["delete", "secret"]);
        arguments.extend(secrets);
        arguments.push("--ignore-not-found".to_owned());
        self.run(arguments).await.map(drop)
    }

    /// The tokens of this service, also those that an earlier process of it made.
    pub(super) async fn list(&self) -> Result<Vec<ListedToken>, CommandError> {
        let mut arguments = self.kubectl("kube-system", &["get", "secrets"]);
        arguments.push("--field-selector=type=bootstrap.kubernetes.io/token".to_owned());
        arguments.push(format!("--output=go-template={TOKEN_TEMPLATE}"));
        let shown = self.run(arguments).await?;
        Ok(shown.lines().filter_map(listed_token).collect())
    }

    pub(super) async fn leases(&self) -> Result<Vec<Lease>, CommandError> {
        let mut arguments = self.kubectl("kube-node-lease", &["get", "leases"]);
        arguments.push(format!("--output=go-template={LEASE_TEMPLATE}"));
        let shown = self.run(arguments).await?;
        Ok(shown.lines().filter_map(lease).collect())
    }

    fn kubectl(&self, namespace: &str, verb: &[&str]) -> Vec<String> {
        let mut arguments = vec![
            "kubectl".to_owned(),
            "--kubeconfig".to_owned(),
            self.admin_kubeconfig.display().to_string(),
            "--request-timeout=10s".to_owned(),
            format!("--namespace={namespace}"),
        ];
        arguments.extend(verb.iter().map(|word| (*word).to_owned()));
        arguments
    }

    async fn run(
        &self,
        arguments: impl IntoIterator<Item = String>,
    ) -> Result<Zeroizing<String>, CommandError> {
        // The semaphore is never closed; without a turn the command would only be one too many.
        let _turn = self.turns.acquire().await;
        let commands: &dyn Commands = &self.commands;
        let invocation = Invocation::new(paths::BINARY, arguments).timeout(TIMEOUT);
        Ok(commands.run_ok(&invocation).await?.text())
    }
}

/// None for tokens that are not this service's.
fn listed_token(line: &str) -> Option<ListedToken> {
    let mut fields = line.splitn(3, '\t');
    let id = fields.next()?.strip_prefix(SECRET_PREFIX)?;
    let expires_at = fields.next()?.parse().ok();
    let node = fields.next()?.strip_prefix(DESCRIPTION)?.parse().ok()?;
    is_token_id(id).then(|| ListedToken {
        id: id.to_owned(),
        node,
        expires_at,
    })
}

fn lease(line: &str) -> Option<Lease> {
    let (node, renewed) = line.split_once('\t')?;
    (!node.is_empty() && !renewed.is_empty()).then(|| Lease {
        node: node.to_owned(),
        renewed: renewed.to_owned(),
    })
}

pub(super) fn describe(error: &CommandError) -> String {
    redact(&orch_runner::error_chain(error).join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_of_this_service_are_its_own() {
        let line = "bootstrap-token-abc123\t2026-01-02T03:04:05Z\torch: join of node agent";
        let token = listed_token(line).unwrap();
        assert_eq!(
            (token.id.as_str(), token.node.as_str()),
            ("abc123", "agent")
        );
        assert_eq!(token.expires_at, "2026-01-02T03:04:05Z".parse().ok());
        for other in [
            "",
            "bootstrap-token-abc123",
            "bootstrap-token-abc123\t\tsomebody else's",
            "bootstrap-token-abc123\t\torch: join of node ../x",
            "bootstrap-token-ABC\t\torch: join of node agent",
            "other-secret\t\torch: join of node agent",
        ] {
            assert_eq!(listed_token(other), None, "{other}");
        }
        let never = listed_token("bootstrap-token-abc123\t\torch: join of node agent").unwrap();
        assert_eq!(never.expires_at, None);
    }

    #[test]
    fn a_lease_without_a_renewal_says_nothing() {
        assert_eq!(lease("agent\t"), None);
        assert_eq!(
            lease("agent\t2026-01-02T03:04:05.678901Z").unwrap().node,
            "agent"
        );
    }
}
