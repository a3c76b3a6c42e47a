//! From what is wanted to how it is reached, as OpenSSH itself sees it: `ssh -G` reads the configuration.
//!
//! `StrictHostKeyChecking` is not asked: host keys are always verified, and no list of known hosts is ever written.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Reason, RemoteError};
use super::ssh_config::{self, Settings, Tokens};
use super::target::{Hop, Identity, Target, Wanted};
use crate::process::{Program, find_program};

/// For `ssh -G`.
const PATIENCE: Duration = Duration::from_secs(60);
/// More jump hosts than this are a mistake.
const MAX_HOPS: usize = 8;
/// What OpenSSH tries when its configuration names no key.
const DEFAULT_IDENTITIES: [&str; 3] = ["id_rsa", "id_ecdsa", "id_ed25519"];

/// What of this process has a say in the matter. Tests have another one.
#[derive(Debug, Clone)]
pub struct Environment {
    pub home: Option<PathBuf>,
    /// The user on this computer.
    pub user: String,
    /// The agent's socket.
    pub agent: Option<PathBuf>,
    /// OpenSSH's client.
    pub ssh: Option<PathBuf>,
}

impl Environment {
    pub fn of_this_process() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let user = set("USER").or_else(|| set("LOGNAME"));
        Self {
            home: std::env::home_dir(),
            user: user.map_or_else(|| "root".into(), |user| user.to_string_lossy().into_owned()),
            agent: set("SSH_AUTH_SOCK").map(PathBuf::from),
            ssh: find_program("ssh"),
        }
    }
}

/// Finds out how a node is reached. Dials nothing.
pub async fn resolve(wanted: &Wanted) -> Result<Target, RemoteError> {
    resolve_in(wanted, &Environment::of_this_process()).await
}

/// [`resolve`] with an environment of the caller's choice.
pub async fn resolve_in(wanted: &Wanted, environment: &Environment) -> Result<Target, RemoteError> {
    let mut resolver = Resolver {
        wanted,
        environment,
        notes: Vec::new(),
    };
    let asked = Asked {
        host: wanted.host.clone(),
        user: wanted.user.clone(),
        port: wanted.port,
        jump: wanted.jump.clone(),
    };
    let hops = resolver.hops(asked, true, &mut Vec::new()).await;
    Ok(Target {
        name: wanted.name.clone(),
        hops: hops.map_err(|reason| RemoteError::new(&wanted.name, reason))?,
        notes: resolver.notes,
    })
}

/// One host as the command line of ssh would name it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    host: String,
    user: Option<String>,
    port: Option<u16>,
    jump: Option<String>,
}

struct Resolver<'a> {
    wanted: &'a Wanted,
    environment: &'a Environment,
    notes: Vec<String>,
}

