//! Who we are to a registry: environment variables, Docker's configuration with its credential helpers, then Podman's.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::RegistryError;
use super::auth::secret;
use crate::images::destination::DOCKER_HUB;

/// The key that Docker files Hub's credentials under.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// What people write for Hub in `credHelpers`.
const DOCKER_HUB_KEYS: [&str; 3] = [DOCKER_HUB_KEY, "index.docker.io", DOCKER_HUB];
/// Variables for the registry that images go to, whichever that is.
const USERNAME: &str = "ORCH_REGISTRY_USERNAME";
const PASSWORD: &str = "ORCH_REGISTRY_PASSWORD";

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
    /// A token that the registry takes as it is.
    RegistryToken(Zeroizing<String>),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => {
                write!(formatter, "Password({username}, <redacted>)")
            }
            Self::IdentityToken(_) => formatter.write_str("IdentityToken(<redacted>)"),
            Self::RegistryToken(_) => formatter.write_str("RegistryToken(<redacted>)"),
        }
    }
}

impl Credential {
    /// The user's name, where there is one.
    pub fn username(&self) -> Option<&str> {
        match self {
            Self::Password { username, .. } => Some(username),
            Self::IdentityToken(_) | Self::RegistryToken(_) => None,
        }
    }
}

/// Looks up who we are to the registry that images go to: `ORCH_REGISTRY_USERNAME` with `ORCH_REGISTRY_PASSWORD`, or as [`find`].
/// Base images come from other registries, which these two must not reach.
pub fn find_for_destination(registry: &str) -> Result<Option<Credential>, RegistryError> {
    match (variable(USERNAME), variable(PASSWORD)) {
        (Some(username), Some(secret)) => Ok(Some(Credential::Password {
            username: username.to_string(),
            secret,
        })),
        (None, None) => find(registry),
        (username, _) => Err(RegistryError::Credentials {
            registry: registry.to_owned(),
            reason: format!(
                "{USERNAME} and {PASSWORD} belong together, and {} is not set",
                if username.is_none() {
                    USERNAME
                } else {
                    PASSWORD
                }
            ),
        }),
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
    for path in configurations() {
        if let Some(credential) = in_configuration(&path, registry)? {
            return Ok(Some(credential));
        }
    }
    Ok(None)
}

/// Where Docker's client keeps its configuration, and where Podman's does (containers-auth.json(5)).
fn configurations() -> Vec<PathBuf> {
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = folder("HOME");
    let below_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let docker = folder("DOCKER_CONFIG")
        .or_else(|| below_home(".docker"))
        .map(|folder| folder.join("config.json"));
    let podman = match folder("REGISTRY_AUTH_FILE") {
        Some(file) => vec![file],
        None => {
            let below = |folder: PathBuf| folder.join("containers/auth.json");
            let runtime = folder("XDG_RUNTIME_DIR").map(below);
            let own = folder("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
            runtime
                .filter(|file| !is_denied(File::open(file).map(drop)))
                .into_iter()
                .chain(own.map(below))
                .collect()
        }
    };
    docker.into_iter().chain(podman).collect()
}

/// After `su` and the like the variable still names another user's folder: what may not be read there is not ours.
fn is_denied(opened: io::Result<()>) -> bool {
    opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// What is read of a configuration here; the rest is [`docker_credential`]'s.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default, rename = "registrytoken", deserialize_with = "secret")]
    registry_token: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "secret")]
    auth: Option<Zeroizing<String>>,
    #[serde(default, rename = "identitytoken", deserialize_with = "secret")]
    identity_token: Option<Zeroizing<String>>,
}

