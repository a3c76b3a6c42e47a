//! The server's side: accept, authenticate a key, answer one request, close.
//!
//! Everything else that SSH offers is refused: passwords, shells, other commands, subsystems,
//! terminals, environment, agents, X11 and forwarding in either direction. What a peer can cost is
//! bounded: connections, bytes, times, failures and requests ([`Limits`]), and lines in the log
//! ([`SummedAudit`]).

mod audit;
mod connection;
mod network;
mod slots;
mod throttle;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::{JoinResponse, MAX_REQUEST_BYTES};
use russh::keys::PrivateKey;
use russh::server::Config;
use russh::{MethodKind, MethodSet};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};

pub use self::audit::{Audit, AuditEvent, AuditKind, SummedAudit};
use self::connection::Connection;
use self::network::{canonical, network_of};
use self::slots::Slots;
pub use self::throttle::Rate;
use self::throttle::Throttle;
use crate::deadline::{Deadline, LimitedStream};
use crate::{AuthorizedKeys, Member, Principal, algorithms};

/// Networks whose failures, and keys' owners whose requests, are remembered at most.
const MAX_REMEMBERED: usize = 4096;
/// How often repeated events are summed up.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);

/// Bounds on what a peer can cost. The defaults suit hundreds of agents joining at once.
///
/// A network is one IPv4 address or the /64 of an IPv6 address.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_connections: usize,
    pub max_connections_per_network: usize,
    pub max_authentication_attempts: usize,
    /// From accept to a successful authentication.
    pub handshake_timeout: Duration,
    /// From the authentication to a whole request.
    pub request_timeout: Duration,
    /// From the request to the end, minting included.
    pub answer_timeout: Duration,
    /// Bytes read from one connection.
    pub max_read_bytes: u64,
    /// Connections of one network that end without an authentication; beyond it, the network's
    /// connections are closed at once.
    pub failures: Rate,
    /// Requests of one node, or of the operator, whatever came of them.
    pub requests: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_connections_per_network: 8,
            max_authentication_attempts: 6,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(40),
            max_read_bytes: 64 * 1024,
            failures: Rate {
                burst: 20,
                interval: Duration::from_secs(3),
            },
            requests: Rate {
                burst: 10,
                interval: Duration::from_secs(6),
            },
        }
    }
}

/// Answers an authenticated request, usually by minting a token.
#[async_trait]
pub trait Grantor: Send + Sync + 'static {
    /// `member` comes from the list of keys, not from the request.
    async fn grant(&self, member: &Member) -> JoinResponse;
}

/// Describes this machine to the operator.
#[async_trait]
pub trait FactsSource: Send + Sync + 'static {
    /// A JSON document with nothing secret in it.
    async fn facts(&self) -> Result<Vec<u8>, String>;
}

/// The service's key files, read at each connection and at each request: neither a node that is
/// added or removed nor a new host key needs a restart. An error refuses the connection.
pub trait KeySource: Send + Sync + 'static {
    fn host_key(&self) -> Result<PrivateKey, String>;
    /// Who may join.
    fn authorized_keys(&self) -> Result<AuthorizedKeys, String>;
}

/// Everything the join service needs; cheap to clone.
#[derive(Clone)]
pub struct JoinService {
    limits: Limits,
    grantor: Arc<dyn Grantor>,
    facts: Arc<dyn FactsSource>,
    keys: Arc<dyn KeySource>,
    audit: Arc<dyn Audit>,
    slots: Slots,
    failures: Arc<Throttle<IpAddr>>,
    requests: Arc<Throttle<Principal>>,
}

impl JoinService {
    pub fn new(
        limits: Limits,
        grantor: Arc<dyn Grantor>,
        facts: Arc<dyn FactsSource>,
        keys: Arc<dyn KeySource>,
        audit: Arc<dyn Audit>,
    ) -> Self {
        Self {
            limits,
            grantor,
            facts,
            keys,
            audit,
            slots: Slots::default(),
            failures: Arc::new(Throttle::new(limits.failures, MAX_REMEMBERED)),
            requests: Arc::new(Throttle::new(limits.requests, MAX_REMEMBERED)),
        }
    }

    /// Serves until the task is dropped.
    pub async fn run(self, listener: TcpListener) {
        let all = Arc::new(Semaphore::new(self.limits.max_connections));
        let mut summary = tokio::time::interval(SUMMARY_INTERVAL);
        summary.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = summary.tick() => {
                    self.audit.sum_up();
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, canonical(peer), &all),
                Err(error) => {
                    self.audit
                        .record(AuditEvent::new(AuditKind::AcceptFailed, error.to_string()));
                    // Out of descriptors is the usual cause; spinning would make it worse.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Talks to whom the limits let in; a stream that is dropped here is closed.
    fn admit(&self, stream: TcpStream, peer: SocketAddr, all: &Arc<Semaphore>) {
        let wait = self.failures.wait(&network_of(peer.ip()), Instant::now());
        if wait > Duration::ZERO {
            let what = format!("too many failures; again in {} s", wait.as_secs() + 1);
            self.audit
                .record(AuditEvent::of_peer(AuditKind::Throttled, peer, what));
            return;
        }
        let slot = self
            .slots
            .take(peer.ip(), self.limits.max_connections_per_network);
        let (Some(slot), Ok(permit)) = (slot, Arc::clone(all).try_acquire_owned()) else {
            self.audit
                .record(AuditEvent::of_peer(AuditKind::Busy, peer, ""));
            return;
        };
        // Delays between small messages would be all it costs.
        let _ = stream.set_nodelay(true);
        let service = self.clone();
        tokio::spawn(async move {
            service.converse(stream, peer).await;
            drop((slot, permit));
        });
    }

    /// One connection from the first byte to the last, without the limits on how many there are.
    pub async fn converse<S>(self, stream: S, peer: SocketAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let keys = self
            .keys
            .host_key()
            .and_then(|host_key| Ok((host_key, self.keys.authorized_keys()?)));
        let (host_key, authorized) = match keys {
            Ok(keys) => keys,
            Err(problem) => {
                return self.audit.record(AuditEvent::of_peer(
                    AuditKind::KeysUnusable,
                    peer,
                    problem,
                ));
            }
        };
        let deadline = Deadline::after(self.limits.handshake_timeout);
        let stream = LimitedStream::new(stream, deadline.clone(), self.limits.max_read_bytes);
        let config = Arc::new(self.config(host_key));
        let handler = Connection::new(self, authorized, peer, deadline);
        // How a peer's connection ends is the peer's business; what it asked for is audited.
        if let Ok(session) = russh::server::run_stream(config, stream, handler).await {
            let _ = session.await;
        }
    }

    fn config(&self, host_key: PrivateKey) -> Config {
        Config {
            keys: vec![host_key],
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            preferred: algorithms::preferred(),
            max_auth_attempts: self.limits.max_authentication_attempts,
            auth_rejection_time: Duration::from_millis(500),
            auth_rejection_time_initial: Some(Duration::ZERO),
            inactivity_timeout: Some(self.limits.answer_timeout),
            // One request fits; the window is never adjusted past it.
            window_size: 2 * MAX_REQUEST_BYTES as u32,
            maximum_packet_size: 2 * MAX_REQUEST_BYTES as u32,
            channel_buffer_size: 4,
            event_buffer_size: 4,
            ..Config::default()
        }
    }
}
