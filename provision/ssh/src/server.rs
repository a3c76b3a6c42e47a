//! The server's side: accept, authenticate a key, answer one request, close.
//!
//! Everything else that SSH offers is refused: passwords, shells, other commands, subsystems,
//! terminals, environment, agents, X11 and forwarding in either direction.

mod connection;
mod slots;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::{JoinResponse, MAX_REQUEST_BYTES, NodeName, RefusalReason};
use russh::keys::PrivateKey;
use russh::server::Config;
use russh::{MethodKind, MethodSet};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::connection::Connection;
use self::slots::{AddressSlot, PerAddress};
use crate::deadline::{Deadline, LimitedStream};
use crate::{AuthorizedKeys, algorithms};

/// Bounds on what a peer can cost. The defaults suit hundreds of agents joining at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_connections: usize,
    pub max_connections_per_address: usize,
    pub max_authentication_attempts: usize,
    /// From accept to a successful authentication.
    pub handshake_timeout: Duration,
    /// From the authentication to the end, minting included.
    pub request_timeout: Duration,
    /// Bytes read from one connection.
    pub max_read_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_connections_per_address: 8,
            max_authentication_attempts: 6,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(40),
            max_read_bytes: 64 * 1024,
        }
    }
}

/// Answers an authenticated request, usually by minting a token.
#[async_trait]
pub trait Grantor: Send + Sync + 'static {
    /// `node` comes from the key, not from the request.
    async fn grant(&self, node: &NodeName) -> JoinResponse;
}

/// Who may join; asked at each connection, so that a node added later needs no restart.
pub trait KeySource: Send + Sync + 'static {
    /// None refuses everybody: the source reports its own trouble.
    fn authorized_keys(&self) -> Option<AuthorizedKeys>;
}

/// Who asked and what came of it. Holds no token, so it may be logged as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditEvent {
    /// A key that no node has, by fingerprint.
    KeyRejected { peer: SocketAddr, key: String },
    /// Something other than the join was asked for by an authenticated node.
    Denied {
        peer: SocketAddr,
        node: NodeName,
        what: String,
    },
    Granted {
        peer: SocketAddr,
        node: NodeName,
        key: String,
    },
    Refused {
        peer: SocketAddr,
        node: NodeName,
        reason: RefusalReason,
        message: String,
    },
    /// Not even accepted: a limit on connections was reached.
    Busy { peer: SocketAddr },
    /// Accepting failed, for instance for want of file descriptors.
    AcceptFailed { problem: String },
}

/// Receives audit events.
pub trait Audit: Send + Sync + 'static {
    fn record(&self, event: AuditEvent);
}

/// Everything the join service needs; cheap to clone.
#[derive(Clone)]
pub struct JoinService {
    config: Arc<Config>,
    limits: Limits,
    grantor: Arc<dyn Grantor>,
    keys: Arc<dyn KeySource>,
    audit: Arc<dyn Audit>,
}

impl JoinService {
    pub fn new(
        host_key: PrivateKey,
        limits: Limits,
        grantor: Arc<dyn Grantor>,
        keys: Arc<dyn KeySource>,
        audit: Arc<dyn Audit>,
    ) -> Self {
        let config = Config {
            keys: vec![host_key],
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            preferred: algorithms::preferred(),
            max_auth_attempts: limits.max_authentication_attempts,
            auth_rejection_time: Duration::from_millis(500),
            auth_rejection_time_initial: Some(Duration::ZERO),
            inactivity_timeout: Some(limits.request_timeout),
            // One request fits; the window is never adjusted past it.
            window_size: 2 * MAX_REQUEST_BYTES as u32,
            maximum_packet_size: 2 * MAX_REQUEST_BYTES as u32,
            channel_buffer_size: 4,
            event_buffer_size: 4,
            nodelay: true,
            ..Config::default()
        };
        Self {
            config: Arc::new(config),
            limits,
            grantor,
            keys,
            audit,
        }
    }

    /// Serves until the task is dropped.
    pub async fn run(self, listener: TcpListener) {
        let all = Arc::new(Semaphore::new(self.limits.max_connections));
        let by_address = PerAddress::default();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.audit.record(AuditEvent::AcceptFailed {
                        problem: error.to_string(),
                    });
                    // Out of descriptors is the usual cause; spinning would make it worse.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let slot = by_address.take(peer.ip(), self.limits.max_connections_per_address);
            let (Some(slot), Ok(permit)) = (slot, Arc::clone(&all).try_acquire_owned()) else {
                self.audit.record(AuditEvent::Busy { peer });
                continue;
            };
            let service = self.clone();
            tokio::spawn(service.connection(stream, peer, slot, permit));
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        _slot: AddressSlot,
        _permit: OwnedSemaphorePermit,
    ) {
        let deadline = Deadline::after(self.limits.handshake_timeout);
        let stream = LimitedStream::new(stream, deadline.clone(), self.limits.max_read_bytes);
        let authorized = self.keys.authorized_keys().unwrap_or_default();
        let handler = Connection::new(self.clone(), authorized, peer, deadline);
        // How a peer's connection ends is the peer's business; what it asked for is audited.
        if let Ok(session) = russh::server::run_stream(self.config, stream, handler).await {
            let _ = session.await;
        }
    }
}
