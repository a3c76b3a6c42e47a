//! Logging in with a key, in OpenSSH's order: certificates, the agent's keys that the configuration names, the agent's
//! others, key files. No passwords and no questions.

use std::path::Path;
use std::sync::Arc;

use russh::MethodKind;
use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use tokio::net::UnixStream;

use super::error::Reason;
use super::host_keys::fingerprint;
use super::identities::{self, KeyFile, Private};
use super::session::{Session, Verifier};
use super::target::{Hop, Limits};

type Agent = AgentClient<UnixStream>;

/// Logs in, or says what was tried.
pub(super) async fn authenticate(
    session: &mut Session,
    hop: &Hop,
    limits: &Limits,
) -> Result<(), Reason> {
    let mut login = Login {
        handle: &mut session.handle,
        hop,
        agent: None,
        rsa_hash: None,
        tried: Vec::new(),
    };
    let limit = limits.authentication;
    let done = tokio::time::timeout(limit, login.run()).await;
    done.unwrap_or_else(|_| {
        Err(Reason::Silent {
            what: format!("{hop} or the agent did not finish the login (does a key wait to be touched or confirmed?)"),
            after: limit,
        })
    })
}

/// One thing to try.
enum Attempt {
    Agent(PublicKey),
    AgentCertificate(Certificate),
    File(Arc<PrivateKey>),
    FileCertificate(Arc<PrivateKey>, Certificate),
}

struct Login<'a> {
    handle: &'a mut Handle<Verifier>,
    hop: &'a Hop,
    agent: Option<Agent>,
    /// What the server said of RSA, once it was asked.
    rsa_hash: Option<Option<HashAlg>>,
    tried: Vec<String>,
}

