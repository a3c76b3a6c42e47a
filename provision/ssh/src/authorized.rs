//! Whose key is whose: public keys, each of one node or of the cluster's operator.

use std::fmt;

use orch_contract::{NameError, NodeName, Role};
use russh::keys::{Algorithm, PublicKey};

/// Lines beyond this many bytes or this count are a mistake, not a cluster.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The comment of the operator's key; no node has this name.
pub(crate) const OPERATOR_COMMENT: &str = "operator:host";

/// What stands before a server's name.
const SERVER_PREFIX: &str = "server:";

/// A node, and as what it may join: the host decided both when it wrote the list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    pub name: NodeName,
    pub role: Role,
}

/// Whom a key stands for, and so what it may ask: a node joins, the operator looks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    Node(Member),
    Operator,
}

impl Principal {
    fn parse(comment: &str) -> Result<Self, NameError> {
        if comment == OPERATOR_COMMENT {
            return Ok(Principal::Operator);
        }
        let (role, name) = match comment.strip_prefix(SERVER_PREFIX) {
            Some(name) => (Role::Server, name),
            None => (Role::Agent, comment),
        };
        let name = name.parse()?;
        Ok(Principal::Node(Member { name, role }))
    }
}

/// As it is written after the key. No node's name has a colon.
impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Node(Member { name, role }) => match role {
                Role::Server => write!(formatter, "{SERVER_PREFIX}{name}"),
                Role::Agent => formatter.write_str(name.as_str()),
            },
            Principal::Operator => formatter.write_str(OPERATOR_COMMENT),
        }
    }
}

/// A file in OpenSSH's authorized_keys format whose comments are nodes' names, `server:` before a server's, or the operator's.
#[derive(Debug, Clone, Default)]
pub struct AuthorizedKeys {
    entries: Vec<(PublicKey, Principal)>,
}

/// Why such a file cannot be used; `line` counts from 1.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizedKeysError {
    #[error("the file has {0} bytes, more than any cluster needs")]
    TooLarge(usize),
    #[error("line {line} is not a public key")]
    Key {
        line: usize,
        source: russh::keys::ssh_key::Error,
    },
    #[error("line {line} is not an ed25519 key without options")]
    Kind { line: usize },
    #[error(
        "line {line}: the comment must be the node's name, {SERVER_PREFIX} before it for a server, or {OPERATOR_COMMENT}"
    )]
    Name { line: usize, source: NameError },
    #[error("line {line}: the key of {first} is there again for {second}")]
    Duplicate {
        line: usize,
        first: Principal,
        second: Principal,
    },
}

impl AuthorizedKeys {
    /// Reads the file's text. One bad line refuses the whole file: guessing who may join is worse
    /// than nobody joining.
    pub fn parse(text: &str) -> Result<Self, AuthorizedKeysError> {
        if text.len() > MAX_BYTES {
            return Err(AuthorizedKeysError::TooLarge(text.len()));
        }
        let mut entries: Vec<(PublicKey, Principal)> = Vec::new();
        for (index, content) in text.lines().enumerate() {
            let (line, content) = (index + 1, content.trim());
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            if !content.starts_with("ssh-ed25519 ") {
                return Err(AuthorizedKeysError::Kind { line });
            }
            let key = PublicKey::from_openssh(content)
                .map_err(|source| AuthorizedKeysError::Key { line, source })?;
            if key.algorithm() != Algorithm::Ed25519 {
                return Err(AuthorizedKeysError::Kind { line });
            }
            let comment = content.splitn(3, ' ').nth(2).unwrap_or_default();
            let principal = Principal::parse(comment)
                .map_err(|source| AuthorizedKeysError::Name { line, source })?;
            if let Some((_, first)) = entries
                .iter()
                .find(|(known, _)| known.key_data() == key.key_data())
            {
                return Err(AuthorizedKeysError::Duplicate {
                    line,
                    first: first.clone(),
                    second: principal,
                });
            }
            entries.push((key, principal));
        }
        Ok(Self { entries })
    }

    /// One line of the file, with its line end.
    pub(crate) fn line(key: &PublicKey, principal: &Principal) -> String {
        let mut key = key.clone();
        key.set_comment(principal.to_string());
        // Encoding an ed25519 key into a string has no way to fail; an empty line would be skipped
        // by every reader, so a failure can only take access away.
        key.to_openssh()
            .map(|line| format!("{line}\n"))
            .unwrap_or_default()
    }

    /// Whom a key stands for.
    pub fn principal_of(&self, key: &PublicKey) -> Option<&Principal> {
        self.entries
            .iter()
            .find(|(known, _)| known.key_data() == key.key_data())
            .map(|(_, principal)| principal)
    }

    /// The node that a key belongs to.
    pub fn node_of(&self, key: &PublicKey) -> Option<&NodeName> {
        match self.principal_of(key)? {
            Principal::Node(member) => Some(&member.name),
            Principal::Operator => None,
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use russh::keys::PrivateKey;

    use super::*;

    fn line(name: &str) -> (PublicKey, String) {
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let line = AuthorizedKeys::line(key.public_key(), &Principal::parse(name).unwrap());
        (key.public_key().clone(), line)
    }

    #[test]
    fn the_comment_is_the_node() {
        let (key, text) = line("agent");
        let keys = AuthorizedKeys::parse(&format!("# agents\n\n{text}")).unwrap();
        assert_eq!(keys.node_of(&key).unwrap().as_str(), "agent");
        assert_eq!(keys.node_of(&line("agent").0), None);
    }

    #[test]
    fn the_operator_is_no_node() {
        let (key, text) = line(OPERATOR_COMMENT);
        let keys = AuthorizedKeys::parse(&text).unwrap();
        assert_eq!(keys.principal_of(&key), Some(&Principal::Operator));
        assert_eq!(keys.node_of(&key), None);
        let (key, text) = line("operator");
        let keys = AuthorizedKeys::parse(&text).unwrap();
        assert!(keys.node_of(&key).is_some(), "a node may be called so");
    }

    #[test]
    fn a_server_is_what_the_list_calls_one() {
        let role_of = |comment: &str| {
            let (key, text) = line(comment);
            let keys = AuthorizedKeys::parse(&text).unwrap();
            match keys.principal_of(&key).unwrap() {
                Principal::Node(member) => (member.name.to_string(), member.role),
                Principal::Operator => panic!("{comment}"),
            }
        };
        assert_eq!(role_of("server:b"), ("b".to_owned(), Role::Server));
        // A node may be called so, and is no server for it.
        assert_eq!(role_of("server"), ("server".to_owned(), Role::Agent));
    }

    #[test]
    fn one_bad_line_refuses_the_file() {
        let (_, good) = line("agent");
        for bad in [
            "ssh-ed25519 AAAA agent2\n",
            "ssh-rsa AAAA agent2\n",
            "command=\"sh\" ssh-ed25519 AAAA x\n",
            &line("agent").1.replace(" agent", " Not A Name"),
            &line("agent").1.replace(" agent", ""),
            &line("agent").1.replace(" agent", " operator:else"),
            &line("agent").1.replace(" agent", " server:"),
            &line("agent").1.replace(" agent", " server:server:x"),
            &good,
        ] {
            let error = AuthorizedKeys::parse(&format!("{good}{bad}")).unwrap_err();
            assert!(error.to_string().starts_with("line 2"), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_keys_or_an_error(text in "\\PC{0,300}") {
            let _ = AuthorizedKeys::parse(&text);
        }
    }
}
