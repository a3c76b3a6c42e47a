//! The agent's side: dial, verify the server's key, ask once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orch_contract::{
    JOIN_COMMAND, JOIN_USER, JoinGrant, JoinRequest, JoinResponse, MAX_RESPONSE_BYTES, NodeName,
    RefusalReason, WireError,
};
use russh::client::{self, Config, Handle};
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{ChannelMsg, Disconnect};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::algorithms;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Whole exchange after the connection stands; covers a server that is slow to mint a token.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(45);

/// Whom to ask, as whom.
#[derive(Clone)]
pub struct Join {
    pub address: SocketAddr,
    /// The keys that the server may have: one, or two while it gets a new one.
    pub server_keys: Vec<PublicKey>,
    pub client_key: Arc<PrivateKey>,
    pub node: NodeName,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("cannot connect to the join service at {address}")]
    Connect {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the join service at {address} did not answer within {} s", after.as_secs())]
    Silent {
        address: SocketAddr,
        after: Duration,
    },
    #[error(
        "{address} is not the expected server: it shows the host key {actual}, this node was given {expected}; \
         if the server's keys were made anew, provision this node again, otherwise something stands between"
    )]
    HostKey {
        address: SocketAddr,
        expected: String,
        actual: String,
    },
    #[error("the join service at {address} does not know this node's key {fingerprint}")]
    KeyRejected {
        address: SocketAddr,
        fingerprint: String,
    },
    #[error("the connection to the join service at {address} broke")]
    Broken {
        address: SocketAddr,
        source: russh::Error,
    },
    #[error("the join service at {address} does not execute {JOIN_COMMAND}")]
    NotOffered { address: SocketAddr },
    #[error("the answer of the join service cannot be used")]
    Answer(#[source] WireError),
    #[error("the join service refused: {message}")]
    Refused {
        reason: RefusalReason,
        message: String,
        retry_after: Option<Duration>,
    },
}

impl JoinError {
    /// How long the service wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            JoinError::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether asking again may help, because the server may still be starting.
    pub fn is_transient(&self) -> bool {
        match self {
            JoinError::Connect { .. } | JoinError::Silent { .. } | JoinError::Broken { .. } => true,
            JoinError::Refused { reason, .. } => {
                matches!(reason, RefusalReason::NotReady | RefusalReason::RateLimited)
            }
            JoinError::HostKey { .. }
            | JoinError::KeyRejected { .. }
            | JoinError::NotOffered { .. }
            | JoinError::Answer(_) => false,
        }
    }
}

/// Asks once; retrying is the caller's decision.
pub async fn request_join(join: &Join) -> Result<JoinGrant, JoinError> {
    let address = join.address;
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| JoinError::Connect { address, source })?;
    tokio::time::timeout(EXCHANGE_TIMEOUT, exchange(join, stream))
        .await
        .unwrap_or(Err(JoinError::Silent {
            address,
            after: EXCHANGE_TIMEOUT,
        }))
}

async fn exchange(join: &Join, stream: TcpStream) -> Result<JoinGrant, JoinError> {
    let address = join.address;
    let broken = |source| JoinError::Broken { address, source };
    let config = Arc::new(Config {
        preferred: algorithms::preferred(),
        inactivity_timeout: Some(EXCHANGE_TIMEOUT),
        // The answer is small; a server that sends more runs into this window.
        window_size: 2 * MAX_RESPONSE_BYTES as u32,
        ..Config::default()
    });
    let handler = PinnedServer {
        address,
        expected: join.server_keys.clone(),
    };
    let mut session = client::connect_stream(config, stream, handler)
        .await
        .map_err(|error| error.into_join_error(address))?;
    let key = PrivateKeyWithHashAlg::new(Arc::clone(&join.client_key), None);
    let authenticated = session
        .authenticate_publickey(JOIN_USER, key)
        .await
        .map_err(broken)?;
    if !authenticated.success() {
        return Err(JoinError::KeyRejected {
            address,
            fingerprint: join.client_key.fingerprint(HashAlg::Sha256).to_string(),
        });
    }
    let answer = ask(&session, join).await?;
    // The answer is in hand; a server that does not hear the farewell closes by itself.
    let _ = session
        .disconnect(Disconnect::ByApplication, "done", "en")
        .await;
    match JoinResponse::parse(&answer).map_err(JoinError::Answer)? {
        JoinResponse::Granted(grant) => Ok(grant),
        JoinResponse::Refused(refusal) => Err(JoinError::Refused {
            reason: refusal.reason,
            message: refusal.message,
            retry_after: refusal.retry_after_seconds.map(Duration::from_secs),
        }),
    }
}

async fn ask(session: &Handle<PinnedServer>, join: &Join) -> Result<Zeroizing<Vec<u8>>, JoinError> {
    let address = join.address;
    let broken = |source| JoinError::Broken { address, source };
    let mut request = serde_json::to_vec(&JoinRequest::new(join.node.clone()))
        .map_err(|source| JoinError::Answer(WireError::Malformed(source)))?;
    request.push(b'\n');
    let mut channel = session.channel_open_session().await.map_err(broken)?;
    channel.exec(true, JOIN_COMMAND).await.map_err(broken)?;
    let mut answer = Zeroizing::new(Vec::with_capacity(MAX_RESPONSE_BYTES));
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => {
                channel
                    .data_bytes(std::mem::take(&mut request))
                    .await
                    .map_err(broken)?;
                channel.eof().await.map_err(broken)?;
            }
            Some(ChannelMsg::Failure) => return Err(JoinError::NotOffered { address }),
            Some(ChannelMsg::Data { data }) => {
                let total = answer.len() + data.len();
                if total > MAX_RESPONSE_BYTES {
                    return Err(JoinError::Answer(WireError::TooLong {
                        actual: total,
                        limit: MAX_RESPONSE_BYTES,
                    }));
                }
                answer.extend_from_slice(&data);
            }
            Some(ChannelMsg::Close) | None => break,
            Some(_) => {}
        }
    }
    if answer.is_empty() {
        return Err(broken(russh::Error::Disconnect));
    }
    Ok(answer)
}

struct PinnedServer {
    address: SocketAddr,
    expected: Vec<PublicKey>,
}

/// The handler's error carries both fingerprints, which the library's own cannot.
#[derive(Debug)]
enum PinError {
    HostKey { expected: String, actual: String },
    Ssh(russh::Error),
}

impl PinError {
    fn into_join_error(self, address: SocketAddr) -> JoinError {
        match self {
            PinError::HostKey { expected, actual } => JoinError::HostKey {
                address,
                expected,
                actual,
            },
            PinError::Ssh(source) => JoinError::Broken { address, source },
        }
    }
}

impl From<russh::Error> for PinError {
    fn from(error: russh::Error) -> Self {
        PinError::Ssh(error)
    }
}

impl client::Handler for PinnedServer {
    type Error = PinError;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let actual = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. }
                if self
                    .expected
                    .iter()
                    .any(|expected| expected.key_data() == key.key_data()) =>
            {
                return Ok(true);
            }
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                key.fingerprint(HashAlg::Sha256).to_string()
            }
            PublicKeyOrCertificate::Certificate(_) => {
                format!("of a certificate, from {}", self.address)
            }
        };
        let expected: Vec<_> = self
            .expected
            .iter()
            .map(|key| key.fingerprint(HashAlg::Sha256).to_string())
            .collect();
        Err(PinError::HostKey {
            expected: expected.join(" or "),
            actual,
        })
    }
}
