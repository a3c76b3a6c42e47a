//! From what is wanted to how it is reached, as OpenSSH itself sees it: `ssh -G` reads the configuration.
//!
//! `StrictHostKeyChecking` is not asked: host keys are always verified, and no list of known hosts is ever written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Reason, RemoteError};
use super::hop::Inputs;
use super::jump::{Asked, parse_jump};
use super::ssh_config::{self, Settings};
use super::target::{Hop, Target, Wanted};
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

    /// A path of orch.yaml, which no shell has seen.
    pub(super) fn at_home(&self, path: &Path) -> PathBuf {
        match (path.strip_prefix("~"), &self.home) {
            (Ok(rest), Some(home)) => home.join(rest),
            _ => path.to_owned(),
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
        let inputs = Inputs {
            wanted: self.wanted,
            environment: self.environment,
            asked: &asked,
            settings: &settings,
            is_node,
            ssh: Program::new("ssh")
                .args(self.ssh_arguments(&asked))
                .pasteable(),
        };
        let mut hop = inputs.hop(&mut self.notes)?;
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
            option("-F", self.environment.at_home(file).display().to_string());
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
}

/// What must never reach ssh's command line, a ProxyCommand's shell or a prompt as it is. OpenSSH refuses the same.
fn plausible(what: &'static str, value: &str) -> Result<(), Reason> {
    let why = if value.is_empty() {
        "it is empty"
    } else if value.starts_with('-') {
        "it begins with a dash"
    } else if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "it has white space or control characters in it"
    } else if value.contains([
        '\'', '"', '`', '$', '\\', ';', '&', '<', '>', '|', '(', ')', '{', '}',
    ]) {
        "it has characters in it that a shell would act on"
    } else {
        return Ok(());
    };
    Err(Reason::Invalid {
        what,
        value: value.to_owned(),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_ssh_or_a_shell_would_act_on_are_refused() {
        for host in [
            "",
            "-oProxyCommand=id",
            "a b",
            "a\nb",
            "a;id",
            "$(id)",
            "a`id`",
        ] {
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
}
