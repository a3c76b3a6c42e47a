//! The asking side, an agent's or the operator's: dial, verify the server's key, ask once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orch_contract::{
    FACTS_COMMAND, JOIN_COMMAND, JOIN_USER, JoinGrant, JoinRequest, JoinResponse, MAX_FACTS_BYTES,
    MAX_RESPONSE_BYTES, NodeFacts, NodeName, RefusalReason, WireError,
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

/// Whom to ask, and with which key.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    /// The keys that the server may have: one, or two while it gets a new one.
    pub server_keys: Vec<PublicKey>,
    pub client_key: Arc<PrivateKey>,
}

/// Why there is no answer.
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
    #[error("the join service at {address} does not know the key {fingerprint}")]
    KeyRejected {
        address: SocketAddr,
        fingerprint: String,
    },
    #[error("the connection to the join service at {address} broke")]
    Broken {
        address: SocketAddr,
        source: russh::Error,
    },
    #[error("the join service at {address} does not execute {command} for this key")]
    NotOffered {
        address: SocketAddr,
        command: &'static str,
    },
    #[error("the answer of the join service cannot be used")]
    Answer(#[source] WireError),
    #[error("the server cannot say what it is: {message}")]
    NoFacts { message: String },
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

    /// Whether a cluster's own server said so: asking another of its servers would not help.
    pub fn is_for_all_servers(&self) -> bool {
        let JoinError::Refused { reason, .. } = self else {
            return false;
        };
        *reason == RefusalReason::InTurn
    }

    /// Whether the service answered that there is no cluster behind it.
    pub fn is_no_cluster(&self) -> bool {
        let JoinError::Refused { reason, .. } = self else {
            return false;
        };
        *reason == RefusalReason::NoCluster
    }

    /// Whether nobody listens at the address. Who accepts a connection and then says nothing is there all the same.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, JoinError::Connect { .. })
    }

    /// Whether asking again may help, because the server may still be starting.
    pub fn is_transient(&self) -> bool {
        match self {
            JoinError::Connect { .. } | JoinError::Silent { .. } | JoinError::Broken { .. } => true,
            JoinError::Refused { reason, .. } => {
                matches!(
                    reason,
                    RefusalReason::NotReady
                        | RefusalReason::RateLimited
                        | RefusalReason::NoCluster
                        | RefusalReason::InTurn
                )
            }
            JoinError::HostKey { .. }
            | JoinError::KeyRejected { .. }
            | JoinError::NotOffered { .. }
            | JoinError::NoFacts { .. }
            | JoinError::Answer(_) => false,
        }
    }
}

/// Asks once for a token for `node`; retrying is the caller's decision.
pub async fn request_join(server: &Server, node: &NodeName) -> Result<JoinGrant, JoinError> {
    let mut request = serde_json::to_vec(&JoinRequest::new(node.clone()))
        .map_err(|source| JoinError::Answer(WireError::Malformed(source)))?;
    request.push(b'\n');
    let question = Question {
        command: JOIN_COMMAND,
        request,
        max_answer_bytes: MAX_RESPONSE_BYTES,
    };
    let answer = question.ask(server).await?;
    match JoinResponse::parse(&answer.output).map_err(JoinError::Answer)? {
        JoinResponse::Granted(grant) => Ok(grant),
        JoinResponse::Refused(refusal) => Err(JoinError::Refused {
            reason: refusal.reason,
            message: refusal.message,
            retry_after: refusal.retry_after_seconds.map(Duration::from_secs),
        }),
    }
}

/// Asks once what the server's machine is; only the operator's key may.
pub async fn request_facts(server: &Server) -> Result<NodeFacts, JoinError> {
    let question = Question {
        command: FACTS_COMMAND,
        request: Vec::new(),
        max_answer_bytes: MAX_FACTS_BYTES,
    };
    let answer = question.ask(server).await?;
    if answer.output.is_empty() {
        let message = String::from_utf8_lossy(&answer.message);
        return Err(JoinError::NoFacts {
            message: message.trim().to_owned(),
        });
    }
    serde_json::from_slice(&answer.output)
        .map_err(|source| JoinError::Answer(WireError::Malformed(source)))
}

