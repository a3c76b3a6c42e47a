//! What SSH asks of a connection, one method a message: nearly all of it is refused.

use orch_contract::{FACTS_COMMAND, JOIN_COMMAND, MAX_REQUEST_BYTES};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Pty};

use super::{Connection, State, printable};
use crate::Principal;

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
        let first = matches!(self.state, State::Open(open) if open == channel);
        match self.proven.as_ref().map(|proven| &proven.principal) {
            Some(Principal::Node(_)) if first && command == JOIN_COMMAND.as_bytes() => {
                self.state = State::Reading(channel, Vec::new());
                session.channel_success(channel)
            }
            Some(Principal::Operator) if first && command == FACTS_COMMAND.as_bytes() => {
                self.show(channel, session).await
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
