//! What the join service grants: a short-lived K3s token for the agent that a key belongs to, and
//! what becomes of it; the server's token for a server; and what it tells the operator.
//!
//! A bootstrap token works for whoever holds it and as often as they like until it expires: K3s has
//! none that are bound to a node or used up. So each node has at most one here, and it is deleted as
//! soon as the node has joined, before the node gets another one, and when its time is up.

mod audit;
mod cluster;
mod facts;
mod key_files;
mod outstanding;
mod servers;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use orch_contract::{
    JOIN_SCHEMA, JoinGrant, JoinRefusal, JoinResponse, NodeConfig, NodeName, RefusalReason, Role,
};
use orch_ssh::Member;
use orch_ssh::server::{Audit, AuditEvent, AuditKind, Grantor};
use tokio::sync::Semaphore;

pub(crate) use self::audit::JournalAudit;
use self::cluster::{ClusterTokens, describe};
pub(crate) use self::facts::ThisMachine;
pub(crate) use self::key_files::KeyFiles;
use self::outstanding::Outstanding;
use self::servers::Turn;
use crate::k3s::paths;
use crate::system::Commands;

/// How often the tokens that are out are looked after. A node takes seconds to join, and each look is a
/// process of K3s's size.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Each mint is two or three commands of K3s, which are done one after the other on a small server.
const CONCURRENT_MINTS: usize = 2;
/// Well before the peer gives up: a token that nobody waits for any more is made in vain, and the more
/// so the more nodes ask at once.
const LONGEST_QUEUE: Duration = Duration::from_secs(15);

/// Mints tokens with K3s's own command, and deletes them.
pub(crate) struct TokenMint<C> {
    cluster: ClusterTokens<C>,
    /// This server.
    name: NodeName,
    server_url: String,
    /// Whether other servers' services make tokens, too.
    is_one_of_several: bool,
    ttl: Duration,
    audit: Arc<dyn Audit>,
    /// None until the cluster was asked which tokens are out, and again after a mint that may have
    /// left one behind.
    outstanding: Mutex<Option<Outstanding>>,
    asking: Mutex<HashSet<NodeName>>,
    turn: Turn,
    turns: Arc<Semaphore>,
}

