//! The join protocol's messages and limits.
//!
//! Over SSH the agent asks to execute [`JOIN_COMMAND`], sends one [`JoinRequest`] as a JSON line and
//! closes its side; the server answers one [`JoinResponse`] as a JSON line and an exit status. The
//! host asks to execute [`FACTS_COMMAND`] and sends nothing; the answer is the server's
//! [`NodeFacts`](crate::NodeFacts), or an exit status other than 0 and a sentence on standard error.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{NodeName, Role};

/// Version of the messages below.
pub const JOIN_SCHEMA: u32 = 1;
/// The one command that the join service executes for a node.
pub const JOIN_COMMAND: &str = "orch-join";
/// The one command that it executes for the operator.
pub const FACTS_COMMAND: &str = "orch-facts";
/// The one user name there is; the key decides who it is.
pub const JOIN_USER: &str = "orch";
/// TCP port of the join service where the configuration names none.
pub const DEFAULT_JOIN_PORT: u16 = 6222;
/// Bytes of a request beyond which the server stops reading.
pub const MAX_REQUEST_BYTES: usize = 4096;
/// Bytes of a response beyond which the client stops reading.
pub const MAX_RESPONSE_BYTES: usize = 8192;
/// Bytes of facts beyond which the client stops reading.
pub const MAX_FACTS_BYTES: usize = 64 * 1024;
/// Bytes of a token; K3s's are about 100.
pub const MAX_TOKEN_BYTES: usize = 512;

/// A message of the join protocol that is not one.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the message has {actual} bytes, more than the {limit} allowed")]
    TooLong { actual: usize, limit: usize },
    #[error("the message is not valid")]
    Malformed(#[source] serde_json::Error),
    #[error("the message has schema {actual}; this side speaks {JOIN_SCHEMA}")]
    Schema { actual: u32 },
    #[error("the token is not one: {0}")]
    Token(&'static str),
}

/// A token that lets an agent join: never shown, wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct JoinToken(String);

impl JoinToken {
    /// Takes what `k3s token create` printed, without the line end.
    pub fn parse(value: impl Into<String>) -> Result<Self, WireError> {
        Self::try_from(value.into())
    }

    /// The value itself; every call site is a place to review.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The public half of a bootstrap token, by which it is listed and deleted; None if this is
    /// another kind of token.
    pub fn id(&self) -> Option<&str> {
        let (_, credentials) = self.0.rsplit_once("::")?;
        let (id, _) = credentials.split_once('.')?;
        is_token_id(id).then_some(id)
    }

    /// Whether it makes a server of whoever holds it.
    pub fn is_a_servers(&self) -> bool {
        let credentials = self.0.rsplit_once("::");
        credentials.is_some_and(|(_, credentials)| credentials.starts_with("server:"))
    }
}

/// Whether a text has the form of a bootstrap token's public half.
pub fn is_token_id(text: &str) -> bool {
    text.len() == 6
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

impl TryFrom<String> for JoinToken {
    type Error = WireError;

    fn try_from(mut value: String) -> Result<Self, WireError> {
        let problem = if value.is_empty() {
            Some("it is empty")
        } else if value.len() > MAX_TOKEN_BYTES {
            Some("it is too long")
        } else if !value.bytes().all(|b| b.is_ascii_graphic()) {
            Some("it has characters that no token has")
        } else {
            None
        };
        match problem {
            None => Ok(Self(value)),
            Some(problem) => {
                value.zeroize();
                Err(WireError::Token(problem))
            }
        }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JoinToken(redacted)")
    }
}

/// What an agent asks. Its key, not this message, decides which node it is: a name that is not
/// the key's is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    pub schema: u32,
    pub node: NodeName,
}

impl JoinRequest {
    pub fn new(node: NodeName) -> Self {
        Self {
            schema: JOIN_SCHEMA,
            node,
        }
    }

    /// Reads a request; the caller must have stopped reading at [`MAX_REQUEST_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(WireError::TooLong {
                actual: bytes.len(),
                limit: MAX_REQUEST_BYTES,
            });
        }
        let request: Self = serde_json::from_slice(bytes).map_err(WireError::Malformed)?;
        if request.schema != JOIN_SCHEMA {
            return Err(WireError::Schema {
                actual: request.schema,
            });
        }
        Ok(request)
    }
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum JoinResponse {
    Granted(JoinGrant),
    Refused(JoinRefusal),
}

/// A token and where to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    pub schema: u32,
    /// The node that the key belongs to.
    pub node: NodeName,
    /// K3s's supervisor, such as `https://192.168.56.10:6443`.
    pub server_url: String,
    pub token: JoinToken,
    /// What the token makes of whoever holds it; the key decided it.
    #[serde(default = "agent")]
    pub role: Role,
    /// When the token stops working, by the server's clock; a server's never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// What every grant was for before there were others.
