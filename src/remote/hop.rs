//! From what ssh's configuration says of a host to what is done about it.
//!
//! Boundary: values in, a [`Hop`] out; runs nothing and dials nothing. What is passed over is noted, unless it would let in
//! whom the configuration keeps out.

use std::net::IpAddr;
use std::path::PathBuf;

use super::error::Reason;
use super::jump::Asked;
use super::resolve::Environment;
use super::ssh_config::{Settings, Tokens};
use super::target::{Hop, Identity, Wanted};

pub(super) struct Inputs<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) environment: &'a Environment,
    pub(super) asked: &'a Asked,
    pub(super) settings: &'a Settings,
    /// It is the node itself, not a jump host.
    pub(super) is_node: bool,
    /// The command that goes there, to be pasted.
    pub(super) ssh: String,
}

impl Inputs<'_> {
    pub(super) fn hop(self, notes: &mut Vec<String>) -> Result<Hop, Reason> {
        let (settings, environment) = (self.settings, self.environment);
        let host = settings.host.as_ref().unwrap_or(&self.asked.host);
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let user = settings.user.as_ref().unwrap_or(&environment.user).clone();
        let port = settings.port.unwrap_or(22);
        let tokens = Tokens {
            home: environment.home.as_deref(),
            alias: &self.asked.host,
            host: &host,
            port,
            user: &user,
            local_user: &environment.user,
            host_key_alias: settings.host_key_alias.as_deref(),
            variable: |name| std::env::var(name).ok(),
        };
        self.note_unused(notes);
        let named = self.wanted.identity.as_ref().filter(|_| self.is_node);
        // Beside a key that was named, the defaults that nobody asked for would only use up the server's patience.
        let identities = match named {
            Some(path) => vec![Identity {
                path: environment.at_home(path),
                wanted: true,
            }],
            None => {
                let paths = expand(&tokens, &settings.identity_files, notes);
                let optional = |path| Identity {
                    path,
                    wanted: false,
                };
                paths.into_iter().map(optional).collect()
            }
        };
        let mut known_hosts = expand(&tokens, &settings.known_hosts, notes);
        known_hosts.extend(
            self.wanted
                .known_hosts
                .as_ref()
                .map(|path| environment.at_home(path)),
        );
        Ok(Hop {
            pin: self.wanted.host_key.clone().filter(|_| self.is_node),
            identities_only: settings.identities_only || named.is_some(),
            identities,
            certificates: expand(&tokens, &settings.certificate_files, notes),
            agent: self.agent(&tokens, notes),
            known_hosts,
            revoked_host_keys: revoked_host_keys(&tokens, settings)?,
            host_key_alias: settings.host_key_alias.clone(),
            proxy_command: proxy_command(&tokens, settings)?,
            connect_timeout: settings.connect_timeout,
            alive_interval: settings.alive_interval,
            alive_count: settings.alive_count,
            family: settings.family,
            bind_address: bind_address(settings)?,
            ssh: self.ssh,
            host,
            port,
            user,
        })
    }

    fn note_unused(&self, notes: &mut Vec<String>) {
        for (value, name) in [
            (&self.settings.bind_interface, "BindInterface"),
            (&self.settings.known_hosts_command, "KnownHostsCommand"),
        ] {
            if value.is_some() {
                notes.push(format!(
                    "{name} in ssh's configuration is not used for {}",
                    self.asked.host
                ));
            }
        }
    }

    fn agent(&self, tokens: &Tokens<'_>, notes: &mut Vec<String>) -> Option<PathBuf> {
        match self.settings.identity_agent.as_deref() {
            Some("none") => None,
            None | Some("SSH_AUTH_SOCK") => self.environment.agent.clone(),
            Some(text) => match text.strip_prefix('$') {
                Some(name) if !name.starts_with('{') => std::env::var_os(name).map(PathBuf::from),
                _ => expand(tokens, &[text.to_owned()], notes).pop(),
            },
        }
    }
}

fn expand(tokens: &Tokens<'_>, texts: &[String], notes: &mut Vec<String>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for text in texts {
        match tokens.path(text) {
            Ok(path) => paths.push(path),
            Err(unknown) => notes.push(format!(
                "{text} in ssh's configuration is not used: {unknown} has no value here"
            )),
        }
    }
    paths
}

fn revoked_host_keys(tokens: &Tokens<'_>, settings: &Settings) -> Result<Option<PathBuf>, Reason> {
    let path = settings
        .revoked_host_keys
        .as_deref()
        .map(|text| tokens.path(text));
    path.transpose().map_err(|token| Reason::Unsupported {
        what: format!("the placeholder {token} in RevokedHostKeys"),
        instead: "",
    })
}

fn proxy_command(tokens: &Tokens<'_>, settings: &Settings) -> Result<Option<String>, Reason> {
    let Some(command) = &settings.proxy_command else {
        return Ok(None);
    };
    if settings.proxy_passes_descriptor {
        return Err(Reason::Unsupported {
            what: "ProxyUseFdpass".into(),
            instead: "; a ProxyCommand without it works",
        });
    }
    let expanded = tokens.expand(command);
    expanded.map(Some).map_err(|token| Reason::Unsupported {
        what: format!("the placeholder {token} in ProxyCommand"),
        instead: "",
    })
}

fn bind_address(settings: &Settings) -> Result<Option<IpAddr>, Reason> {
    let Some(text) = &settings.bind_address else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| Reason::Invalid {
        what: "BindAddress",
        value: text.clone(),
        why: "it is no IP address",
    })
}
