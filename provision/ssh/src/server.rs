//! The server's side: accept, authenticate a key, answer one request, close.
//!
//! Everything else that SSH offers is refused: passwords, shells, other commands, subsystems,
//! terminals, environment, agents, X11 and forwarding in either direction.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::{
    JOIN_COMMAND, JoinRefusal, JoinRequest, JoinResponse, MAX_REQUEST_BYTES, NodeName,
    RefusalReason,
};
use russh::keys::{HashAlg, PrivateKey, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, MethodKind, MethodSet, Pty};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

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
        let handler = Connection {
            authorized: self.keys.authorized_keys().unwrap_or_default(),
            service: self.clone(),
            peer,
            deadline,
            node: None,
            fingerprint: String::new(),
            state: State::Idle,
        };
        // How a peer's connection ends is the peer's business; what it asked for is audited.
        if let Ok(session) = russh::server::run_stream(self.config, stream, handler).await {
            let _ = session.await;
        }
    }
}

#[derive(Clone, Default)]
struct PerAddress(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl PerAddress {
    fn take(&self, address: IpAddr, limit: usize) -> Option<AddressSlot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(AddressSlot {
            counts: self.clone(),
            address,
        })
    }
}

struct AddressSlot {
    counts: PerAddress,
    address: IpAddr,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Where one connection stands; it moves forward only.
enum State {
    Idle,
    /// The one channel is open.
    Open(ChannelId),
    /// The join command runs; this much of the request has come.
    Reading(ChannelId, Vec<u8>),
    Answered,
}

struct Connection {
    service: JoinService,
    authorized: AuthorizedKeys,
    peer: SocketAddr,
    deadline: Deadline,
    node: Option<NodeName>,
    fingerprint: String,
    state: State,
}

impl Connection {
    fn denied(&self, what: impl Into<String>) {
        if let Some(node) = &self.node {
            self.service.audit.record(AuditEvent::Denied {
                peer: self.peer,
                node: node.clone(),
                what: what.into(),
            });
        }
    }

    fn deny_request(
        &self,
        what: impl Into<String>,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.denied(what);
        session.channel_failure(channel)?;
        session.close(channel)
    }

    fn judge_key(&self, key: &PublicKey) -> Auth {
        if self.authorized.node_of(key).is_some() {
            return Auth::Accept;
        }
        self.service.audit.record(AuditEvent::KeyRejected {
            peer: self.peer,
            key: key.fingerprint(HashAlg::Sha256).to_string(),
        });
        Auth::reject()
    }

    async fn answer(&mut self, request: &[u8]) -> JoinResponse {
        let Some(node) = self.node.clone() else {
            return refusal(RefusalReason::BadRequest, "not authenticated".to_owned());
        };
        let response = match JoinRequest::parse(request) {
            Ok(request) if request.node == node => self.service.grantor.grant(&node).await,
            Ok(request) => refusal(
                RefusalReason::WrongNode,
                format!("this key belongs to node {node}, not {}", request.node),
            ),
            Err(error) => refusal(RefusalReason::BadRequest, error.to_string()),
        };
        self.service.audit.record(match &response {
            JoinResponse::Granted(_) => AuditEvent::Granted {
                peer: self.peer,
                node,
                key: self.fingerprint.clone(),
            },
            JoinResponse::Refused(refusal) => AuditEvent::Refused {
                peer: self.peer,
                node,
                reason: refusal.reason,
                message: refusal.message.clone(),
            },
        });
        response
    }

    /// Answers once the request is complete: at a line end or at the end of input.
    async fn finish(
        &mut self,
        channel: ChannelId,
        request: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.state = State::Answered;
        let response = self.answer(request).await;
        let granted = matches!(response, JoinResponse::Granted(_));
        let line = serde_json::to_vec(&response)
            .map(Zeroizing::new)
            .unwrap_or_default();
        session.data(channel, line.to_vec())?;
        session.exit_status_request(channel, u32::from(!granted))?;
        session.eof(channel)?;
        session.close(channel)
    }
}

fn refusal(reason: RefusalReason, message: String) -> JoinResponse {
    JoinResponse::Refused(JoinRefusal { reason, message })
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge_key(offer.public_key))
    }

    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let verdict = self.judge_key(key.public_key);
        if verdict == Auth::Accept {
            self.node = self.authorized.node_of(key.public_key).cloned();
            self.fingerprint = key.public_key.fingerprint(HashAlg::Sha256).to_string();
            self.deadline.move_to(self.service.limits.request_timeout);
        }
        Ok(verdict)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if matches!(self.state, State::Idle) {
            self.state = State::Open(channel.id());
            reply.accept().await;
        } else {
            self.denied("a second channel");
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // A handle that is dropped rejects the channel.
        self.denied(format!("forwarding to {}:{port}", printable(host)));
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.state {
            State::Open(open) if open == channel && command == JOIN_COMMAND.as_bytes() => {
                self.state = State::Reading(channel, Vec::new());
                session.channel_success(channel)
            }
            _ => {
                let command = printable(&String::from_utf8_lossy(command));
                self.deny_request(format!("the command {command:?}"), channel, session)
            }
        }
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let State::Reading(open, request) = &mut self.state else {
            return Ok(());
        };
        if *open != channel {
            return Ok(());
        }
        request.extend_from_slice(data);
        let end = request.iter().position(|byte| *byte == b'\n');
        if end.is_none() && request.len() <= MAX_REQUEST_BYTES {
            return Ok(());
        }
        let mut request = std::mem::take(request);
        if let Some(end) = end {
            request.truncate(end);
        }
        self.finish(channel, &request, session).await
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match &mut self.state {
            State::Reading(open, request) if *open == channel => {
                let request = std::mem::take(request);
                self.finish(channel, &request, session).await
            }
            _ => Ok(()),
        }
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.deny_request("a shell", channel, session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.deny_request(
            format!("the subsystem {}", printable(name)),
            channel,
            session,
        )
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _pixel_width: u32,
        _pixel_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.denied("a terminal");
        session.channel_failure(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.denied("X11 forwarding");
        session.channel_failure(channel)
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.denied("agent forwarding");
        session.channel_failure(channel)?;
        Ok(false)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.denied(format!("forwarding from {}:{port}", printable(address)));
        Ok(false)
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.denied(format!("forwarding from {}", printable(path)));
        Ok(false)
    }
}

/// A peer's text, fit for a log line: short and without control characters.
fn printable(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
