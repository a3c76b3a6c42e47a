//! Why something on another machine did not work: which node, which of its hops, what, and the next step.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Exit;
use crate::process::RunError;

/// A reason, and where it was met.
#[derive(Debug)]
pub struct RemoteError {
    /// The node that was meant.
    pub node: String,
    /// The jump host on the way to it, if it was there.
    pub jump: Option<String>,
    pub reason: Box<Reason>,
}

impl RemoteError {
    pub(super) fn new(node: &str, reason: Reason) -> Self {
        Self {
            node: node.to_owned(),
            jump: None,
            reason: Box::new(reason),
        }
    }

    pub(super) fn at(mut self, jump: Option<&str>) -> Self {
        self.jump = jump.map(str::to_owned);
        self
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}: ", self.node)?;
        if let Some(jump) = &self.jump {
            write!(f, "at the jump host {jump}: ")?;
        }
        self.reason.fmt(f)
    }
}

impl std::error::Error for RemoteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reason.source()
    }
}

/// What went wrong. Nothing in here is secret.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    #[error("cannot find out how to reach it from ssh's configuration")]
    Resolve(#[source] RunError),
    #[error("{what} {value:?} cannot be used: {why}")]
    Invalid {
        what: &'static str,
        value: String,
        why: &'static str,
    },
    #[error("{file} needs the program `ssh` to be understood; install OpenSSH's client")]
    NoSsh { file: String },
    #[error(
        "its jump hosts lead through one another: {chain}; see ProxyJump in ssh's configuration"
    )]
    JumpLoop { chain: String },
    #[error("ssh's configuration asks for {what}, which is not supported{instead}")]
    Unsupported { what: String, instead: &'static str },

    #[error("the name {host} has no address")]
    Lookup { host: String, source: io::Error },
    #[error("no connection to {host} port {port}: {}", attempts.join("; "))]
    Connect {
        host: String,
        port: u16,
        /// Each address with what happened there.
        attempts: Vec<String>,
    },
    #[error("cannot run the ProxyCommand `{command}`")]
    ProxySpawn { command: String, source: io::Error },
    #[error(
        "does not open a connection to {host} port {port}; may it forward TCP (AllowTcpForwarding), and does it reach that host?"
    )]
    JumpRefused {
        host: String,
        port: u16,
        source: Box<russh::Error>,
    },
    #[error("{host} does not speak SSH with us{hint}")]
    Handshake {
        host: String,
        /// What else is known, such as the last words of a ProxyCommand; may be empty.
        hint: String,
        source: Box<russh::Error>,
    },

    #[error("cannot read the list of host keys {}", path.display())]
    KnownHosts { path: PathBuf, source: io::Error },
    #[error(
        "the host {host} is not known; it shows the key {fingerprint} ({algorithm}){note}\n    \
         compare that with the host's own `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub`, then either connect once with `{ssh}`, \
         or give the key as `ssh.host_key` in orch.yaml:\n    host_key: {key}"
    )]
    UnknownHost {
        host: String,
        algorithm: Box<str>,
        fingerprint: String,
        /// The key in OpenSSH's one-line format, to be recorded once it was compared.
        key: String,
        note: Box<str>,
        /// The command that asks about the key.
        ssh: Box<str>,
    },
    #[error(
        "THE HOST KEY OF {host} HAS CHANGED: it shows {fingerprint} ({algorithm}), expected was {expected}\n    \
         someone may be between this computer and the host. If the host was made anew, compare the key with its own \
         `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub`, then {remedy}"
    )]
    ChangedHostKey {
        host: String,
        algorithm: String,
        fingerprint: String,
        /// The fingerprints that would have been accepted, each with where it is written.
        expected: String,
        remedy: String,
    },
    #[error("{host} shows the key {fingerprint}, which {place} revokes; it must not be used")]
    RevokedHostKey {
        host: String,
        fingerprint: String,
        place: String,
    },

    #[error("no private key {}", path.display())]
    NoIdentity { path: PathBuf, source: io::Error },
    #[error("{host} refuses {user}; tried:{}", list(tried))]
    Refused {
        host: String,
        user: String,
        tried: Vec<String>,
    },
    #[error("{host} wants more of {user} than a key ({methods}), which is not supported")]
    MoreThanAKey {
        host: String,
        user: String,
        methods: String,
    },

    #[error("{what} within {} s", after.as_secs())]
    Silent { what: String, after: Duration },
    #[error("the connection ended {during}: {why}")]
    Ended { during: String, why: String },
    #[error("it does not run commands (asked for `{command}`); is this account restricted?")]
    NotExecuted { command: String },
    #[error("it opens no session for `{command}`; sshd's MaxSessions may be reached")]
    NoSession {
        command: String,
        source: Box<russh::Error>,
    },
    #[error("`{command}` {exit}{tail}")]
    Failed {
        command: String,
        exit: Exit,
        /// The last lines of output, each on a line of its own.
        tail: String,
    },
    #[error("`{command}` printed more than {limit} bytes")]
    TooMuchOutput { command: String, limit: usize },

    #[error(
        "{user} is not root there and there is no sudo; log in as root, or install sudo and allow it to {user}"
    )]
    NoSudo { user: String },
    #[error(
        "sudo asks {user} for a password and none was given; allow it without (`{user} ALL=(ALL) NOPASSWD: ALL` in \
         /etc/sudoers.d/orch), or give the password{said}"
    )]
    SudoPasswordNeeded { user: String, said: String },
    #[error("sudo does not take {user}'s password{said}")]
    SudoPasswordWrong { user: String, said: String },
    #[error("sudo lets {user} run nothing{said}")]
    SudoRefused { user: String, said: String },

    #[error("cannot read {}", path.display())]
    LocalFile { path: PathBuf, source: io::Error },
    #[error(
        "{path} did not arrive whole: its SHA-256 there is {actual}, not {expected}; nothing was replaced"
    )]
    WrongSum {
        path: String,
        expected: String,
        actual: String,
    },
}

fn list(tried: &[String]) -> String {
    if tried.is_empty() {
        return "\n    nothing: no agent has a key and no key file exists; give one as `ssh.key`, or `ssh-add` one".into();
    }
    tried.iter().map(|what| format!("\n    {what}")).collect()
}
