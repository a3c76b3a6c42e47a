//! Who we are to a registry: Docker's own configuration and credential helpers, or two environment variables for Hub.

use std::fmt;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use zeroize::Zeroizing;

use super::RegistryError;

/// The key that Docker files Hub's credentials under.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A name and a secret, or a secret alone. Never printed, wiped when dropped.
#[derive(Clone)]
pub enum Credential {
    /// User name and password or access token.
    Password {
        /// The user.
        username: String,
        /// The password or access token.
        secret: Zeroizing<String>,
    },
    /// An OAuth2 refresh token, as `docker login` keeps for some registries.
    IdentityToken(Zeroizing<String>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => {
                write!(formatter, "Password({username}, <redacted>)")
            }
            Self::IdentityToken(_) => formatter.write_str("IdentityToken(<redacted>)"),
        }
    }
}

impl Credential {
    /// The user's name, where there is one.
    pub fn username(&self) -> Option<&str> {
        match self {
            Self::Password { username, .. } => Some(username),
            Self::IdentityToken(_) => None,
        }
    }
}

/// Looks up what is known about `registry` (`docker.io`, `ghcr.io`, `127.0.0.1:5000`).
///
/// For `docker.io`, `DOCKER_HUB_USERNAME` with `DOCKER_HUB_TOKEN` comes first. No credentials is not an error; credentials
/// that cannot be used are.
pub fn find(registry: &str) -> Result<Option<Credential>, RegistryError> {
    let hub = registry == "docker.io";
    let names = ["DOCKER_HUB_USERNAME", "DOCKER_HUB_TOKEN"];
    if let (true, [Some(username), Some(secret)]) = (hub, names.map(variable)) {
        let username = username.to_string();
        return Ok(Some(Credential::Password { username, secret }));
    }
    match docker_credential::get_credential(if hub { DOCKER_HUB_KEY } else { registry }) {
        Ok(DockerCredential::UsernamePassword(username, secret)) => {
            Ok(Some(Credential::Password {
                username,
                secret: Zeroizing::new(secret),
            }))
        }
        Ok(DockerCredential::IdentityToken(token)) => {
            Ok(Some(Credential::IdentityToken(Zeroizing::new(token))))
        }
        Err(
            CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::ConfigReadError,
        ) => Ok(None),
        // A helper's way of saying that it has nothing; its output may not be shown otherwise.
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if stdout.contains("credentials not found")
                || stderr.contains("credentials not found") =>
        {
            Ok(None)
        }
        Err(error) => Err(RegistryError::Credentials {
            registry: registry.to_owned(),
            reason: reason(&error),
        }),
    }
}

fn variable(name: &str) -> Option<Zeroizing<String>> {
    std::env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .map(Zeroizing::new)
}

/// The error without the helper's output, which may hold the secret.
fn reason(error: &CredentialRetrievalError) -> String {
    match error {
        CredentialRetrievalError::HelperFailure { helper, .. } => {
            format!("the credential helper docker-credential-{helper} failed")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_in_debug_output_nor_in_a_helper_error() {
        let credential = Credential::Password {
            username: "me".to_owned(),
            secret: Zeroizing::new("hush".to_owned()),
        };
        assert!(!format!("{credential:?}").contains("hush"));
        let error = CredentialRetrievalError::HelperFailure {
            helper: "pass".to_owned(),
            stdout: "hush".to_owned(),
            stderr: "hush".to_owned(),
        };
        assert!(!reason(&error).contains("hush"));
    }
}