impl Login<'_> {
    async fn run(&mut self) -> Result<(), Reason> {
        let files = identities::load(self.hop).await?;
        let held = self.ask_agent().await;
        for (name, attempt) in self.order(files, held) {
            let result = self.attempt(attempt).await;
            match result {
                Ok(AuthResult::Success) => return Ok(()),
                Ok(AuthResult::Failure {
                    remaining_methods,
                    partial_success,
                }) => {
                    let methods: Vec<String> = remaining_methods
                        .iter()
                        .map(<&str>::from)
                        .map(str::to_owned)
                        .collect();
                    if partial_success {
                        return Err(Reason::MoreThanAKey {
                            host: self.hop.to_string(),
                            user: self.hop.user.clone(),
                            methods: methods.join(", "),
                        });
                    }
                    self.tried.push(format!("{name}: refused"));
                    if !methods.is_empty() && !remaining_methods.contains(&MethodKind::PublicKey) {
                        self.tried.push(format!(
                            "(the server takes no keys, but {})",
                            methods.join(", ")
                        ));
                        break;
                    }
                }
                Err(why) => self.tried.push(format!("{name}: {why}")),
            }
            if self.handle.is_closed() {
                let hint = "(the server hung up: too many keys? name the right one as `ssh.key`, or in ssh's \
                            configuration with IdentitiesOnly)";
                self.tried.push(hint.into());
                break;
            }
        }
        Err(Reason::Refused {
            host: self.hop.to_string(),
            user: self.hop.user.clone(),
            tried: std::mem::take(&mut self.tried),
        })
    }

    /// The agent's keys; that there is no agent is nothing to mention, that it does not answer is.
    async fn ask_agent(&mut self) -> Vec<AgentIdentity> {
        let Some(path) = &self.hop.agent else {
            return Vec::new();
        };
        match self.open_agent(path).await {
            Ok((agent, held)) => {
                self.agent = Some(agent);
                held
            }
            Err(error) => {
                self.tried
                    .push(format!("the agent at {}: {error}", path.display()));
                Vec::new()
            }
        }
    }

    async fn open_agent(
        &self,
        path: &Path,
    ) -> Result<(Agent, Vec<AgentIdentity>), russh::keys::Error> {
        let mut agent = AgentClient::connect_uds(path).await?;
        if let Some(binding) = self.handle.agent_session_binding() {
            // Only keys that are bound to hosts need it, and only OpenSSH's agent knows it.
            let _ = agent.bind_session(binding, false).await;
        }
        let held = agent.request_identities().await?;
        Ok((agent, held))
    }

    fn order(&mut self, files: Vec<KeyFile>, held: Vec<AgentIdentity>) -> Vec<(String, Attempt)> {
        let (mut certificates, mut from_agent, mut from_files) =
            (Vec::new(), Vec::new(), Vec::new());
        let mut named = Vec::new();
        for file in files {
            let shown = match &file.public {
                Some(key) => format!("{} {}", file.path.display(), fingerprint(key)),
                None => file.path.display().to_string(),
            };
            let in_agent = held.iter().any(|identity| match identity {
                AgentIdentity::PublicKey { key, .. } => {
                    file.public.as_ref().map(PublicKey::key_data) == Some(key.key_data())
                }
                AgentIdentity::Certificate { .. } => false,
            });
            match (&file.private, file.certificate) {
                (Private::Ready(key), Some(certificate)) => {
                    let attempt = Attempt::FileCertificate(Arc::clone(key), certificate);
                    certificates.push((format!("{shown} with its certificate"), attempt));
                }
                (_, Some(certificate)) if in_agent => {
                    let attempt = Attempt::AgentCertificate(certificate);
                    certificates.push((
                        format!("{shown} with its certificate, in the agent"),
                        attempt,
                    ));
                }
                _ => {}
            }
            match (file.public, file.private) {
                (Some(key), _) if in_agent => {
                    named.push(key.clone());
                    from_agent.push((format!("{shown}, in the agent"), Attempt::Agent(key)));
                }
                (_, Private::Ready(key)) => from_files.push((shown, Attempt::File(key))),
                (_, Private::Elsewhere) => self.tried.push(format!(
                    "{shown}: only its public half is here, and no agent has the other"
                )),
                (_, Private::Unusable(why)) => self.tried.push(format!("{shown}: {why}")),
            }
        }
        if !self.hop.identities_only {
            for identity in held {
                let shown = format!(
                    "the agent's {} {}",
                    identity.comment(),
                    fingerprint(&identity.public_key())
                );
                match identity {
                    AgentIdentity::PublicKey { key, .. }
                        if named.iter().any(|known| known.key_data() == key.key_data()) => {}
                    AgentIdentity::PublicKey { key, .. } => {
                        from_agent.push((shown, Attempt::Agent(key)))
                    }
                    AgentIdentity::Certificate { certificate, .. } => {
                        from_agent.push((shown, Attempt::AgentCertificate(certificate)));
                    }
                }
            }
        }
        certificates
            .into_iter()
            .chain(from_agent)
            .chain(from_files)
            .collect()
    }

    async fn attempt(&mut self, attempt: Attempt) -> Result<AuthResult, String> {
        let user = self.hop.user.clone();
        let hash = match &attempt {
            Attempt::Agent(key) => self.hash_for(&key.algorithm()).await?,
            Attempt::AgentCertificate(certificate) => {
                self.hash_for(&certificate.algorithm()).await?
            }
            Attempt::File(key) | Attempt::FileCertificate(key, _) => {
                self.hash_for(&key.algorithm()).await?
            }
        };
        let no_agent = || "the agent is gone".to_owned();
        match attempt {
            Attempt::File(key) => {
                let key = PrivateKeyWithHashAlg::new(key, hash);
                self.handle
                    .authenticate_publickey(user, key)
                    .await
                    .map_err(|error| error.to_string())
            }
            Attempt::FileCertificate(key, certificate) => {
                let login = self
                    .handle
                    .authenticate_openssh_cert(user, key, certificate);
                login.await.map_err(|error| error.to_string())
            }
            Attempt::Agent(key) => {
                let agent = self.agent.as_mut().ok_or_else(no_agent)?;
                let login = self
                    .handle
                    .authenticate_publickey_with(user, key, hash, agent);
                login
                    .await
                    .map_err(|error| format!("the agent does not sign: {error}"))
            }
            Attempt::AgentCertificate(certificate) => {
                let agent = self.agent.as_mut().ok_or_else(no_agent)?;
                let login =
                    self.handle
                        .authenticate_certificate_with(user, certificate, hash, agent);
                login
                    .await
                    .map_err(|error| format!("the agent does not sign: {error}"))
            }
        }
    }

    /// How to sign with a key: only RSA has a choice, and the server is asked for it once.
    async fn hash_for(&mut self, algorithm: &Algorithm) -> Result<Option<HashAlg>, String> {
        if !matches!(algorithm, Algorithm::Rsa { .. }) {
            return Ok(None);
        }
        let known = match self.rsa_hash {
            Some(known) => known,
            None => {
                let said = self.handle.best_supported_rsa_hash().await;
                let said = said.map_err(|error| error.to_string())?;
                // One that says nothing is old, or small; if it has SHA-2 at all, then this.
                let hash = said.unwrap_or(Some(HashAlg::Sha256));
                *self.rsa_hash.insert(hash)
            }
        };
        match known {
            Some(hash) => Ok(Some(hash)),
            None => Err(
                "the server wants RSA with SHA-1, which is not secure any more; use an ed25519 key"
                    .into(),
            ),
        }
    }
}
