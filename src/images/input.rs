//! What a component's image is made from, and the name that follows from it.
//!
//! Reading (context, Dockerfile) and naming (with the identities of the bases) are apart, because a base may turn out to be
//! another one while the sources stay what they are.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::bases::{self, Identity};
use super::component::Component;
use super::context::fingerprints::{self, short};
use super::context::stat_cache::StatCache;
use super::context::threads::Threads;
use super::context::{Contents, Context, ContextError, SOURCE_DATE_EPOCH};
use super::difference::Details;
use super::dockerfile::{Dockerfile, DockerfileError};
use super::hash::{Records, Sha256Digest, tag};
use super::layers::COMPRESSION;

/// Version of the input record. Raising it renames every image.
const VERSION: u32 = 1;

/// The sources cannot be named.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The context.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The Dockerfile.
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    /// Components that need each other.
    #[error(
        "the components {names} are each built from the next: one of them has to start from something else"
    )]
    Cycle {
        /// Their names, in order.
        names: String,
    },
    /// A component below lacks a platform of one above.
    #[error(
        "{component} is made for {platform} and is built on {below}, which is not: add {platform} to the `platforms` of {below} \
         under `images.components` in orch.yaml"
    )]
    Platform {
        /// The one above.
        component: String,
        /// The one below.
        below: String,
        /// What it lacks.
        platform: String,
    },
    /// A base without identity.
    #[error(transparent)]
    UnknownBase(UnknownBase),
    /// A reader stopped.
    #[error("reading the build contexts was interrupted")]
    Interrupted,
}

/// A component is built on an image that has no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{component}: nothing is known about its base image {reference}: run `orch images push` once with a network"
)]
pub struct UnknownBase {
    /// The component.
    pub component: String,
    /// The base.
    pub reference: String,
}

/// A component's sources, read and hashed.
#[derive(Debug, Clone)]
pub struct Source {
    /// The component.
    pub component: Component,
    /// Its listing.
    pub context: Context,
    /// Hashes of the listing and all contents.
    pub contents: Contents,
    /// Its Dockerfile, as the first platform reads it.
    pub dockerfile: Dockerfile,
    /// Everything that it is built from on any of its platforms, in order of first use.
    pub references: Vec<String>,
    /// Components that it is built from.
    pub dependencies: BTreeSet<String>,
    /// Images that it is built from and nobody here builds.
    pub bases: Vec<String>,
}

/// A component's name and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The hash of everything.
    pub hash: Sha256Digest,
    /// `in-` and 12 digits of it.
    pub tag: String,
    /// The hash of each part: `context`, `dockerfile`, `arguments`, `bases`, `settings`.
    pub parts: BTreeMap<String, String>,
    /// What the parts consist of, without the files.
    pub details: Details,
    /// The files.
    pub contents: Contents,
}

impl Input {
    /// What the lock keeps, so that a later run can say what changed.
    pub fn details_for_lock(&self) -> Details {
        Details {
            files: self.contents.fingerprints(fingerprints::LINES),
            ..self.details.clone()
        }
    }
}

/// Reads all components, in parallel.
pub async fn read(components: &[Component]) -> Result<Vec<Source>, InputError> {
    read_with(components, None).await
}

/// Reads all components, in parallel, except for files that `cache` knows.
pub async fn read_with(
    components: &[Component],
    cache: Option<&StatCache>,
) -> Result<Vec<Source>, InputError> {
    let names: BTreeSet<String> = components
        .iter()
        .map(|component| component.name.clone())
        .collect();
    let tasks = components.iter().map(|component| {
        let (component, names, cache) = (component.clone(), names.clone(), cache.cloned());
        async move {
            let seat = Threads::shared().seat().await;
            let read = move || {
                // It is taken for as long as the work goes on, also where nobody waits for that any more.
                let _seat = seat;
                read_one(component, &names, cache.as_ref())
            };
            let read = tokio::task::spawn_blocking(read).await;
            read.map_err(|_| InputError::Interrupted)?
        }
    });
    let all = components.len().max(1);
    let sources = stream::iter(tasks).buffered(all).try_collect().await?;
    let sources = sort(sources)?;
    same_platforms(&sources)?;
    Ok(sources)
}

/// Is every component there for all platforms of what is built on it?
fn same_platforms(sources: &[Source]) -> Result<(), InputError> {
    let all: BTreeMap<&str, &Component> = sources
        .iter()
        .map(|source| (source.component.name.as_str(), &source.component))
        .collect();
    for Source {
        component,
        dependencies,
        ..
    } in sources
    {
        for below in dependencies
            .iter()
            .filter_map(|name| all.get(name.as_str()))
        {
            let lacking = |platform: &&String| !below.platforms.contains(platform);
            if let Some(platform) = component.platforms.iter().find(lacking) {
                return Err(InputError::Platform {
                    component: component.name.clone(),
                    below: below.name.clone(),
                    platform: platform.clone(),
                });
            }
        }
    }
    Ok(())
}

