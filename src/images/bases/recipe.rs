//! The table of images that can be made here when their registry cannot be reached.
//!
//! A recipe's identity is a hash over what it is asked to make, not over what came out, so that two machines name equal sources
//! equally although their mirrors were at different points in time. A new recipe is a variant of [`Recipe`] and an arm in each
//! of its methods. Raise [`VERSION`] whenever what a recipe makes changes.

use std::path::Path;

use oci_distribution::Reference;

use super::rust_toolchain::Toolchain;
use super::{BaseError, debian, rust_toolchain, substitute_tag};
use crate::images::engine::{Engine, EngineError};
use crate::images::event::Reporter;
use crate::images::hash::Records;

/// Version of all recipes.
const VERSION: &[u8] = b"1";

/// Debian releases that debootstrap makes and for which official images exist under these tags.
const DEBIAN_SUITES: [&str; 3] = ["bullseye", "bookworm", "trixie"];

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// `debian:<suite>` and `debian:<suite>-slim`.
    Debian {
        /// The release's code name.
        suite: String,
        /// Without documentation and translations.
        slim: bool,
    },
    /// `rust:<version>-slim-<suite>` and `rust:<version>-<suite>`.
    Rust {
        /// As in the tag: `1`, `1.95` or `1.95.0`.
        version: String,
        /// The Debian below it.
        suite: String,
    },
}

/// What a recipe works with.
pub struct Kitchen<'a> {
    /// The engine that gets the image.
    pub engine: &'a Engine,
    /// Where archives are kept.
    pub cache: &'a Path,
    /// Platform of the image.
    pub platform: &'a str,
    /// The image asked for, for messages.
    pub reference: &'a str,
    /// Who is told about progress.
    pub reporter: &'a dyn Reporter,
    /// Ignore what was kept.
    pub refresh: bool,
}

impl Kitchen<'_> {
    /// An error that names the image.
    pub(super) fn cannot(&self, reason: impl Into<String>) -> BaseError {
        BaseError::Recipe {
            reference: self.reference.to_owned(),
            reason: reason.into(),
        }
    }

    /// An engine's or another program's error.
    pub(super) fn engine_failed(&self, source: EngineError) -> BaseError {
        BaseError::Engine {
            reference: self.reference.to_owned(),
            source,
        }
    }

    /// A file cannot be written.
    pub(super) fn write_failed(&self, path: &Path, source: std::io::Error) -> BaseError {
        BaseError::Write {
            reference: self.reference.to_owned(),
            path: path.to_owned(),
            source,
        }
    }

    /// The processor's name in Debian's words, which are Docker's.
    pub(super) fn architecture(&self) -> &str {
        self.platform.split('/').nth(1).unwrap_or("amd64")
    }
}

impl Recipe {
    /// The recipe for a reference to one of Docker's official images.
    pub fn find(reference: &Reference) -> Option<Self> {
        if reference.registry() != "docker.io" || reference.digest().is_some() {
            return None;
        }
        let tag = reference.tag()?;
        let suite = |name: &str| DEBIAN_SUITES.contains(&name).then(|| name.to_owned());
        match reference.repository() {
            "library/debian" => {
                let name = tag.strip_suffix("-slim");
                Some(Self::Debian {
                    suite: suite(name.unwrap_or(tag))?,
                    slim: name.is_some(),
                })
            }
            "library/rust" => {
                let (version, rest) = tag.split_once('-')?;
                let numbers = version
                    .split('.')
                    .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
                let suite = suite(rest.strip_prefix("slim-").unwrap_or(rest))?;
                numbers.then(|| Self::Rust {
                    version: version.to_owned(),
                    suite,
                })
            }
            _ => None,
        }
    }

    /// What the user is told.
    pub fn describe(&self) -> String {
        match self {
            Self::Debian { suite, .. } => {
                format!("an image of Debian {suite} made with debootstrap")
            }
            Self::Rust { suite, .. } => {
                format!("an image of Debian {suite} with this host's Rust toolchain")
            }
        }
    }

    /// The recipe's hash, `sha256:...`.
    pub async fn identity(&self, reference: &str) -> Result<String, BaseError> {
        let mut records = Records::new("orch.recipe", 1);
        match self {
            Self::Debian { suite, slim } => {
                records.fields(&[
                    VERSION,
                    b"debian",
                    suite.as_bytes(),
                    if *slim { b"slim" } else { b"full" },
                ]);
            }
            Self::Rust { version, suite } => {
                let toolchain = Toolchain::find(version, reference).await?;
                records.fields(&[
                    VERSION,
                    b"rust",
                    suite.as_bytes(),
                    toolchain.version.as_bytes(),
                ]);
            }
        }
        Ok(records.finish().to_string())
    }

    /// Makes the image and tags it.
    pub async fn make(
        &self,
        kitchen: &Kitchen<'_>,
        tag: &str,
        identity: &str,
    ) -> Result<(), BaseError> {
        match self {
            Self::Debian { suite, slim } => {
                debian::make(kitchen, suite, *slim, tag, identity).await
            }
            Self::Rust { version, suite } => {
                let base = format!("docker.io/library/debian:{suite}-slim");
                let parsed = super::parse_reference(&base)?;
                let below = Self::Debian {
                    suite: suite.clone(),
                    slim: true,
                };
                let identity = below.identity(&base).await?;
                let base = substitute_tag(&parsed, &identity);
                let present = kitchen
                    .engine
                    .image_id(&base)
                    .await
                    .map_err(|error| kitchen.engine_failed(error))?;
                if present.is_none() {
                    debian::make(kitchen, suite, true, &base, &identity).await?;
                }
                let toolchain = Toolchain::find(version, kitchen.reference).await?;
                rust_toolchain::make(kitchen, &toolchain, &base, tag).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(reference: &str) -> Option<Recipe> {
        Recipe::find(&reference.parse().unwrap())
    }

    #[test]
    fn only_what_can_be_made_has_a_recipe() {
        let debian = |slim| {
            Some(Recipe::Debian {
                suite: "bookworm".to_owned(),
                slim,
            })
        };
        assert_eq!(find("debian:bookworm-slim"), debian(true));
        assert_eq!(find("docker.io/library/debian:bookworm"), debian(false));
        let rust = |version: &str| {
            Some(Recipe::Rust {
                version: version.to_owned(),
                suite: "bookworm".to_owned(),
            })
        };
        assert_eq!(find("rust:1.95-slim-bookworm"), rust("1.95"));
        assert_eq!(find("rust:1-bookworm"), rust("1"));
        for other in [
            "debian:latest",
            "debian:sid",
            "alpine:3",
            "rust:1.95-alpine",
            "ghcr.io/x/debian:bookworm",
        ] {
            assert_eq!(find(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn the_identity_depends_on_what_is_asked_for_alone() {
        let identity = |slim| async move {
            Recipe::Debian {
                suite: "bookworm".to_owned(),
                slim,
            }
            .identity("x")
            .await
            .unwrap()
        };
        assert_eq!(identity(true).await, identity(true).await);
        assert_ne!(identity(true).await, identity(false).await);
    }
}