impl Configuration {
    /// The key under which something is known about `registry`.
    fn key<'a>(&self, registry: &'a str) -> &'a str {
        if registry != DOCKER_HUB {
            return registry;
        }
        let mut keys = DOCKER_HUB_KEYS.into_iter();
        let helped = keys.find(|key| self.helpers.contains_key(*key));
        let mut keys = DOCKER_HUB_KEYS.into_iter();
        helped
            .or_else(|| keys.find(|key| self.auths.contains_key(*key)))
            .unwrap_or(DOCKER_HUB_KEY)
    }

    fn helper(&self, key: &str) -> Option<&str> {
        let own = self.helpers.get(key).filter(|name| !name.is_empty());
        own.or(self.store.as_ref()).map(String::as_str)
    }
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
    // The parser's own words may quote what it read.
    let configuration: Configuration = serde_json::from_slice(&bytes).map_err(|error| {
        unusable(format!(
            "{}:{}:{} is not the JSON that Docker writes",
            path.display(),
            error.line(),
            error.column()
        ))
    })?;
    let key = configuration.key(registry);
    let helper = configuration.helper(key);
    let own_helper = configuration.helpers.contains_key(key);
    let mut bytes = bytes;
    if let Some(entry) = configuration.auths.get(key).filter(|_| !own_helper) {
        let given = |field: &Option<Zeroizing<String>>| {
            field.as_ref().is_some_and(|value| !value.is_empty())
        };
        if let Some(token) = entry
            .registry_token
            .as_ref()
            .filter(|token| !token.is_empty())
        {
            return Ok(Some(Credential::RegistryToken(token.clone())));
        }
        // Docker takes an empty entry for none.
        if entry.auth.is_some() && !given(&entry.auth) && !given(&entry.identity_token) {
            bytes = without_entry(&bytes, key).map_err(|error| unusable(error.to_string()))?;
        }
    }
    match docker_credential::get_credential_from_reader(bytes.as_slice(), key) {
        // Some helpers say in this way that they know nothing.
        Ok(DockerCredential::UsernamePassword(username, secret))
            if username.is_empty() && secret.is_empty() =>
        {
            Ok(None)
        }
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
        // A helper's way of saying that it has nothing; its output may not be shown otherwise.
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if stdout.contains("credentials not found")
                || stderr.contains("credentials not found") =>
        {
            Ok(None)
        }
        Err(error) => Err(unusable(reason(&error, helper.unwrap_or_default(), path))),
    }
}

/// The configuration without what it says about one key in `auths`.
fn without_entry(bytes: &[u8], key: &str) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
    if let Some(auths) = value
        .get_mut("auths")
        .and_then(serde_json::Value::as_object_mut)
    {
        auths.remove(key);
    }
    serde_json::to_vec(&value).map(Zeroizing::new)
}

fn variable(name: &str) -> Option<Zeroizing<String>> {
    std::env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .map(Zeroizing::new)
}

/// The error without the helper's output, which may hold the secret.
fn reason(error: &CredentialRetrievalError, helper: &str, path: &Path) -> String {
    let path = path.display();
    match error {
        CredentialRetrievalError::HelperFailure { .. } => {
            format!("the credential helper docker-credential-{helper}, which {path} names, failed")
        }
        CredentialRetrievalError::HelperCommunicationError => {
            format!(
                "the credential helper docker-credential-{helper}, which {path} names, cannot be run: is it in PATH?"
            )
        }
        CredentialRetrievalError::MalformedHelperResponse => {
            format!(
                "the credential helper docker-credential-{helper}, which {path} names, does not answer in JSON"
            )
        }
        CredentialRetrievalError::CredentialDecodingError => {
            format!("an `auth` in {path} is not USER:PASSWORD in base64")
        }
        other => format!("{path}: {other}"),
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
        assert!(
            error.contains("config.json:1:10 is not the JSON"),
            "{error}"
        );
        // Root may read every file, but not a folder as one.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let error = find().unwrap_err().to_string();
        assert!(error.contains("cannot read"), "{error}");
    }

    #[test]
    fn only_what_may_not_be_read_is_somebody_elses() {
        assert!(is_denied(Err(io::ErrorKind::PermissionDenied.into())));
        assert!(!is_denied(Err(io::ErrorKind::NotADirectory.into())));
        assert!(!is_denied(Ok(())));
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
        let text = reason(&error, "pass", Path::new("config.json"));
        assert!(text.contains("docker-credential-pass"), "{text}");
        assert!(!text.contains("hush"), "{text}");
    }

    #[test]
    fn an_empty_entry_is_none_and_a_token_comes_before_a_password() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let find = |text: &str, registry| {
            std::fs::write(&path, text).unwrap();
            format!("{:?}", in_configuration(&path, registry).unwrap())
        };
        assert_eq!(
            find(r#"{"auths": {"ghcr.io": {"auth": ""}}}"#, "ghcr.io"),
            "None"
        );
        let both = r#"{"auths": {"ghcr.io": {"auth": "bWU6aHVzaA==", "registrytoken": "hush"}}}"#;
        assert_eq!(find(both, "ghcr.io"), "Some(RegistryToken(<redacted>))");
        let both = r#"{"auths": {"ghcr.io": {"auth": "bWU6aHVzaA==", "identitytoken": "hush"}}}"#;
        assert_eq!(find(both, "ghcr.io"), "Some(IdentityToken(<redacted>))");
        for key in [
            "https://index.docker.io/v1/",
            "docker.io",
            "index.docker.io",
        ] {
            let text = format!(r#"{{"auths": {{"{key}": {{"auth": "bWU6aHVzaA=="}}}}}}"#);
            let found = find(&text, "docker.io");
            assert_eq!(found, "Some(Password(me, <redacted>))", "{key}");
        }
    }
}