fn read_one(
    component: Component,
    names: &BTreeSet<String>,
    cache: Option<&StatCache>,
) -> Result<Source, InputError> {
    let (dockerfile, references) =
        Dockerfile::read_all(&component.dockerfile, &component.args, &component.platforms)?;
    let context = Context::scan(&component.context, &component.dockerfile)?;
    let contents = context.contents(cache)?;
    let (mut dependencies, mut bases) = (BTreeSet::new(), Vec::new());
    for reference in &references {
        if names.contains(reference) && *reference != component.name {
            dependencies.insert(reference.clone());
        } else {
            bases.push(reference.clone());
        }
    }
    Ok(Source {
        component,
        context,
        contents,
        dockerfile,
        references,
        dependencies,
        bases,
    })
}

/// Dependencies first; by name where it does not matter.
fn sort(sources: Vec<Source>) -> Result<Vec<Source>, InputError> {
    let mut waiting: BTreeMap<String, Source> = sources
        .into_iter()
        .map(|source| (source.component.name.clone(), source))
        .collect();
    let mut sorted: Vec<Source> = Vec::new();
    while !waiting.is_empty() {
        let ready = waiting.iter().find(|(_, source)| {
            !source
                .dependencies
                .iter()
                .any(|name| waiting.contains_key(name))
        });
        let Some(name) = ready.map(|(name, _)| name.clone()) else {
            let names = waiting.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(InputError::Cycle { names });
        };
        sorted.extend(waiting.remove(&name));
    }
    Ok(sorted)
}

/// Names all components. `sources` must be in the order that [`read`] gives.
pub fn name(
    sources: &[Source],
    identity: impl Fn(&str) -> Option<Identity>,
) -> Result<BTreeMap<String, Input>, InputError> {
    name_each(sources, identity)
        .into_iter()
        .map(|(name, input)| {
            input
                .map(|input| (name, input))
                .map_err(InputError::UnknownBase)
        })
        .collect()
}

/// Names the components whose bases are all known. For the others, and for what is built on them, says which base is not.
pub fn name_each(
    sources: &[Source],
    identity: impl Fn(&str) -> Option<Identity>,
) -> BTreeMap<String, Result<Input, UnknownBase>> {
    let mut inputs: BTreeMap<String, Result<Input, UnknownBase>> = BTreeMap::new();
    for source in sources {
        let identities = source.references.iter().map(|reference| {
            let dependency = inputs
                .get(reference)
                .filter(|_| source.dependencies.contains(reference));
            let found = match dependency {
                Some(Ok(dependency)) => dependency.hash.to_string(),
                Some(Err(unknown)) => return Err(unknown.clone()),
                None => identity(reference)
                    .ok_or_else(|| UnknownBase {
                        component: source.component.name.clone(),
                        reference: reference.clone(),
                    })?
                    .to_string(),
            };
            Ok((reference.clone(), found))
        });
        let input = identities
            .collect::<Result<Vec<_>, _>>()
            .map(|identities| name_one(source, &identities));
        inputs.insert(source.component.name.clone(), input);
    }
    inputs
}

fn name_one(source: &Source, identities: &[(String, String)]) -> Input {
    let component = &source.component;
    let mut arguments = Records::new("orch.arguments", 1);
    arguments.fields(&[component.target.as_deref().unwrap_or_default().as_bytes()]);
    for (key, value) in &component.args {
        arguments.fields(&[key.as_bytes(), value.as_bytes()]);
    }
    let mut settings = Records::new("orch.settings", 1);
    settings.fields(&[
        component.platforms.join(",").as_bytes(),
        COMPRESSION.as_bytes(),
        b"provenance=false",
    ]);
    settings.fields(&[SOURCE_DATE_EPOCH.to_string().as_bytes()]);
    let parts = [
        ("arguments", arguments.finish()),
        ("bases", bases::hash_identities(identities)),
        ("context", source.contents.hash()),
        (
            "dockerfile",
            Sha256Digest::of(source.dockerfile.text.as_bytes()),
        ),
        ("settings", settings.finish()),
    ];
    let mut records = Records::new("orch.input", VERSION);
    for (part, hash) in &parts {
        records.fields(&[part.as_bytes(), hash.as_bytes()]);
    }
    let hash = records.finish();
    let parts = parts
        .iter()
        .map(|(part, hash)| ((*part).to_owned(), hash.to_string()))
        .collect();
    Input {
        hash,
        tag: tag(&hash),
        parts,
        details: details(component, identities),
        contents: source.contents.clone(),
    }
}