const fn agent() -> Role {
    Role::Agent
}

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRefusal {
    pub reason: RefusalReason,
    /// For people; holds nothing secret.
    pub message: String,
    /// Before that many seconds have passed the answer will be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

impl JoinRefusal {
    pub fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry_after_seconds: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The key belongs to another node than the request names.
    WrongNode,
    /// The request cannot be read; the sides may be of different versions.
    BadRequest,
    /// K3s did not mint a token; trying again may help.
    NotReady,
    /// This node asks more often than any node needs to; `retry_after_seconds` says when to go on.
    RateLimited,
    /// The key was taken off the list after the connection had been accepted.
    Revoked,
    /// A server asks, and there is no cluster here that it could join, nor data of one.
    NoCluster,
    /// A server asks while another one joins: etcd takes in one at a time.
    InTurn,
    #[serde(other)]
    Unknown,
}

impl JoinResponse {
    /// Reads a response; the caller must have stopped reading at [`MAX_RESPONSE_BYTES`].
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_RESPONSE_BYTES {
            return Err(WireError::TooLong {
                actual: bytes.len(),
                limit: MAX_RESPONSE_BYTES,
            });
        }
        serde_json::from_slice(bytes).map_err(WireError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grant() -> JoinResponse {
        JoinResponse::Granted(JoinGrant {
            schema: JOIN_SCHEMA,
            node: "agent".parse().unwrap(),
            server_url: "https://192.168.56.10:6443".into(),
            token: JoinToken::parse("K10abc::id.secret").unwrap(),
            role: Role::Agent,
            expires_at: Some(Timestamp::UNIX_EPOCH),
        })
    }

    #[test]
    fn debug_of_a_grant_does_not_show_the_token() {
        let text = format!("{:?}", grant());
        assert!(text.contains("JoinToken(redacted)"));
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn a_response_survives_the_wire() {
        let bytes = serde_json::to_vec(&grant()).unwrap();
        assert_eq!(JoinResponse::parse(&bytes).unwrap(), grant());
    }

    #[test]
    fn only_a_bootstrap_token_has_an_id() {
        let id = |text: &str| {
            let token = JoinToken::parse(text).unwrap();
            token.id().map(str::to_owned)
        };
        assert_eq!(
            id("K10ab::abc123.0123456789abcdef").as_deref(),
            Some("abc123")
        );
        for other in [
            "K10ab::server:password",
            "abc123.secret",
            "K10::ABC123.s",
            "K10::abc1234.s",
        ] {
            assert_eq!(id(other), None, "{other}");
        }
        let is_a_servers = |text: &str| JoinToken::parse(text).unwrap().is_a_servers();
        assert!(is_a_servers("K10ab::server:password"));
        assert!(!is_a_servers("K10ab::abc123.0123456789abcdef"));
    }

    #[test]
    fn a_refusal_of_an_older_service_names_no_time() {
        let old = br#"{"status":"refused","reason":"not_ready","message":"starting"}"#;
        let JoinResponse::Refused(refusal) = JoinResponse::parse(old).unwrap() else {
            panic!("this is a refusal");
        };
        assert_eq!(
            refusal,
            JoinRefusal::new(RefusalReason::NotReady, "starting")
        );
    }

    #[test]
    fn a_grant_of_an_older_service_is_an_agents() {
        let mut old = serde_json::to_value(grant()).unwrap();
        old.as_object_mut().unwrap().remove("role");
        let read = JoinResponse::parse(old.to_string().as_bytes()).unwrap();
        assert_eq!(read, grant());
    }

    #[test]
    fn a_bad_token_is_refused_without_being_repeated() {
        for bad in ["", "two words", "line\nbreak", "nul\0"] {
            let error = JoinToken::parse(bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
        assert!(JoinToken::parse("x".repeat(MAX_TOKEN_BYTES + 1)).is_err());
    }

    #[test]
    fn a_request_is_strict() {
        assert!(JoinRequest::parse(br#"{"schema":1,"node":"agent"}"#).is_ok());
        assert!(matches!(
            JoinRequest::parse(br#"{"schema":2,"node":"agent"}"#),
            Err(WireError::Schema { actual: 2 })
        ));
        assert!(JoinRequest::parse(br#"{"schema":1,"node":"agent","role":"server"}"#).is_err());
        assert!(JoinRequest::parse(br#"{"schema":1,"node":"../../etc"}"#).is_err());
        assert!(matches!(
            JoinRequest::parse(&vec![b' '; MAX_REQUEST_BYTES + 1]),
            Err(WireError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
            let _ = JoinRequest::parse(&bytes);
            let _ = JoinResponse::parse(&bytes);
        }

        #[test]
        fn what_is_parsed_is_what_was_sent(name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?") {
            let request = JoinRequest::new(name.parse().unwrap());
            let bytes = serde_json::to_vec(&request).unwrap();
            prop_assert_eq!(JoinRequest::parse(&bytes).unwrap(), request);
        }
    }
}
