//! How hosts that exist already are reached: what `~/.ssh/config` does not say.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::remote::HostKeyPin;

/// What holds for every host that does not say otherwise.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    pub user: Option<String>,
    pub port: Option<u16>,
    /// A private key file; without one, the agent's keys and the usual files.
    pub key: Option<PathBuf>,
    /// Hosts to go through, as ProxyJump of ssh_config(5): `user@host:port`, several with commas.
    pub jump: Option<String>,
    /// A file in the form of ssh_config(5) instead of the user's own.
    pub config: Option<PathBuf>,
    /// Nodes that are worked on at the same time.
    pub parallel: Option<u16>,
}

/// One host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Name or address, or an alias of `~/.ssh/config`. Left out: the node's address.
    pub host: Option<String>,
    pub user: Option<String>,
    pub port: Option<u16>,
    pub key: Option<PathBuf>,
    pub jump: Option<String>,
    /// The host's own key, `ssh-ed25519 AAAA...` or `SHA256:...`. Left out: what known_hosts says.
    pub host_key: Option<String>,
}

impl Defaults {
    /// What is wrong with them, as far as the file alone can tell.
    pub(super) fn problem(&self) -> Option<String> {
        if self.parallel == Some(0) {
            return Some("ssh.parallel: at least one node at a time".to_owned());
        }
        problem(self.port, &[("user", &self.user), ("jump", &self.jump)])
    }
}

impl Host {
    /// The host with what holds for all of them where it says nothing itself.
    pub fn or(self, defaults: &Defaults) -> Self {
        Self {
            host: self.host,
            user: self.user.or_else(|| defaults.user.clone()),
            port: self.port.or(defaults.port),
            key: self.key.or_else(|| defaults.key.clone()),
            jump: self.jump.or_else(|| defaults.jump.clone()),
            host_key: self.host_key,
        }
    }

    /// What is wrong with it, as far as the file alone can tell.
    pub(super) fn problem(&self) -> Option<String> {
        let pin = self.host_key.as_deref().map(str::parse::<HostKeyPin>);
        if let Some(Err(error)) = pin {
            return Some(format!("ssh.host_key: {error}"));
        }
        let words = [
            ("host", &self.host),
            ("user", &self.user),
            ("jump", &self.jump),
        ];
        problem(self.port, &words)
    }
}

fn problem(port: Option<u16>, words: &[(&str, &Option<String>)]) -> Option<String> {
    if port == Some(0) {
        return Some("ssh.port: 0 is not a port".to_owned());
    }
    words.iter().find_map(|(key, value)| {
        let value = value.as_deref()?;
        // ssh(1) would take what begins with a dash for an option.
        (value.is_empty() || value.starts_with('-') || value.contains(char::is_whitespace))
            .then(|| format!("ssh.{key}: {value:?} cannot be one"))
    })
}
