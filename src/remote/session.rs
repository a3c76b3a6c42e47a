//! One SSH session over any stream: the handshake with a verified host key, and why it ended.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::client::{self, ChannelOpenHandle, DisconnectReason, Handler, Msg};
use russh::keys::{Algorithm, PublicKeyOrCertificate};
use russh::{Channel, Disconnect, Preferred, compression};
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::Reason;
use super::host_keys::{HostKeys, fingerprint};
use super::leash::{Leash, leash};
use super::target::{Hop, Limits};

/// Bytes that a peer may send ahead on a channel. Little, because there are many nodes with many channels.
pub(super) const WINDOW: u32 = 128 * 1024;
/// Messages of a channel that wait to be read.
const CHANNEL_BUFFER: usize = 32;
/// Questions without an answer after which a peer is dead.
const ALIVE_COUNT: usize = 3;

/// A session whose host key is the right one. Nobody is logged in yet.
pub(super) struct Session {
    pub(super) handle: client::Handle<Verifier>,
    pub(super) ended: Ended,
    _leash: Leash,
}

/// Why a session ended, once it has.
#[derive(Debug, Clone, Default)]
pub(super) struct Ended(Arc<Mutex<Option<String>>>);

impl Ended {
    fn set(&self, why: String) {
        if let Ok(mut ended) = self.0.lock() {
            ended.get_or_insert(why);
        }
    }

    pub(super) fn why(&self) -> String {
        let why = self.0.lock().ok().and_then(|why| why.clone());
        why.unwrap_or_else(|| "the other side closed it".into())
    }
}

/// The handshake.
pub(super) async fn open<S>(
    stream: S,
    hop: &Hop,
    keys: &HostKeys,
    algorithms: Vec<Algorithm>,
    limits: &Limits,
) -> Result<Session, Reason>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let interval = hop.alive_interval.unwrap_or(limits.alive_interval);
    let count = hop.alive_count.unwrap_or(ALIVE_COUNT).clamp(1, 100);
    let silence = interval.saturating_mul(u32::try_from(count).unwrap_or(1).saturating_add(1));
    let config = Arc::new(client::Config {
        preferred: Preferred {
            key: Cow::Owned(algorithms),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::default()
        },
        window_size: WINDOW,
        channel_buffer_size: CHANNEL_BUFFER,
        keepalive_interval: Some(interval),
        keepalive_max: count,
        // A peer that takes in nothing is asked nothing, either: only this ends it.
        inactivity_timeout: Some(silence.saturating_add(interval)),
        nodelay: true,
        ..client::Config::default()
    });
    let ended = Ended::default();
    let verifier = Verifier {
        keys: keys.clone(),
        ended: ended.clone(),
        silence,
    };
    let (leash, stream) = leash(stream);
    let handshake = client::connect_stream(config, stream, verifier);
    let silent = || Reason::Silent {
        what: format!("{hop} did not finish SSH's handshake"),
        after: limits.handshake,
    };
    match tokio::time::timeout(limits.handshake, handshake).await {
        Err(_) => Err(silent()),
        Ok(Ok(handle)) => Ok(Session {
            handle,
            ended,
            _leash: leash,
        }),
        Ok(Err(Refusal::HostKey(reason))) => Err(*reason),
        Ok(Err(Refusal::Ssh(source))) => Err(Reason::Handshake {
            host: hop.to_string(),
            hint: String::new(),
            source: Box::new(source),
        }),
    }
}

impl Session {
    /// Says farewell, and waits a moment for the other side to have heard it.
    pub(super) async fn close(self) {
        let farewell = async {
            // Whoever is gone already needs none.
            let _ = self
                .handle
                .disconnect(Disconnect::ByApplication, "done", "en")
                .await;
            let _ = self.handle.await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), farewell).await;
    }
}

/// Verifies the host's key, and refuses all that a server may ask of a client.
pub(super) struct Verifier {
    keys: HostKeys,
    ended: Ended,
    silence: Duration,
}

/// Why a session ended, with a reason that the library has no words for.
#[derive(Debug)]
pub(super) enum Refusal {
    HostKey(Box<Reason>),
    Ssh(russh::Error),
}

impl From<russh::Error> for Refusal {
    fn from(error: russh::Error) -> Self {
        Refusal::Ssh(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::HostKey(reason) => reason.fmt(f),
            Refusal::Ssh(error) => error.fmt(f),
        }
    }
}

type Answer = Result<(), Refusal>;

impl Handler for Verifier {
    type Error = Refusal;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Refusal> {
        let verdict = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.keys.verify(key),
            // None was asked for.
            PublicKeyOrCertificate::Certificate(_) => Err(Reason::Unsupported {
                what: format!("a certificate, {}", fingerprint(&shown.public_key())),
                instead: "",
            }),
        };
        verdict.map_err(|reason| Refusal::HostKey(Box::new(reason)))?;
        Ok(true)
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Refusal>) -> Answer {
        let why = match &reason {
            DisconnectReason::ReceivedDisconnect(said) => {
                // Foreign text: one line of it, without what a terminal would act on.
                let text: String = said
                    .message
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(200)
                    .collect();
                format!("the other side said: {text}")
            }
            DisconnectReason::Error(Refusal::Ssh(
                russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout,
            )) => format!(
                "nothing was heard for {} s; is the machine or the network down?",
                self.silence.as_secs()
            ),
            DisconnectReason::Error(Refusal::Ssh(russh::Error::IO(error)))
                if error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                "the other side closed it".into()
            }
            DisconnectReason::Error(Refusal::Ssh(russh::Error::Disconnect)) => {
                "the other side closed it".into()
            }
            DisconnectReason::Error(error) => error.to_string(),
        };
        self.ended.set(why);
        match reason {
            DisconnectReason::ReceivedDisconnect(_) => Ok(()),
            DisconnectReason::Error(error) => Err(error),
        }
    }

    // Nothing was forwarded, so nothing may come back. The library accepts unless it is told not to; a handle that is
    // dropped refuses.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Answer {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Answer {
        Ok(())
    }
}
