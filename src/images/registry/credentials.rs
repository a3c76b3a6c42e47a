//! Who we are to a registry: Docker's own configuration and credential helpers, or two environment variables for Hub.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use zeroize::Zeroizing;

use super::RegistryError;
use crate::images::destination::DOCKER_HUB;

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
    let names = ["DOCKER_HUB_USERNAME", "DOCKER_HUB_TOKEN"];
    if let (DOCKER_HUB, [Some(username), Some(secret)]) = (registry, names.map(variable)) {
        let username = username.to_string();
        return Ok(Some(Credential::Password { username, secret }));
    }
    let Some(path) = configuration() else {
        return Ok(None);
    };
    in_configuration(&path, registry)
}

/// Where Docker's client keeps its configuration.
fn configuration() -> Option<PathBuf> {
    let named = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder =
        named.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")));
    folder.map(|folder| folder.join("config.json"))
}

fn in_configuration(path: &Path, registry: &str) -> Result<Option<Credential>, RegistryError> {
    let unusable = |reason: String| RegistryError::Credentials {
        registry: registry.to_owned(),
        reason,
    };
    // Only a file that is not there says that nobody logged in. Taken for that, any other would send images to the local registry.
    let bytes = match std::fs::read(path) {
        // Docker's client takes an empty file for an empty configuration.
        Ok(bytes) if bytes.is_empty() => return Ok(None),
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(unusable(format!("cannot read {}: {error}", path.display())));
        }
    };
    let key = if registry == DOCKER_HUB {
        DOCKER_HUB_KEY
    } else {
        registry
    };
    match docker_credential::get_credential_from_reader(bytes.as_slice(), key) {
        Ok(DockerCredential::UsernamePassword(username, secret)) => {
            Ok(Some(Credential::Password {
                username,
                secret: Zeroizing::new(secret),
            }))
        }
        Ok(DockerCredential::IdentityToken(token)) => {
            Ok(Some(Credential::IdentityToken(Zeroizing::new(token))))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        Err(CredentialRetrievalError::ConfigReadError) => Err(unusable(format!(
            "{} is not the JSON that Docker writes",
            path.display()
        ))),
        // A helper's way of saying that it has nothing; its output may not be shown otherwise.
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if stdout.contains("credentials not found")
                || stderr.contains("credentials not found") =>
        {
            Ok(None)
        }
        Err(error) => Err(unusable(reason(&error))),
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
    fn only_a_configuration_that_is_not_there_means_no_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let find = || in_configuration(&path, "ghcr.io").map(|found| found.is_some());
        assert!(!find().unwrap());
        std::fs::write(&path, r#"{"auths": {"ghcr.io": {"auth": "bWU6aHVzaA=="}}}"#).unwrap();
        assert!(find().unwrap());
        for nothing in ["{}", ""] {
            std::fs::write(&path, nothing).unwrap();
            assert!(!find().unwrap());
        }
        std::fs::write(&path, "{\"auths\": ").unwrap();
        let error = find().unwrap_err().to_string();
        assert!(error.contains("config.json is not the JSON"), "{error}");
        // Root may read every file, but not a folder as one.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = find().unwrap_err().to_string();
        assert!(error.contains("cannot read"), "{error}");
    }

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
