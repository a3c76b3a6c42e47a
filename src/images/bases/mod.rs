//! Base images: which bytes a Dockerfile's `FROM` stands for, and having them in the engine.
//!
//! An identity is a registry's digest, or the hash of a recipe where the registry cannot be reached and the image is made from
//! the distribution's own packages ([`recipe`]). Either goes into `images.lock` and into the names of what is built on it.
//! Whether a registry can be reached is asked once per run, and only when something has to be built or named anew.

pub mod debian;
pub mod recipe;
pub mod rust_toolchain;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use oci_distribution::Reference;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::engine::{Engine, EngineError};
use super::event::{ImageEvent, Reporter};
use super::hash::Sha256Digest;
use super::registry::http::{Endpoint, HttpRegistry};
use super::registry::meter::Meter;
use super::registry::retry::{Policy, Retrying};
use super::registry::{Registry, RegistryError, credentials};
use crate::images::reference;
use recipe::Recipe;

/// How long a registry may take to answer at all before it counts as out of reach.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// How often a base that another run makes is looked for.
const TURN_INTERVAL: Duration = Duration::from_millis(100);

/// A base image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    /// The reference makes no sense.
    #[error("`{reference}` is not an image reference: {reason}")]
    Reference {
        /// The reference.
        reference: String,
        /// Why not.
        reason: String,
    },
    /// No registry, no recipe.
    #[error(
        "base image {reference} cannot be had: {host} does not answer and orch has no recipe to make it here. Check the \
         network, or load the image into the engine (`docker load`)"
    )]
    Unavailable {
        /// The reference.
        reference: String,
        /// Its registry.
        host: String,
    },
    /// The registry answers and does not have it.
    #[error("base image {reference} does not exist at its registry: check the name and the tag")]
    Missing {
        /// The reference.
        reference: String,
    },
    /// The registry answers with an error.
    #[error("cannot resolve base image {reference}")]
    Registry {
        /// The reference.
        reference: String,
        /// The registry's error.
        #[source]
        source: RegistryError,
    },
    /// The engine cannot be used.
    #[error("cannot prepare base image {reference}")]
    Engine {
        /// The reference.
        reference: String,
        /// The engine's error.
        #[source]
        source: EngineError,
    },
    /// A recipe cannot be followed on this host.
    #[error("cannot make a substitute for {reference}: {reason}")]
    Recipe {
        /// The reference.
        reference: String,
        /// What is missing and how to get it.
        reason: String,
    },
    /// A file of a recipe cannot be written.
    #[error("cannot make a substitute for {reference}: cannot write {path}")]
    Write {
        /// The reference.
        reference: String,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// What a base image is, so that it can be told from any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// Digest of the manifest or index at its registry, `sha256:...`.
    Digest(String),
    /// Hash of the recipe that it is made by.
    Substitute(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => formatter.write_str(digest),
            Self::Substitute(hash) => write!(formatter, "substitute:{hash}"),
        }
    }
}

impl FromStr for Identity {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("substitute:") {
            Some(hash) => Self::Substitute(hash.to_owned()),
            None => Self::Digest(text.to_owned()),
        })
    }
}

/// The base images of a run.
pub struct Bases {
    engine: Engine,
    cache: PathBuf,
    platform: String,
    reporter: Arc<dyn Reporter>,
    meter: Arc<Meter>,
    known: BTreeMap<String, Identity>,
    reachable: BTreeMap<String, bool>,
    ca_file: Option<PathBuf>,
}

impl Bases {
    /// Starts from the lock's `bases`; recipes keep what they download and make below `cache`.
    pub fn new(
        engine: Engine,
        cache: PathBuf,
        platform: String,
        locked: &BTreeMap<String, String>,
        meter: Arc<Meter>,
        reporter: Arc<dyn Reporter>,
    ) -> Self {
        let known = locked
            .iter()
            .map(|(reference, text)| (reference.clone(), parse(text)))
            .collect();
        Self {
            engine,
            cache,
            platform,
            reporter,
            meter,
            known,
            reachable: BTreeMap::new(),
            ca_file: None,
        }
    }

    /// Trusts a further CA.
    #[must_use]
    pub fn trusting(mut self, ca_file: Option<PathBuf>) -> Self {
        self.ca_file = ca_file;
        self
    }

