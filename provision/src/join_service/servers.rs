//! Servers that join, one after the other: etcd takes in one at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use orch_contract::{JOIN_SCHEMA, JoinGrant, JoinRefusal, NodeName, RefusalReason, Role};

use super::cluster::{Lease, describe};
use super::outstanding::Outstanding;
use super::{Asking, STILL_ANSWERED, TokenMint};
use crate::k3s::datastore::Datastore;
use crate::system::Commands;

/// How soon a server whose turn it is not yet may ask again.
const RETRY_SECONDS: u64 = 5;

/// The server that joins now: as with a token, its kubelet's lease says when it has, and its time is limited.
#[derive(Default)]
pub(super) struct Turn(Mutex<Outstanding>);

impl Turn {
    /// Takes the turn, unless another server has it, which is the error.
    fn take(
        &self,
        node: &NodeName,
        leases: &[Lease],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<(), NodeName> {
        let mut joining = self.lock();
        for over in joining.take_looks(Some(leases), now) {
            joining.forget(&over.id);
        }
        if let Some(other) = joining.nodes().find(|other| *other != node) {
            return Err(other.clone());
        }
        joining.add(node.to_string(), node.clone(), Some(until));
        joining.take_looks(Some(leases), now);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Outstanding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Commands + 'static> TokenMint<C> {
    /// The server's token, for a server that has no data. Nothing secret is in a refusal.
    pub(super) async fn admit_server(&self, node: &NodeName) -> Result<JoinGrant, JoinRefusal> {
        let not_ready = |problem: String| JoinRefusal::new(RefusalReason::NotReady, problem);
        let _asking = Asking::begin(&self.asking, node)
            .ok_or_else(|| not_ready(STILL_ANSWERED.to_owned()))?;
        let datastore = self.cluster.datastore();
        match datastore.map_err(|error| not_ready(error.to_string()))? {
            Datastore::None => {
                let message = format!("{} has no cluster", self.name);
                return Err(JoinRefusal::new(RefusalReason::NoCluster, message));
            }
            Datastore::Sqlite => {
                return Err(not_ready(format!(
                    "{} keeps its cluster in SQLite, which no server can join; bring it up first, which moves it to etcd",
                    self.name
                )));
            }
            Datastore::Etcd => {}
        }
        if !self.cluster.is_up() {
            return Err(not_ready("K3s is not up yet".to_owned()));
        }
        let failed = |error| not_ready(describe(&error));
        let leases = self.cluster.leases().await.map_err(failed)?;
        let now = Timestamp::now();
        let until = now + SignedDuration::try_from(self.ttl).unwrap_or_default();
        self.turn.take(node, &leases, now, until).map_err(|other| {
            let message = format!("server {other} is joining; one after the other");
            JoinRefusal {
                retry_after_seconds: Some(RETRY_SECONDS),
                ..JoinRefusal::new(RefusalReason::InTurn, message)
            }
        })?;
        self.cluster.forget_server(node).await.map_err(failed)?;
        Ok(JoinGrant {
            schema: JOIN_SCHEMA,
            node: node.clone(),
            server_url: self.server_url.clone(),
            token: self.cluster.server_token().map_err(not_ready)?,
            role: Role::Server,
            expires_at: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_at_a_time_until_it_has_joined_or_its_time_is_up() {
        let node = |name: &str| -> NodeName { name.parse().unwrap() };
        let (a, b) = (node("a"), node("b"));
        let start = Timestamp::UNIX_EPOCH;
        let until = start + SignedDuration::from_secs(300);
        let lease = |renewed: &str| Lease {
            node: "a".to_owned(),
            renewed: renewed.to_owned(),
        };
        let turn = Turn::default();
        turn.take(&a, &[], start, until).unwrap();
        assert_eq!(turn.take(&b, &[], start, until), Err(a.clone()));
        turn.take(&a, &[], start, until).unwrap();
        // Its kubelet has its certificate: etcd has taken it in before.
        turn.take(&b, &[lease("1")], start, until).unwrap();
        assert_eq!(turn.take(&a, &[lease("2")], start, until), Err(b.clone()));
        turn.take(&a, &[lease("2")], until, until).unwrap();
        // What a predecessor left is no sign of life.
        assert_eq!(turn.take(&b, &[lease("2")], start, until), Err(a));
    }
}
