//! Names of nodes, as Kubernetes accepts them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A Kubernetes node name: an RFC 1123 subdomain of at most 253 characters.
///
/// It becomes a file name, a certificate subject and part of a log line, so what is not a name
/// never gets past this type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// Why a string is not a node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a node name must have 1 to 253 characters, this one has {0}")]
    Length(usize),
    #[error(
        "{0:?} is not a node name: use lower-case letters, digits, '-' and '.', and start and end each part with a letter or a digit (RFC 1123)"
    )]
    Characters(String),
}

impl NodeName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;

    fn try_from(value: String) -> Result<Self, NameError> {
        if value.is_empty() || value.len() > 253 {
            return Err(NameError::Length(value.len()));
        }
        let part_is_valid = |part: &str| {
            let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            edge(part.as_bytes().first())
                && edge(part.as_bytes().last())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if value.split('.').all(part_is_valid) {
            Ok(Self(value))
        } else {
            Err(NameError::Characters(value))
        }
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        Self::try_from(value.to_owned())
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> String {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl AsRef<str> for NodeName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_kubernetes_accepts() {
        for name in ["a", "master", "agent-2", "10", "node.example.org"] {
            assert!(name.parse::<NodeName>().is_ok(), "{name}");
        }
    }

    #[test]
    fn refuses_paths_spaces_and_upper_case() {
        for name in [
            "", "Master", "a b", "../x", "a/b", "-a", "a-", "a..b", "a\n", "ä",
        ] {
            assert!(name.parse::<NodeName>().is_err(), "{name:?}");
        }
        assert!("a".repeat(254).parse::<NodeName>().is_err());
    }
}