    /// The identities for the lock, of the given references only: what is no longer used is forgotten.
    pub fn locked<'a>(
        &self,
        references: impl IntoIterator<Item = &'a str>,
    ) -> BTreeMap<String, String> {
        let keys = references
            .into_iter()
            .filter_map(|reference| key(reference).ok());
        keys.filter_map(|key| {
            self.known
                .get(&key)
                .map(|identity| (key.clone(), identity.to_string()))
        })
        .collect()
    }

    /// The identity if it is known without asking anybody.
    pub fn known(&self, reference: &str) -> Option<Identity> {
        if let Some((_, digest)) = reference.split_once('@') {
            return Some(Identity::Digest(digest.to_owned()));
        }
        self.known.get(&key(reference).ok()?).cloned()
    }

    /// The identity: the lock's, otherwise the registry's, otherwise that of a recipe.
    pub async fn identity(&mut self, reference: &str) -> Result<Identity, BaseError> {
        match self.known(reference) {
            Some(identity) => Ok(identity),
            None => self.resolve(reference).await,
        }
    }

    /// Forgets what the lock says about a reference and finds out anew.
    pub async fn resolve(&mut self, reference: &str) -> Result<Identity, BaseError> {
        let key = key(reference)?;
        let parsed = parse_reference(reference)?;
        let identity = if self.is_reachable(parsed.registry()).await {
            Identity::Digest(self.digest(reference, &parsed).await?)
        } else {
            let recipe = self.recipe(reference, &parsed)?;
            Identity::Substitute(recipe.identity(reference).await?)
        };
        self.known.insert(key, identity.clone());
        Ok(identity)
    }

    /// Looks whether what the lock says can be used for a build here, and finds something else if it cannot: a substitute gives
    /// way to the real image as soon as that can be pulled. True when the identity changed.
    pub async fn revise(&mut self, reference: &str) -> Result<bool, BaseError> {
        let before = self.identity(reference).await?;
        let parsed = parse_reference(reference)?;
        let reachable = self.is_reachable(parsed.registry()).await;
        let usable = match &before {
            Identity::Digest(_) if reachable => true,
            Identity::Digest(digest) => self.has(reference, &pinned(&parsed, digest)).await?,
            Identity::Substitute(_) if reachable => false,
            Identity::Substitute(hash) => {
                self.has(reference, &substitute_tag(&parsed, hash)).await?
                    || self.recipe(reference, &parsed)?.identity(reference).await? == *hash
            }
        };
        if usable {
            return Ok(false);
        }
        if reference.contains('@') {
            return Err(BaseError::Unavailable {
                reference: reference.to_owned(),
                host: parsed.registry().to_owned(),
            });
        }
        Ok(self.resolve(reference).await? != before)
    }

    /// Is a base the real image, which has other platforms than this host's? What is made here has not.
    pub async fn must_be_real(&mut self, reference: &str, platform: &str) -> Result<(), BaseError> {
        match self.identity(reference).await? {
            Identity::Digest(_) => Ok(()),
            Identity::Substitute(_) => Err(BaseError::Recipe {
                reference: reference.to_owned(),
                reason: format!(
                    "its registry cannot be reached, and orch makes base images for {} only, not for {platform}",
                    super::component::host_platform()
                ),
            }),
        }
    }

    /// The reference to build from: pinned by digest, or the substitute, made now if the engine lacks it.
    pub async fn materialise(
        &mut self,
        reference: &str,
        refresh: bool,
    ) -> Result<String, BaseError> {
        let parsed = parse_reference(reference)?;
        match self.identity(reference).await? {
            Identity::Digest(digest) => Ok(pinned(&parsed, &digest)),
            Identity::Substitute(hash) => {
                let tag = substitute_tag(&parsed, &hash);
                let recipe = self.recipe(reference, &parsed)?;
                self.reporter.event(ImageEvent::Substituted {
                    image: reference.to_owned(),
                    by: recipe.describe(),
                });
                if !refresh && self.has(reference, &tag).await? {
                    return Ok(tag);
                }
                let _turn = self.turn(reference).await?;
                // Whoever had the turn before may have made it.
                if refresh || !self.has(reference, &tag).await? {
                    let context = recipe::Kitchen {
                        engine: &self.engine,
                        cache: &self.cache,
                        platform: &self.platform,
                        reference,
                        reporter: self.reporter.as_ref(),
                        refresh,
                    };
                    recipe.make(&context, &tag, &hash).await?;
                }
                Ok(tag)
            }
        }
    }

    /// Does a registry answer? Asked once per run.
    pub async fn is_reachable(&mut self, registry: &str) -> bool {
        if let Some(known) = self.reachable.get(registry) {
            return *known;
        }
        let answer = match self.client(registry, &[]) {
            Ok(client) => client.answers(PROBE_TIMEOUT).await,
            Err(_) => false,
        };
        self.reachable.insert(registry.to_owned(), answer);
        answer
    }

    /// Waits until nobody else on this host makes a base image: the machines' image and the components' share theirs.
    async fn turn(&self, reference: &str) -> Result<File, BaseError> {
        let path = self.cache.join(".lock");
        let failed = |source| BaseError::Write {
            reference: reference.to_owned(),
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&self.cache).map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        loop {
            // Given back by the kernel when the file is closed, however this process ends.
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK) => tokio::time::sleep(TURN_INTERVAL).await,
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    fn client(
        &self,
        registry: &str,
        repositories: &[String],
    ) -> Result<HttpRegistry, RegistryError> {
        let endpoint = Endpoint::of(registry, false)?.trusting(self.ca_file.clone());
        let credential = credentials::find(registry)?;
        HttpRegistry::new(
            endpoint,
            credential,
            repositories.to_vec(),
            Arc::clone(&self.meter),
        )
    }

    async fn digest(&self, reference: &str, parsed: &Reference) -> Result<String, BaseError> {
        let failed = |source| BaseError::Registry {
            reference: reference.to_owned(),
            source,
        };
        // No scope to push: nobody may write to somebody else's repository.
        let client = self.client(parsed.registry(), &[]).map_err(failed)?;
        let client = Retrying::new(client, Policy::default(), Arc::clone(&self.reporter));
        let tag = parsed.tag().unwrap_or("latest");
        let digest = client
            .head_manifest(parsed.repository(), tag)
            .await
            .map_err(failed)?;
        digest.ok_or_else(|| BaseError::Missing {
            reference: reference.to_owned(),
        })
    }

    fn recipe(&self, reference: &str, parsed: &Reference) -> Result<Recipe, BaseError> {
        Recipe::find(parsed).ok_or_else(|| BaseError::Unavailable {
            reference: reference.to_owned(),
            host: parsed.registry().to_owned(),
        })
    }

    async fn has(&self, reference: &str, tag: &str) -> Result<bool, BaseError> {
        let id = self.engine.image_id(tag).await;
        id.map(|id| id.is_some())
            .map_err(|source| BaseError::Engine {
                reference: reference.to_owned(),
                source,
            })
    }
}