impl Resolver<'_> {
    /// The host and, before it, what it is reached through.
    async fn hops(
        &mut self,
        asked: Asked,
        is_node: bool,
        seen: &mut Vec<String>,
    ) -> Result<Vec<Hop>, Reason> {
        plausible("host", &asked.host)?;
        if let Some(user) = &asked.user {
            plausible("user", user)?;
        }
        let settings = self.settings(&asked, is_node).await?;
        let mut hop = self.hop(&asked, &settings, is_node)?;
        seen.push(hop.to_string());
        if seen.len() > MAX_HOPS {
            return Err(Reason::JumpLoop {
                chain: seen.join(", "),
            });
        }
        let Some(jump) = settings.jump else {
            return Ok(vec![hop]);
        };
        hop.proxy_command = None;
        // The last of the list is the nearest to the host; those before it are what it is reached through.
        let (before, last) = match jump.rsplit_once(',') {
            Some((before, last)) => (Some(before.to_owned()), last),
            None => (None, jump.as_str()),
        };
        let mut via = parse_jump(last)?;
        via.jump = before;
        let mut hops = Box::pin(self.hops(via, false, seen)).await?;
        hops.push(hop);
        Ok(hops)
    }

    async fn settings(&mut self, asked: &Asked, is_node: bool) -> Result<Settings, Reason> {
        let Some(ssh) = &self.environment.ssh else {
            if let Some(file) = &self.wanted.ssh_config {
                return Err(Reason::NoSsh {
                    file: file.display().to_string(),
                });
            }
            let note = "there is no program `ssh`: its configuration is not used";
            if !self.notes.iter().any(|known| known == note) {
                self.notes.push(note.to_owned());
            }
            return Ok(self.defaults(asked, is_node));
        };
        let arguments = self.ssh_arguments(asked);
        let program = Program::new(ssh).args(["-G"]).args(arguments);
        // `Match exec` runs whatever it likes, and names may be looked up.
        let printed = tokio::time::timeout(PATIENCE, program.output()).await;
        let printed = printed.map_err(|_| Reason::Silent {
            what: format!("`{}` did not answer", program.pasteable()),
            after: PATIENCE,
        })?;
        Ok(ssh_config::parse(&printed.map_err(Reason::Resolve)?))
    }

    /// The host as ssh's command line has it.
    fn ssh_arguments(&self, asked: &Asked) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut option = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        if let Some(file) = &self.wanted.ssh_config {
            option("-F", file.display().to_string());
        }
        if let Some(port) = asked.port {
            option("-p", port.to_string());
        }
        if let Some(user) = &asked.user {
            option("-l", user.clone());
        }
        if let Some(jump) = &asked.jump {
            option("-J", jump.clone());
        }
        arguments.extend(["--".into(), asked.host.clone()]);
        arguments
    }

    /// What ssh does without any configuration.
    fn defaults(&self, asked: &Asked, is_node: bool) -> Settings {
        let identities = DEFAULT_IDENTITIES.map(|name| format!("~/.ssh/{name}"));
        Settings {
            user: asked.user.clone(),
            port: asked.port,
            identity_files: match &self.wanted.identity {
                Some(_) if is_node => Vec::new(),
                _ => identities.to_vec(),
            },
            known_hosts: vec![
                "~/.ssh/known_hosts".into(),
                "/etc/ssh/ssh_known_hosts".into(),
            ],
            jump: asked.jump.clone().filter(|jump| jump != "none"),
            ..Settings::default()
        }
    }

    fn hop(&mut self, asked: &Asked, settings: &Settings, is_node: bool) -> Result<Hop, Reason> {
        let environment = self.environment;
        let host = settings.host.clone().unwrap_or_else(|| asked.host.clone());
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let user = settings.user.clone();
        let user = user.unwrap_or_else(|| environment.user.clone());
        let port = settings.port.unwrap_or(22);
        let tokens = Tokens {
            home: environment.home.as_deref(),
            alias: &asked.host,
            host: &host,
            port,
            user: &user,
            local_user: &environment.user,
            host_key_alias: settings.host_key_alias.as_deref(),
            variable: |name| std::env::var(name).ok(),
        };
        if settings.proxy_passes_descriptor && settings.proxy_command.is_some() {
            return Err(Reason::Unsupported {
                what: "ProxyUseFdpass".into(),
                instead: "; a ProxyCommand without it works",
            });
        }
        for (value, name) in [
            (&settings.bind_interface, "BindInterface"),
            (&settings.known_hosts_command, "KnownHostsCommand"),
        ] {
            if value.is_some() {
                self.notes.push(format!(
                    "{name} in ssh's configuration is not used for {}",
                    asked.host
                ));
            }
        }
        let mut paths = |texts: &[String]| -> Vec<PathBuf> {
            let expanded = texts.iter().filter_map(|text| match tokens.path(text) {
                Ok(path) => Some(path),
                Err(unknown) => {
                    self.notes.push(format!(
                        "{text} in ssh's configuration is not used: {unknown} has no value here"
                    ));
                    None
                }
            });
            expanded.collect()
        };
        let mut identities = Vec::new();
        if let Some(path) = self.wanted.identity.as_ref().filter(|_| is_node) {
            let path = path.clone();
            identities.push(Identity { path, wanted: true });
        }
        // Beside a key that was named, the defaults that nobody asked for would only use up the server's patience.
        let named = !identities.is_empty();
        let others = paths(&settings.identity_files);
        identities.extend(others.into_iter().filter(|_| !named).map(|path| {
            let wanted = false;
            Identity { path, wanted }
        }));
        let mut known_hosts = paths(&settings.known_hosts);
        known_hosts.extend(self.wanted.known_hosts.clone());
        let certificates = paths(&settings.certificate_files);
        let revoked_host_keys = settings
            .revoked_host_keys
            .iter()
            .cloned()
            .collect::<Vec<_>>();
        let revoked_host_keys = paths(&revoked_host_keys).pop();
        let agent = match settings.identity_agent.as_deref() {
            Some("none") => None,
            None | Some("SSH_AUTH_SOCK") => environment.agent.clone(),
            Some(text) => match text.strip_prefix('$') {
                Some(name) if !name.starts_with('{') => std::env::var_os(name).map(PathBuf::from),
                _ => paths(&[text.to_owned()]).pop(),
            },
        };
        let proxy_command = settings
            .proxy_command
            .as_deref()
            .map(|command| tokens.expand(command));
        let proxy_command = proxy_command
            .transpose()
            .map_err(|token| Reason::Unsupported {
                what: format!("the placeholder {token} in ProxyCommand"),
                instead: "",
            })?;
        let bind_address = match &settings.bind_address {
            None => None,
            Some(text) => Some(text.parse::<IpAddr>().map_err(|_| Reason::Invalid {
                what: "BindAddress",
                value: text.clone(),
                why: "it is no IP address",
            })?),
        };
        Ok(Hop {
            ssh: Program::new("ssh")
                .args(self.ssh_arguments(asked))
                .pasteable(),
            pin: self.wanted.host_key.clone().filter(|_| is_node),
            identities_only: settings.identities_only || named,
            identities,
            certificates,
            agent,
            known_hosts,
            revoked_host_keys,
            host_key_alias: settings.host_key_alias.clone(),
            proxy_command,
            connect_timeout: settings.connect_timeout,
            alive_interval: settings.alive_interval,
            alive_count: settings.alive_count,
            family: settings.family,
            bind_address,
            host,
            port,
            user,
        })
    }
}

