//! One connection: what it may ask, and the refusal of everything else.

use std::net::SocketAddr;
use std::time::Duration;

use orch_contract::{
    JOIN_COMMAND, JOIN_USER, JoinRefusal, JoinRequest, JoinResponse, MAX_REQUEST_BYTES, NodeName,
    RefusalReason,
};
use russh::keys::{HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Pty};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::network::network_of;
use super::{AuditEvent, AuditKind, JoinService};
use crate::AuthorizedKeys;
use crate::deadline::Deadline;

/// Where one connection stands; it moves forward only.
enum State {
    Idle,
    /// The one channel is open.
    Open(ChannelId),
    /// The join command runs; this much of the request has come.
    Reading(ChannelId, Vec<u8>),
    Answered,
}

/// Whose key it was when the connection was accepted.
struct Proven {
    key: PublicKey,
    node: NodeName,
}

pub(super) struct Connection {
    service: JoinService,
    authorized: AuthorizedKeys,
    peer: SocketAddr,
    deadline: Deadline,
    proven: Option<Proven>,
    state: State,
}

impl Connection {
    pub(super) fn new(
        service: JoinService,
        authorized: AuthorizedKeys,
        peer: SocketAddr,
        deadline: Deadline,
    ) -> Self {
        Self {
            service,
            authorized,
            peer,
            deadline,
            proven: None,
            state: State::Idle,
        }
    }

    fn audit(&self, kind: AuditKind, what: impl Into<String>) {
        let mut event = AuditEvent::of_peer(kind, self.peer, what);
        if let Some(proven) = &self.proven {
            event.node = Some(proven.node.clone());
            event.key = Some(fingerprint(&proven.key));
        }
        self.service.audit.record(event);
    }

    fn denied(&self, what: impl Into<String>) {
        self.audit(AuditKind::Denied, what);
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

    fn judge_key(&self, user: &str, key: &PublicKey) -> Option<Proven> {
        let what = if user != JOIN_USER {
            format!("the user {}", printable(user))
        } else if let Some(node) = self.authorized.node_of(key) {
            return Some(Proven {
                key: key.clone(),
                node: node.clone(),
            });
        } else {
            "a key that no node has".to_owned()
        };
        let mut event = AuditEvent::of_peer(AuditKind::KeyRejected, self.peer, what);
        event.key = Some(fingerprint(key));
        self.service.audit.record(event);
        None
    }

    async fn answer(&self, request: &[u8]) -> JoinResponse {
        let response = match self.judge_request(request) {
            Ok(node) => self.service.grantor.grant(&node).await,
            Err(refusal) => JoinResponse::Refused(refusal),
        };
        match &response {
            JoinResponse::Granted(_) => self.audit(AuditKind::Granted, "join"),
            JoinResponse::Refused(refusal) => {
                self.audit(AuditKind::Refused, format!("join: {}", refusal.message));
            }
        }
        response
    }

    /// The node that is to be granted a token.
    fn judge_request(&self, request: &[u8]) -> Result<NodeName, JoinRefusal> {
        let bad = |message: String| JoinRefusal::new(RefusalReason::BadRequest, message);
        let Some(Proven { key, node }) = &self.proven else {
            return Err(bad("not authenticated".to_owned()));
        };
        self.service
            .requests
            .take(node, Instant::now())
            .map_err(rate_limited)?;
        let request = JoinRequest::parse(request).map_err(|error| bad(error.to_string()))?;
        if request.node != *node {
            return Err(JoinRefusal::new(
                RefusalReason::WrongNode,
                format!("this key belongs to node {node}, not {}", request.node),
            ));
        }
        // The list may have changed since the connection was accepted.
        let authorized = self.service.keys.authorized_keys();
        if authorized.is_ok_and(|authorized| authorized.node_of(key) == Some(node)) {
            return Ok(node.clone());
        }
        Err(JoinRefusal::new(
            RefusalReason::Revoked,
            format!("the key of node {node} was taken off the list"),
        ))
    }

    /// Answers once the request is complete: at a line end or at the end of input.
    async fn finish(
        &mut self,
        channel: ChannelId,
        request: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.state = State::Answered;
        self.deadline.move_to(self.service.limits.answer_timeout);
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

/// A connection that proved nothing counts against its network, however it ended.
impl Drop for Connection {
    fn drop(&mut self) {
        if self.proven.is_none() {
            let network = network_of(self.peer.ip());
            self.service.failures.charge(&network, Instant::now());
            self.audit(AuditKind::Unauthenticated, "");
        }
    }
}

fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn rate_limited(wait: Duration) -> JoinRefusal {
    let seconds = wait.as_secs() + 1;
    JoinRefusal {
        retry_after_seconds: Some(seconds),
        ..JoinRefusal::new(
            RefusalReason::RateLimited,
            format!("this node asks too often; again in {seconds} s"),
        )
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(match self.judge_key(user, offer.public_key) {
            Some(_) => Auth::Accept,
            None => Auth::reject(),
        })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        self.proven = self.judge_key(user, key.public_key);
        if self.proven.is_none() {
            return Ok(Auth::reject());
        }
        self.deadline.move_to(self.service.limits.request_timeout);
        Ok(Auth::Accept)
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
                self.deny_request(format!("the command {command}"), channel, session)
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
        name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.denied(format!("the environment variable {}", printable(name)));
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

/// A peer's text without control characters. It is shortened where it is written down, after secrets
/// were taken out: half a secret would not be recognised as one.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
