//! One connection: what it may ask, and the refusal of everything else.

use std::net::SocketAddr;

use orch_contract::{
    JOIN_COMMAND, JoinRefusal, JoinRequest, JoinResponse, MAX_REQUEST_BYTES, NodeName,
    RefusalReason,
};
use russh::keys::{HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Pty};
use zeroize::Zeroizing;

use super::{AuditEvent, JoinService};
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

pub(super) struct Connection {
    service: JoinService,
    authorized: AuthorizedKeys,
    peer: SocketAddr,
    deadline: Deadline,
    node: Option<NodeName>,
    fingerprint: String,
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
            node: None,
            fingerprint: String::new(),
            state: State::Idle,
        }
    }

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