/// What must never reach ssh's command line or a prompt as it is.
fn plausible(what: &'static str, value: &str) -> Result<(), Reason> {
    let why = if value.is_empty() {
        "it is empty"
    } else if value.starts_with('-') {
        "it begins with a dash"
    } else if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "it has white space or control characters in it"
    } else {
        return Ok(());
    };
    Err(Reason::Invalid {
        what,
        value: value.to_owned(),
        why,
    })
}

/// `[user@]host[:port]`, also as `ssh://`, the host also in brackets.
fn parse_jump(text: &str) -> Result<Asked, Reason> {
    let invalid = |why| Reason::Invalid {
        what: "the jump host",
        value: text.to_owned(),
        why,
    };
    let rest = text.trim();
    let rest = rest.strip_prefix("ssh://").unwrap_or(rest);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user.to_owned()), rest),
        None => (None, rest),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, behind) = bracketed
                .split_once(']')
                .ok_or(invalid("a bracket is missing"))?;
            match behind.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if behind.is_empty() => (host, None),
                None => return Err(invalid("there is something behind the bracket")),
            }
        }
        // More than one colon is an IPv6 address without a port.
        None if rest.matches(':').count() > 1 => (rest, None),
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = match port {
        None => None,
        Some(text) => match text.parse() {
            Ok(0) | Err(_) => return Err(invalid("its port is no number between 1 and 65535")),
            Ok(port) => Some(port),
        },
    };
    Ok(Asked {
        host: host.to_owned(),
        user,
        port,
        jump: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn jump(text: &str) -> Option<(Option<String>, String, Option<u16>)> {
        let asked = parse_jump(text).ok()?;
        Some((asked.user, asked.host, asked.port))
    }

    #[test]
    fn jump_hosts() {
        let named = |user: Option<&str>, host: &str, port| {
            Some((user.map(str::to_owned), host.to_owned(), port))
        };
        assert_eq!(jump("gate"), named(None, "gate", None));
        assert_eq!(jump("me@gate:2222"), named(Some("me"), "gate", Some(2222)));
        assert_eq!(jump("ssh://me@gate:1"), named(Some("me"), "gate", Some(1)));
        assert_eq!(
            jump("me@[fd00::1]:22"),
            named(Some("me"), "fd00::1", Some(22))
        );
        assert_eq!(jump("fd00::1"), named(None, "fd00::1", None));
        for wrong in [
            "gate:",
            "gate:0",
            "gate:x",
            "[fd00::1",
            "[fd00::1]22",
            "gate:70000",
        ] {
            assert_eq!(jump(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn names_that_ssh_would_read_as_options_are_refused() {
        for host in ["", "-oProxyCommand=id", "a b", "a\nb"] {
            let wanted = Wanted {
                name: "n".into(),
                host: host.into(),
                ..Wanted::default()
            };
            let error = resolve(&wanted).await.unwrap_err();
            assert!(matches!(*error.reason, Reason::Invalid { .. }), "{error}");
        }
    }

    fn without_ssh() -> Environment {
        Environment {
            home: Some("/home/me".into()),
            user: "me".into(),
            agent: None,
            ssh: None,
        }
    }

    #[tokio::test]
    async fn without_ssh_the_defaults_hold_and_the_user_is_told() {
        let mut wanted = Wanted {
            name: "n".into(),
            host: "10.0.0.7".into(),
            jump: Some("a@one:1,two".into()),
            ..Wanted::default()
        };
        let target = resolve_in(&wanted, &without_ssh()).await.unwrap();
        assert_eq!(target.address(), "me@10.0.0.7:22");
        let hops: Vec<String> = target.hops.iter().map(Hop::to_string).collect();
        assert_eq!(hops, ["a@one:1", "me@two:22", "me@10.0.0.7:22"]);
        assert_eq!(target.notes.len(), 1, "{:?}", target.notes);
        wanted.ssh_config = Some("/vagrant".into());
        let error = resolve_in(&wanted, &without_ssh()).await.unwrap_err();
        assert!(matches!(*error.reason, Reason::NoSsh { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn any_jump_host_is_read_or_refused(text in "[a@:\\[\\]/0-9,.-]{0,30}") {
            let _ = parse_jump(&text);
        }
    }
}