impl<C: Commands + 'static> TokenMint<C> {
    pub(crate) fn new(commands: C, config: &NodeConfig, audit: Arc<dyn Audit>) -> Self {
        let cluster = ClusterTokens::new(commands, paths::ADMIN_KUBECONFIG, paths::SERVER_DATA);
        Self::of(cluster, config, audit)
    }

    fn of(cluster: ClusterTokens<C>, config: &NodeConfig, audit: Arc<dyn Audit>) -> Self {
        Self {
            cluster,
            name: config.node.name.clone(),
            server_url: config.own_server().url(),
            is_one_of_several: !config.servers.others.is_empty(),
            ttl: config.join.token_ttl(),
            audit,
            outstanding: Mutex::new(None),
            asking: Mutex::default(),
            turn: Turn::default(),
            turns: Arc::new(Semaphore::new(CONCURRENT_MINTS)),
        }
    }

    /// Looks after the tokens that are out, until it is dropped.
    pub(crate) async fn look_after(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if let Err(problem) = self.revoke_what_is_over().await {
                self.audit
                    .record(AuditEvent::new(AuditKind::RevocationFailed, problem));
            }
        }
    }

    async fn revoke_what_is_over(&self) -> Result<(), String> {
        // A K3s that is not up knows no node, and has nothing to delete tokens from.
        if !self.cluster.is_up() {
            return Ok(());
        }
        self.know_outstanding().await?;
        if self
            .outstanding()
            .as_ref()
            .is_none_or(Outstanding::is_empty)
        {
            return Ok(());
        }
        let leases = self.cluster.leases().await;
        let over = self.outstanding().as_mut().map_or_else(Vec::new, |known| {
            known.take_looks(leases.as_deref().ok(), Timestamp::now())
        });
        let ids: Vec<_> = over.iter().map(|over| over.id.clone()).collect();
        if !ids.is_empty() {
            self.cluster
                .delete(None, &ids)
                .await
                .map_err(|error| describe(&error))?;
        }
        for over in over {
            if let Some(known) = self.outstanding().as_mut() {
                known.forget(&over.id);
            }
            self.audit.record(AuditEvent::of_node(
                AuditKind::TokenRevoked,
                over.node,
                format!("token {}: {}", over.id, over.why.as_str()),
            ));
        }
        leases.map(drop).map_err(|error| describe(&error))
    }

    async fn know_outstanding(&self) -> Result<(), String> {
        if self.outstanding().is_some() {
            return Ok(());
        }
        let listed = self
            .cluster
            .list()
            .await
            .map_err(|error| describe(&error))?;
        self.outstanding()
            .get_or_insert_with(|| Outstanding::from_list(listed));
        Ok(())
    }

    /// Another server's service may have made one for this node in the meantime.
    async fn know_others(&self) -> Result<(), String> {
        if !self.is_one_of_several {
            return self.know_outstanding().await;
        }
        let listed = self
            .cluster
            .list()
            .await
            .map_err(|error| describe(&error))?;
        self.outstanding()
            .get_or_insert_with(Outstanding::default)
            .merge(listed);
        Ok(())
    }

    fn outstanding(&self) -> MutexGuard<'_, Option<Outstanding>> {
        self.outstanding
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn mint(&self, node: &NodeName) -> Result<JoinGrant, String> {
        let _asking = Asking::begin(&self.asking, node).ok_or_else(|| STILL_ANSWERED.to_owned())?;
        if !self.cluster.is_up() {
            return Err("K3s is not up yet".to_owned());
        }
        self.know_others().await?;
        let earlier = self
            .outstanding()
            .as_ref()
            .map(|known| known.ids_of(node))
            .unwrap_or_default();
        // The password goes as well: a machine that was made anew has lost the one that K3s gave its
        // predecessor, and K3s would reject it for ever. Its key has just proved which node it is.
        self.cluster
            .delete(Some(node), &earlier)
            .await
            .map_err(|error| describe(&error))?;
        for id in &earlier {
            if let Some(known) = self.outstanding().as_mut() {
                known.forget(id);
            }
            self.audit.record(AuditEvent::of_node(
                AuditKind::TokenRevoked,
                node.clone(),
                format!("token {id}: the node asked for another one"),
            ));
        }
        let expires_at = Timestamp::now() + SignedDuration::try_from(self.ttl).unwrap_or_default();
        let created = self.cluster.create(node, self.ttl).await;
        let mut outstanding = self.outstanding();
        let (token, id) = match created {
            Ok(created) => created,
            Err(problem) => {
                // It may be there all the same, made by a command that was cut off: ask the cluster.
                *outstanding = None;
                return Err(problem);
            }
        };
        if let Some(known) = outstanding.as_mut() {
            known.add(id, node.clone(), Some(expires_at));
        }
        Ok(JoinGrant {
            schema: JOIN_SCHEMA,
            node: node.clone(),
            server_url: self.server_url.clone(),
            token,
            role: Role::Agent,
            expires_at: Some(expires_at),
        })
    }

    /// What the list of keys says the node is decides which token it gets.
    async fn admit(&self, member: &Member) -> Result<JoinGrant, JoinRefusal> {
        match member.role {
            Role::Server => self.admit_server(&member.name).await,
            Role::Agent => {
                let minted = self.mint(&member.name).await;
                minted.map_err(|problem| JoinRefusal::new(RefusalReason::NotReady, problem))
            }
        }
    }
}

const STILL_ANSWERED: &str = "this node's earlier request is still being answered";

/// That a node's request is being answered: two at once would leave it two tokens.
struct Asking<'a> {
    asking: &'a Mutex<HashSet<NodeName>>,
    node: NodeName,
}

impl<'a> Asking<'a> {
    fn begin(asking: &'a Mutex<HashSet<NodeName>>, node: &NodeName) -> Option<Self> {
        let new = asking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(node.clone());
        new.then(|| Self {
            asking,
            node: node.clone(),
        })
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.asking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.node);
    }
}

/// Shared with the task that looks after the tokens.
pub(crate) struct SharedMint<C>(pub(crate) Arc<TokenMint<C>>);

#[async_trait]
impl<C: Commands + 'static> Grantor for SharedMint<C> {
    async fn grant(&self, member: &Member) -> JoinResponse {
        let not_ready = |problem: String| {
            JoinResponse::Refused(JoinRefusal::new(RefusalReason::NotReady, problem))
        };
        let turns = Arc::clone(&self.0.turns).acquire_owned();
        let Ok(Ok(turn)) = tokio::time::timeout(LONGEST_QUEUE, turns).await else {
            return not_ready("too many nodes ask at once".to_owned());
        };
        let (mint, asked) = (Arc::clone(&self.0), member.clone());
        // A peer that hangs up ends its connection, not the mint: a token that was made is known.
        let minted = tokio::spawn(async move {
            let minted = mint.admit(&asked).await;
            drop(turn);
            minted
        });
        match minted.await {
            Ok(Ok(grant)) => JoinResponse::Granted(grant),
            Ok(Err(refusal)) => JoinResponse::Refused(refusal),
            Err(error) => not_ready(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