fn details(component: &Component, identities: &[(String, String)]) -> Details {
    let hidden = |name: &str, value: &str| {
        let mut records = Records::new("orch.argument", 1);
        records.fields(&[name.as_bytes(), value.as_bytes()]);
        (name.to_owned(), short(&records.finish()))
    };
    let target = component.target.iter();
    let arguments = component.args.iter();
    Details {
        arguments: arguments
            .map(|(name, value)| hidden(name, value))
            .chain(target.map(|target| hidden("--target", target)))
            .collect(),
        bases: identities.iter().cloned().collect(),
        files: BTreeMap::new(),
        settings: BTreeMap::from([
            ("compression".to_owned(), COMPRESSION.to_owned()),
            ("platform".to_owned(), component.platforms.join(",")),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(root: &std::path::Path, name: &str, dockerfile: &str) -> Component {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("Dockerfile"), dockerfile).unwrap();
        Component::from_folder(&folder, "linux/amd64").unwrap()
    }

    fn identity(_: &str) -> Option<Identity> {
        Some(Identity::Digest("sha256:base".to_owned()))
    }

    #[tokio::test]
    async fn a_change_below_renames_everything_above() {
        let root = tempfile::tempdir().unwrap();
        let components = [
            component(root.path(), "a-top", "FROM middle\n"),
            component(root.path(), "middle", "FROM z-bottom\n"),
            component(root.path(), "z-bottom", "FROM debian:bookworm-slim\n"),
            component(root.path(), "other", "FROM debian:bookworm-slim\n"),
        ];
        let sources = read(&components).await.unwrap();
        let order: Vec<&str> = sources
            .iter()
            .map(|source| source.component.name.as_str())
            .collect();
        assert_eq!(order, ["other", "z-bottom", "middle", "a-top"]);
        let before = name(&sources, identity).unwrap();
        std::fs::write(root.path().join("z-bottom/new"), "x").unwrap();
        let after = name(&read(&components).await.unwrap(), identity).unwrap();
        for changed in ["a-top", "middle", "z-bottom"] {
            assert_ne!(before[changed].hash, after[changed].hash, "{changed}");
        }
        assert_eq!(before["other"], after["other"]);
        assert_eq!(
            before["a-top"].parts["context"],
            after["a-top"].parts["context"]
        );
        assert_ne!(
            before["a-top"].parts["bases"],
            after["a-top"].parts["bases"]
        );
    }

    #[tokio::test]
    async fn an_unknown_base_leaves_only_what_is_built_on_it_without_a_name() {
        let root = tempfile::tempdir().unwrap();
        let components = [
            component(root.path(), "above", "FROM new\n"),
            component(root.path(), "new", "FROM unheard-of:1\n"),
            component(root.path(), "other", "FROM debian:bookworm-slim\n"),
        ];
        let sources = read(&components).await.unwrap();
        let inputs = name_each(&sources, |reference| {
            identity(reference).filter(|_| reference != "unheard-of:1")
        });
        let unknown = UnknownBase {
            component: "new".to_owned(),
            reference: "unheard-of:1".to_owned(),
        };
        assert_eq!(inputs["above"], Err(unknown.clone()));
        assert_eq!(inputs["new"], Err(unknown));
        assert!(inputs["other"].is_ok());
    }

    #[tokio::test]
    async fn a_circle_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        let components = [
            component(root.path(), "a", "FROM b\n"),
            component(root.path(), "b", "FROM a\n"),
        ];
        let error = read(&components).await.unwrap_err();
        assert!(error.to_string().contains("a, b"), "{error}");
    }

    #[tokio::test]
    async fn what_is_below_has_to_be_there_for_every_platform() {
        let root = tempfile::tempdir().unwrap();
        let mut top = component(
            root.path(),
            "top",
            "FROM below\nCOPY --from=tools-$TARGETARCH / /\n",
        );
        // FROM knows the platform's arguments outright, COPY only through it.
        std::fs::write(&top.dockerfile, "FROM tools-$TARGETARCH AS t\nFROM below\n").unwrap();
        top.platforms.push("linux/arm64".to_owned());
        let mut below = component(root.path(), "below", "FROM scratch\n");
        let error = read(&[top.clone(), below.clone()]).await.unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
        below.platforms.push("linux/arm64".to_owned());
        let sources = read(&[top, below]).await.unwrap();
        assert_eq!(sources[1].bases, ["tools-amd64", "tools-arm64"]);
    }

    #[tokio::test]
    async fn platform_target_and_arguments_are_part_of_the_name() {
        let root = tempfile::tempdir().unwrap();
        let plain = component(root.path(), "a", "FROM debian:bookworm-slim\n");
        let mut seen = BTreeSet::new();
        let mut variants = vec![plain.clone(); 5];
        variants[1].platforms = vec!["linux/arm64".to_owned()];
        variants[2].target = Some("x".to_owned());
        variants[4].platforms.push("linux/arm64".to_owned());
        variants[3].args.insert("A".to_owned(), "x".to_owned());
        for variant in variants {
            seen.insert(name(&read(&[variant]).await.unwrap(), identity).unwrap()["a"].hash);
        }
        assert_eq!(seen.len(), 5);
        let none = name(&read(&[plain]).await.unwrap(), |_| None);
        assert!(matches!(none, Err(InputError::UnknownBase(_))));
    }
}
