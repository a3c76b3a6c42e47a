//! One connection: whose key it showed, what it asks, and the answer.

mod handler;

use std::net::SocketAddr;
use std::time::Duration;

use orch_contract::{
    JOIN_USER, JoinGrant, JoinRefusal, JoinRequest, JoinResponse, RefusalReason, Role,
};
use russh::ChannelId;
use russh::keys::{HashAlg, PublicKey};
use russh::server::Session;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::network::network_of;
use super::{AuditEvent, AuditKind, JoinService};
use crate::deadline::Deadline;
use crate::{AuthorizedKeys, Member, Principal};

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
    principal: Principal,
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
            event.node = match &proven.principal {
                Principal::Node(member) => Some(member.name.clone()),
                Principal::Operator => None,
            };
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
        } else if let Some(principal) = self.authorized.principal_of(key) {
            return Some(Proven {
                key: key.clone(),
                principal: principal.clone(),
            });
        } else {
            "a key that nobody has".to_owned()
        };
        let mut event = AuditEvent::of_peer(AuditKind::KeyRejected, self.peer, what);
        event.key = Some(fingerprint(key));
        self.service.audit.record(event);
        None
    }

    async fn answer(&self, request: &[u8]) -> JoinResponse {
        let response = match self.judge_request(request) {
            Ok(member) => fitting(self.service.grantor.grant(&member).await, &member),
            Err(refusal) => JoinResponse::Refused(refusal),
        };
        match &response {
            JoinResponse::Granted(JoinGrant { role, .. }) => match role {
                Role::Server => self.audit(AuditKind::ServerGranted, "join"),
                Role::Agent => self.audit(AuditKind::Granted, "join"),
            },
            JoinResponse::Refused(refusal) => {
                self.audit(AuditKind::Refused, format!("join: {}", refusal.message));
            }
        }
        response
    }

    /// Who is to be granted a token.
    fn judge_request(&self, request: &[u8]) -> Result<Member, JoinRefusal> {
        let bad = |message: String| JoinRefusal::new(RefusalReason::BadRequest, message);
        let Principal::Node(member) = self.judge_principal()? else {
            return Err(bad("this key belongs to no node".to_owned()));
        };
        let request = JoinRequest::parse(request).map_err(|error| bad(error.to_string()))?;
        if request.node == member.name {
            return Ok(member);
        }
        Err(JoinRefusal::new(
            RefusalReason::WrongNode,
            format!(
                "this key belongs to node {}, not {}",
                member.name, request.node
            ),
        ))
    }

    /// Who asks, if it is not too often and the key is still on the list.
    fn judge_principal(&self) -> Result<Principal, JoinRefusal> {
        let Some(Proven { key, principal }) = &self.proven else {
            let message = "not authenticated";
            return Err(JoinRefusal::new(RefusalReason::BadRequest, message));
        };
        self.service
            .requests
            .take(principal, Instant::now())
            .map_err(rate_limited)?;
        // The list may have changed since the connection was accepted.
        let authorized = self.service.keys.authorized_keys();
        if authorized.is_ok_and(|authorized| authorized.principal_of(key) == Some(principal)) {
            return Ok(principal.clone());
        }
        Err(JoinRefusal::new(
            RefusalReason::Revoked,
            format!("the key of {principal} was taken off the list"),
        ))
    }

    /// Answers the operator, who sends no request.
    async fn show(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.state = State::Answered;
        self.deadline.move_to(self.service.limits.answer_timeout);
        session.channel_success(channel)?;
        let shown = match self.judge_principal() {
            Ok(_) => self.service.facts.facts().await,
            Err(refusal) => Err(refusal.message),
        };
        let status = u32::from(shown.is_err());
        match shown {
            Ok(facts) => {
                self.audit(AuditKind::Shown, "facts");
                session.data(channel, facts)?;
            }
            Err(problem) => {
                self.audit(AuditKind::Refused, format!("facts: {problem}"));
                let to_stderr = 1;
                session.extended_data(channel, to_stderr, format!("{problem}\n").into_bytes())?;
            }
        }
        session.exit_status_request(channel, status)?;
        session.eof(channel)?;
        session.close(channel)
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

/// A server's token is the cluster: whatever the grantor did, no other key's peer gets it.
fn fitting(response: JoinResponse, member: &Member) -> JoinResponse {
    match response {
        JoinResponse::Granted(grant) if grant.role != member.role => {
            let message = format!("{} may not join as a {}", member.name, grant.role);
            JoinResponse::Refused(JoinRefusal::new(RefusalReason::BadRequest, message))
        }
        response => response,
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
            format!("asked too often; again in {seconds} s"),
        )
    }
}

/// A peer's text without control characters. It is shortened where it is written down, after secrets
/// were taken out: half a secret would not be recognised as one.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