/// A command, what it is told, and how much it may say.
struct Question {
    command: &'static str,
    request: Vec<u8>,
    max_answer_bytes: usize,
}

/// What a command wrote. It may hold a token, so it is wiped when dropped.
#[derive(Default)]
struct Answer {
    output: Zeroizing<Vec<u8>>,
    message: Vec<u8>,
}

impl Question {
    async fn ask(self, server: &Server) -> Result<Answer, JoinError> {
        let address = server.address;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| JoinError::Connect { address, source })?;
        tokio::time::timeout(EXCHANGE_TIMEOUT, self.exchange(server, stream))
            .await
            .unwrap_or(Err(JoinError::Silent {
                address,
                after: EXCHANGE_TIMEOUT,
            }))
    }

    async fn exchange(self, server: &Server, stream: TcpStream) -> Result<Answer, JoinError> {
        let address = server.address;
        let broken = |source| JoinError::Broken { address, source };
        let config = Arc::new(Config {
            preferred: algorithms::preferred(),
            inactivity_timeout: Some(EXCHANGE_TIMEOUT),
            // The answer is small; a server that sends more runs into this window.
            window_size: 2 * self.max_answer_bytes as u32,
            ..Config::default()
        });
        let handler = PinnedServer {
            address,
            expected: server.server_keys.clone(),
        };
        let mut session = client::connect_stream(config, stream, handler)
            .await
            .map_err(|error| error.into_join_error(address))?;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&server.client_key), None);
        let authenticated = session
            .authenticate_publickey(JOIN_USER, key)
            .await
            .map_err(broken)?;
        if !authenticated.success() {
            return Err(JoinError::KeyRejected {
                address,
                fingerprint: server.client_key.fingerprint(HashAlg::Sha256).to_string(),
            });
        }
        let answer = self.execute(&session, address).await?;
        // The answer is in hand; a server that does not hear the farewell closes by itself.
        let _ = session
            .disconnect(Disconnect::ByApplication, "done", "en")
            .await;
        Ok(answer)
    }

    async fn execute(
        mut self,
        session: &Handle<PinnedServer>,
        address: SocketAddr,
    ) -> Result<Answer, JoinError> {
        let broken = |source| JoinError::Broken { address, source };
        let mut channel = session.channel_open_session().await.map_err(broken)?;
        channel.exec(true, self.command).await.map_err(broken)?;
        let mut answer = Answer {
            // Grown, it would leave copies of itself behind.
            output: Zeroizing::new(Vec::with_capacity(self.max_answer_bytes)),
            ..Answer::default()
        };
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) if !self.request.is_empty() => {
                    channel
                        .data_bytes(std::mem::take(&mut self.request))
                        .await
                        .map_err(broken)?;
                    channel.eof().await.map_err(broken)?;
                }
                Some(ChannelMsg::Failure) => {
                    return Err(JoinError::NotOffered {
                        address,
                        command: self.command,
                    });
                }
                Some(ChannelMsg::Data { data }) => {
                    self.bound(answer.output.len() + data.len())?;
                    answer.output.extend_from_slice(&data);
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    self.bound(answer.message.len() + data.len())?;
                    answer.message.extend_from_slice(&data);
                }
                Some(ChannelMsg::Close) | None => break,
                Some(_) => {}
            }
        }
        if answer.output.is_empty() && answer.message.is_empty() {
            return Err(broken(russh::Error::Disconnect));
        }
        Ok(answer)
    }

    fn bound(&self, bytes: usize) -> Result<(), JoinError> {
        if bytes <= self.max_answer_bytes {
            return Ok(());
        }
        Err(JoinError::Answer(WireError::TooLong {
            actual: bytes,
            limit: self.max_answer_bytes,
        }))
    }
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