fn parse(text: &str) -> Identity {
    text.parse()
        .unwrap_or_else(|never: std::convert::Infallible| match never {})
}

fn parse_reference(reference: &str) -> Result<Reference, BaseError> {
    reference::parse(reference).map_err(|error| BaseError::Reference {
        reference: reference.to_owned(),
        reason: format!("{error}"),
    })
}

/// How the lock calls a base: in full, `docker.io/library/debian:bookworm-slim`.
pub fn key(reference: &str) -> Result<String, BaseError> {
    Ok(parse_reference(reference)?.whole())
}

fn pinned(reference: &Reference, digest: &str) -> String {
    format!(
        "{}/{}@{digest}",
        reference.registry(),
        reference.repository()
    )
}

/// What a substitute is called in the engine: `orch-base/debian:bookworm-slim-<12 hex>`.
fn substitute_tag(reference: &Reference, hash: &str) -> String {
    let name = reference
        .repository()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let hex = hash.trim_start_matches("sha256:");
    format!(
        "orch-base/{name}:{}-{}",
        reference.tag().unwrap_or("latest"),
        hex.get(..12).unwrap_or(hex)
    )
}

/// The part of a component's input that its bases are: (reference, identity) in order.
pub fn hash_identities(identities: &[(String, String)]) -> Sha256Digest {
    let mut records = super::hash::Records::new("orch.bases", 1);
    for (reference, identity) in identities {
        records.fields(&[reference.as_bytes(), identity.as_bytes()]);
    }
    records.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_tags_say_what_they_are() {
        assert_eq!(
            key("debian:bookworm-slim").unwrap(),
            "docker.io/library/debian:bookworm-slim"
        );
        assert_eq!(
            key("docker.io/library/debian:bookworm-slim").unwrap(),
            key("debian:bookworm-slim").unwrap()
        );
        let reference = parse_reference("rust:1.95-slim-bookworm").unwrap();
        assert_eq!(
            substitute_tag(&reference, "sha256:0123456789abcdef"),
            "orch-base/rust:1.95-slim-bookworm-0123456789ab"
        );
        assert_eq!(
            pinned(&reference, "sha256:00"),
            "docker.io/library/rust@sha256:00"
        );
        assert!(key("Not Valid").is_err());
    }

    #[test]
    fn identities_survive_the_lock() {
        for text in ["sha256:aa", "substitute:sha256:bb"] {
            assert_eq!(parse(text).to_string(), text);
        }
        assert_eq!(
            parse("substitute:sha256:bb"),
            Identity::Substitute("sha256:bb".to_owned())
        );
    }
}
