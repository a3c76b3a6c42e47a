//! What the join service grants: a short-lived K3s token for the node that a key belongs to.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use orch_contract::{
    JOIN_SCHEMA, JoinGrant, JoinRefusal, JoinResponse, JoinToken, NodeConfig, NodeName,
    RefusalReason,
};
use orch_ssh::AuthorizedKeys;
use orch_ssh::server::{Audit, AuditEvent, Grantor, KeySource};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::k3s::paths;
use crate::redact::redact;
use crate::system::{CommandError, Commands, Invocation};

const MINT_TIMEOUT: Duration = Duration::from_secs(15);
/// Each minting is a process of K3s's size; the others wait their turn.
const CONCURRENT_MINTS: usize = 2;

/// Mints tokens with K3s's own command.
pub(crate) struct TokenMint<C> {
    commands: C,
    server_url: String,
    ttl: Duration,
    turns: Semaphore,
}

impl<C: Commands> TokenMint<C> {
    pub(crate) fn new(commands: C, config: &NodeConfig) -> Self {
        Self {
            commands,
            server_url: config.server.url(),
            ttl: config.join.token_ttl(),
            turns: Semaphore::new(CONCURRENT_MINTS),
        }
    }

    fn commands(&self) -> &dyn Commands {
        &self.commands
    }

    async fn mint(&self, node: &NodeName) -> Result<JoinGrant, String> {
        let _turn = self
            .turns
            .acquire()
            .await
            .map_err(|error| error.to_string())?;
        // Before this file is there K3s has not started; asking it would only cost time.
        if !std::path::Path::new(paths::ADMIN_KUBECONFIG).exists() {
            return Err("K3s is not up yet".to_owned());
        }
        let now = Timestamp::now();
        let invocation = Invocation::new(
            paths::BINARY,
            [
                "token".to_owned(),
                "create".to_owned(),
                "--ttl".to_owned(),
                format!("{}s", self.ttl.as_secs()),
                "--description".to_owned(),
                format!("orch: join of node {node}"),
            ],
        )
        .timeout(MINT_TIMEOUT);
        let shown = self
            .commands()
            .run_ok(&invocation)
            .await
            .map_err(|error| describe(&error))?;
        // K3s prints the token alone; a warning before it must not be taken for one.
        let text = shown.text();
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        let token = JoinToken::parse(line.unwrap_or_default())
            .map_err(|error| format!("`k3s token create` printed no token: {error}"))?;
        self.forget_password(node).await;
        let ttl = SignedDuration::try_from(self.ttl).unwrap_or_default();
        Ok(JoinGrant {
            schema: JOIN_SCHEMA,
            node: node.clone(),
            server_url: self.server_url.clone(),
            token,
            expires_at: now + ttl,
        })
    }

    /// A machine that was made anew has lost the password that K3s gave its predecessor, and K3s
    /// would reject it for ever. Its key has just proved which node it is.
    async fn forget_password(&self, node: &NodeName) {
        let invocation = Invocation::new(
            paths::BINARY,
            [
                "kubectl".to_owned(),
                "--kubeconfig".to_owned(),
                paths::ADMIN_KUBECONFIG.to_owned(),
                "--request-timeout=10s".to_owned(),
                "--namespace=kube-system".to_owned(),
                "delete".to_owned(),
                "secret".to_owned(),
                format!("{node}.node-password.k3s"),
                "--ignore-not-found".to_owned(),
            ],
        )
        .timeout(MINT_TIMEOUT);
        if let Err(error) = self.commands().run_ok(&invocation).await {
            write_line(&json!({
                "audit": "password_kept",
                "node": node,
                "problem": describe(&error),
            }));
        }
    }
}

fn describe(error: &CommandError) -> String {
    redact(&orch_runner::error_chain(error).join(": "))
}

#[async_trait]
impl<C: Commands + 'static> Grantor for TokenMint<C> {
    async fn grant(&self, node: &NodeName) -> JoinResponse {
        match self.mint(node).await {
            Ok(grant) => JoinResponse::Granted(grant),
            Err(message) => JoinResponse::Refused(JoinRefusal {
                reason: RefusalReason::NotReady,
                message,
            }),
        }
    }
}

/// The uploaded file, read at each connection: a node that is added needs no restart.
pub(crate) struct AuthorizedKeysFile {
    path: PathBuf,
}

impl AuthorizedKeysFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl KeySource for AuthorizedKeysFile {
    fn authorized_keys(&self) -> Option<AuthorizedKeys> {
        let problem = match fs::read_to_string(&self.path) {
            Ok(text) => match AuthorizedKeys::parse(&text) {
                Ok(keys) => return Some(keys),
                Err(error) => orch_runner::error_chain(&error).join(": "),
            },
            Err(error) => error.to_string(),
        };
        write_line(&json!({
            "audit": "authorized_keys_unusable",
            "path": self.path,
            "problem": problem,
        }));
        None
    }
}

/// One JSON object per line on stderr, which systemd puts into the journal.
pub(crate) struct JournalAudit;

impl Audit for JournalAudit {
    fn record(&self, event: AuditEvent) {
        write_line(&match event {
            AuditEvent::KeyRejected { peer, key } => {
                json!({"audit": "key_rejected", "peer": peer, "key": key})
            }
            AuditEvent::Denied { peer, node, what } => {
                json!({"audit": "denied", "peer": peer, "node": node, "what": what})
            }
            AuditEvent::Granted { peer, node, key } => {
                json!({"audit": "granted", "peer": peer, "node": node, "key": key})
            }
            AuditEvent::Refused {
                peer,
                node,
                reason,
                message,
            } => json!({
                "audit": "refused",
                "peer": peer,
                "node": node,
                "reason": reason,
                "message": redact(&message),
            }),
            AuditEvent::Busy { peer } => json!({"audit": "busy", "peer": peer}),
            AuditEvent::AcceptFailed { problem } => {
                json!({"audit": "accept_failed", "problem": problem})
            }
        });
    }
}

fn write_line(value: &serde_json::Value) {
    // A journal that cannot be written to must not stop the service.
    let _ = writeln!(std::io::stderr().lock(), "{value}");
}
