//! A connection to one node: made through its jump hosts, used by many commands at once, closed.

use super::authenticate::authenticate;
use super::dial::{self, Proxy};
use super::error::{Reason, RemoteError};
use super::host_keys::HostKeys;
use super::session::{self, Session};
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
        let opened = open(hop, jumps.last(), limits).await;
        let opened = opened
            .map_err(|reason| RemoteError::new(&target.name, reason).at(Some(&hop.to_string())))?;
        jumps.push(opened);
    }
    let session = open(node, jumps.last(), limits).await;
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

async fn open(hop: &Hop, via: Option<&Session>, limits: &Limits) -> Result<Session, Reason> {
    let keys = HostKeys::of(hop).await?;
    let mut refused = None;
    for algorithms in keys.attempts() {
        let opened = match (via, &hop.proxy_command) {
            (Some(jump), _) => {
                session::open(
                    dial::through(jump, hop, limits).await?,
                    hop,
                    &keys,
                    algorithms,
                    limits,
                )
                .await
            }
            (None, Some(command)) => {
                let (proxy, said) = Proxy::start(command)?;
                let opened = session::open(proxy, hop, &keys, algorithms, limits).await;
                match opened {
                    Err(reason) => Err(with_hint(reason, said.get().await)),
                    opened => opened,
                }
            }
            (None, None) => {
                session::open(
                    dial::tcp(hop, limits).await?,
                    hop,
                    &keys,
                    algorithms,
                    limits,
                )
                .await
            }
        };
        match opened {
            Ok(mut session) => {
                authenticate(&mut session, hop, limits).await?;
                return Ok(session);
            }
            // The pinned key may be of another kind.
            Err(reason @ Reason::ChangedHostKey { .. }) => refused = Some(reason),
            Err(reason) if is_other_kind(&reason) => refused = refused.or(Some(reason)),
            Err(reason) => return Err(reason),
        }
    }
    Err(refused.unwrap_or(Reason::Handshake {
        host: hop.to_string(),
        hint: String::new(),
        source: Box::new(russh::Error::KexInit),
    }))
}

/// Whether the server has no key of the kind that it was asked for.
fn is_other_kind(reason: &Reason) -> bool {
    matches!(reason, Reason::Handshake { source, .. } if matches!(**source, russh::Error::NoCommonAlgo { .. }))
}

fn with_hint(reason: Reason, said: String) -> Reason {
    match reason {
        Reason::Handshake { host, source, .. } if !said.is_empty() => Reason::Handshake {
            host,
            hint: format!("; the ProxyCommand said: {said}"),
            source,
        },
        other => other,
    }
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
