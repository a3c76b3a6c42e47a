//! Where a node is and how it is reached: what the caller wants, and what became of it.

use std::path::PathBuf;
use std::time::Duration;

use super::host_key_pin::HostKeyPin;
use super::ssh_config::Family;

/// What the caller knows of a node, from orch.yaml or from Vagrant. What is left out is ssh's configuration's business.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The node's name, for messages.
    pub name: String,
    /// An address, or a name that DNS or ssh's configuration knows.
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    /// The one private key to use, as with `IdentitiesOnly`.
    pub identity: Option<PathBuf>,
    /// As in ssh's `ProxyJump`: `user@host:port`, several with commas between, the nearest first; `none` for none.
    pub jump: Option<String>,
    /// The key that the node must show. Lists of known hosts are not asked then.
    pub host_key: Option<HostKeyPin>,
    /// Instead of the user's and the system's, as `ssh -F` has it.
    pub ssh_config: Option<PathBuf>,
    /// A list of known hosts beside those that ssh's configuration names.
    pub known_hosts: Option<PathBuf>,
}

/// A node, resolved. Made by [`super::resolve`].
#[derive(Debug, Clone)]
pub struct Target {
    pub(super) name: String,
    /// The jump hosts in the order in which they are dialled, then the node. Never empty.
    pub(super) hops: Vec<Hop>,
    /// What a user should be told: settings that were passed over.
    pub notes: Vec<String>,
}

impl Target {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node itself as `user@host:port`, for people.
    pub fn address(&self) -> String {
        self.hops.last().map(Hop::to_string).unwrap_or_default()
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        self.hops.last().map_or("", |hop| &hop.user)
    }

    /// The host that ssh's configuration made of the name.
    pub fn host(&self) -> &str {
        self.hops.last().map_or("", |hop| &hop.host)
    }

    pub fn port(&self) -> u16 {
        self.hops.last().map_or(22, |hop| hop.port)
    }
}

/// One SSH server on the way.
#[derive(Debug, Clone)]
pub(super) struct Hop {
    /// How ssh is told to go there, to be pasted.
    pub(super) ssh: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) identities: Vec<Identity>,
    pub(super) certificates: Vec<PathBuf>,
    pub(super) identities_only: bool,
    pub(super) agent: Option<PathBuf>,
    pub(super) pin: Option<HostKeyPin>,
    pub(super) known_hosts: Vec<PathBuf>,
    pub(super) revoked_host_keys: Option<PathBuf>,
    pub(super) host_key_alias: Option<String>,
    pub(super) proxy_command: Option<String>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) alive_interval: Option<Duration>,
    pub(super) alive_count: Option<usize>,
    pub(super) family: Family,
    pub(super) bind_address: Option<std::net::IpAddr>,
}

/// A key file to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) path: PathBuf,
    /// The caller named it: that it is missing is an error.
    pub(super) wanted: bool,
}

impl std::fmt::Display for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let brackets = self.host.contains(':');
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        write!(f, "{}@{open}{}{close}:{}", self.user, self.host, self.port)
    }
}

/// How long and how much, at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For each address, unless ssh's configuration has `ConnectTimeout`.
    pub connect: Duration,
    /// From the open connection to the verified host key.
    pub handshake: Duration,
    /// All keys; somebody may have to touch one.
    pub authentication: Duration,
    /// For a channel, or for the start of a command.
    pub answer: Duration,
    /// A command of [`super::Connection::run`].
    pub command: Duration,
    /// A command of [`super::Connection::stream`], or an upload; a peer that dies ends it much earlier.
    pub stream: Duration,
    /// The node taking in not a byte of what it is sent.
    pub stall: Duration,
    /// Between questions whether the other side still lives, unless ssh's configuration has `ServerAliveInterval`.
    pub alive_interval: Duration,
    /// Bytes of a command's output that are kept, for each of stdout and stderr.
    pub output: usize,
    /// Bytes of a line; what follows is left out.
    pub line: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            handshake: Duration::from_secs(30),
            authentication: Duration::from_secs(60),
            answer: Duration::from_secs(30),
            command: Duration::from_secs(5 * 60),
            stream: Duration::from_secs(60 * 60),
            stall: Duration::from_secs(60),
            alive_interval: Duration::from_secs(10),
            output: 1024 * 1024,
            line: 16 * 1024,
        }
    }
}
