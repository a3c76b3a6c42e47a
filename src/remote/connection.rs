//! A connection to one node: made through its jump hosts, used by many commands at once, closed.

use super::error::{Reason, RemoteError};
use super::reach::reach;
use super::session::Session;
use super::target::{Hop, Limits, Target};

/// A node, logged in to.
pub struct Connection {
    pub(super) name: String,
    pub(super) user: String,
    pub(super) limits: Limits,
    pub(super) session: Session,
    /// The sessions with the jump hosts, the first dialled first. What is dropped closes.
    jumps: Vec<Session>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Dials a node, verifies its host key and those of its jump hosts, and logs in.
pub async fn connect(target: &Target, limits: &Limits) -> Result<Connection, RemoteError> {
    let Some((node, before)) = target.hops.split_last() else {
        // Resolving never makes one; a target cannot be made otherwise.
        return Err(RemoteError::new(
            &target.name,
            Reason::Invalid {
                what: "the target",
                value: target.name.clone(),
                why: "it has no address",
            },
        ));
    };
    let mut jumps: Vec<Session> = Vec::new();
    for hop in before {
        let opened = reach(hop, jumps.last(), limits).await;
        let opened = opened
            .map_err(|reason| RemoteError::new(&target.name, reason).at(Some(&hop.to_string())))?;
        jumps.push(opened);
    }
    let session = reach(node, jumps.last(), limits).await;
    let session = session.map_err(|reason| {
        // That a jump host opens no connection is told of the jump host.
        let at = before.last().map(Hop::to_string);
        let at = at.filter(|_| matches!(reason, Reason::JumpRefused { .. }));
        RemoteError::new(&target.name, reason).at(at.as_deref())
    })?;
    Ok(Connection {
        name: target.name.clone(),
        user: node.user.clone(),
        limits: limits.clone(),
        session,
        jumps,
    })
}

impl Connection {
    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says farewell to the node, then to its jump hosts.
    pub async fn close(self) {
        self.session.close().await;
        for jump in self.jumps.into_iter().rev() {
            jump.close().await;
        }
    }

    pub(super) fn error(&self, reason: Reason) -> RemoteError {
        RemoteError::new(&self.name, reason)
    }
}
