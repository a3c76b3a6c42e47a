//! Says things about images that are in the registry: lists of packages, provenance, signatures.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures::future::try_join_all;
use serde::Serialize;

use super::Pipeline;
use super::gather::{Planned, Prepared};
use crate::images::ImageError;
use crate::images::attest::artifact::{Index, Manifest, document};
use crate::images::attest::key::{PrivateKey, PublicKey};
use crate::images::attest::provenance::{self, Build, COMPONENT};
use crate::images::attest::sbom::Subject;
use crate::images::attest::store::{Referrers, Store};
use crate::images::attest::{
    AttestError, FORMAT, FORMAT_VERSION, INPUT, REVISION, git, provenance_annotations,
    sbom_annotations, spdx,
};
use crate::images::event::ImageEvent;
use crate::images::input::{self, Input, Source};
use crate::images::layers::LayerStore;
use crate::images::lock::{Entry, Lock};
use crate::images::pin;
use crate::images::plan::Action;
use crate::images::registry::{Descriptor, RawManifest, Registry};
use crate::images::select::select;

/// What is attached to an image now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Attested {
    /// `repository:tag@digest`.
    pub reference: String,
    /// Digests of the lists of packages, one a platform; none unless asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sbom: Vec<String>,
    /// Digest of the provenance, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<String>,
    /// Is it signed by the key that was given?
    pub signed: bool,
    /// How many of these were not there before.
    pub added: usize,
}

/// What a registry and a key say about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The key's owner vouches for this digest.
    Signed,
    /// Others do.
    OtherKey,
    /// Nobody does.
    Unsigned,
}

/// An image that a [`Verdict`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The component.
    pub component: String,
    /// `repository:tag@digest`.
    pub reference: String,
    /// What was found.
    pub verdict: Verdict,
}

/// A document that is at an image.
struct Placed {
    /// Digest of its manifest.
    digest: String,
    /// It was not there before.
    new: bool,
    /// Its bytes, if they were made here. Others are never signed.
    made: Option<Bytes>,
}

impl Placed {
    /// Made by whoever may push.
    fn there(entry: &Descriptor) -> Self {
        Self {
            digest: entry.digest.clone(),
            new: false,
            made: None,
        }
    }
}

/// An image of one platform.
struct Platform {
    manifest: RawManifest,
    platform: String,
}

impl Pipeline {
    /// Attaches what the settings ask for to the images that the lock lists.
    pub async fn attest(&self) -> Result<BTreeMap<String, Attested>, ImageError> {
        let prepared = self.prepare().await?;
        let registry = self.registry(&prepared.selection)?;
        let key = self.open_key()?;
        let inputs = self.locked_inputs(&prepared);
        let published = prepared.sources.iter().filter(|source| {
            let name = &source.component.name;
            prepared.selection.published.contains(name)
        });
        let tasks = published.map(|source| {
            let (prepared, inputs, registry) = (&prepared, &inputs, registry.as_ref());
            let key = key.as_ref();
            async move {
                let name = source.component.name.clone();
                let entry = self.locked(&prepared.lock, &name)?;
                let documents = self.settings.attest.sbom || self.settings.attest.provenance;
                if documents {
                    self.check_fresh(entry, inputs.get(&name), &name)?;
                }
                let found = self.attest_one(prepared, inputs, source, entry, registry, key);
                Ok::<_, ImageError>((name, found.await?))
            }
        });
        Ok(try_join_all(tasks).await?.into_iter().collect())
    }

    /// Attaches what the settings ask for to images that were pushed just now.
    pub(super) async fn attest_pushed(
        &self,
        prepared: &Prepared,
        inputs: &BTreeMap<String, Input>,
        entries: &BTreeMap<String, Entry>,
        registry: &dyn Registry,
        key: Option<&PrivateKey>,
    ) -> Result<BTreeMap<String, Attested>, ImageError> {
        if self.settings.attest.is_empty() {
            return Ok(BTreeMap::new());
        }
        let tasks = prepared.sources.iter().filter_map(|source| {
            let name = source.component.name.clone();
            let entry = entries.get(&name)?;
            let found = self.attest_one(prepared, inputs, source, entry, registry, key);
            Some(async move { Ok::<_, ImageError>((name, found.await?)) })
        });
        Ok(try_join_all(tasks).await?.into_iter().collect())
    }

    /// The lists of packages of an image that was pushed, one a platform.
    pub async fn sbom(&self, component: &str) -> Result<Vec<Vec<u8>>, ImageError> {
        let prepared = self.prepare().await?;
        let registry = self.registry(&prepared.selection)?;
        let entry = self.locked(&prepared.lock, component)?;
        let inputs = self.locked_inputs(&prepared);
        self.check_fresh(entry, inputs.get(component), component)?;
        let source = prepared
            .sources
            .iter()
            .find(|source| source.component.name == component);
        let mut documents = Vec::new();
        if let Some(source) = source {
            let store = self.store(component, registry.as_ref());
            let manifest = store.image(&entry.digest).await?;
            for image in self.platforms(&store, source, manifest).await? {
                documents.push(self.list_packages(&store, source, entry, &image).await?);
            }
        }
        Ok(documents)
    }

    /// Looks for signatures by `key` at the images that the lock lists.
    pub async fn verify(&self, key: &PublicKey) -> Result<Vec<Verified>, ImageError> {
        let settings = &self.settings;
        let lock = Lock::read(&settings.lock)?;
        let manifests = pin::read(&settings.manifests)?;
        let ours = self.ours(&lock)?;
        let selection = select(
            &settings.components,
            &settings.folder,
            &settings.names,
            &manifests,
            &ours,
        )?;
        let registry = self.registry(&selection)?;
        let tasks = selection.published.iter().map(|name| {
            let (lock, registry) = (&lock, registry.as_ref());
            async move {
                let entry = self.locked(lock, name)?;
                let store = self.store(name, registry);
                let found = store.verify(&entry.digest, key);
                Ok::<_, ImageError>(Verified {
                    component: name.clone(),
                    reference: entry.pinned(),
                    verdict: match found.await? {
                        Some(true) => Verdict::Signed,
                        Some(false) => Verdict::OtherKey,
                        None => Verdict::Unsigned,
                    },
                })
            }
        });
        try_join_all(tasks).await
    }

    /// A key vouches only for what this run puts there and for what the lock listed before it. That an image has the right tag
    /// says nothing: whoever may push can move it.
    pub(super) fn check_ours(
        &self,
        prepared: &Prepared,
        planned: &Planned,
    ) -> Result<(), ImageError> {
        for step in planned.steps.iter().filter(|step| step.published) {
            let (
                Action::Skip {
                    digest: Some(digest),
                },
                Some(input),
            ) = (&step.action, planned.inputs.get(&step.component))
            else {
                continue;
            };
            let locked = prepared.lock.components.get(&step.component);
            let listed = locked.is_some_and(|entry| {
                entry.digest == *digest && entry.input == input.hash.to_string()
            });
            if !listed {
                return Err(self.not_ours(&step.component, input, digest));
            }
        }
        Ok(())
    }

    /// An image that must not be signed just because it has the component's tag.
    pub(super) fn not_ours(&self, component: &str, input: &Input, digest: &str) -> ImageError {
        let repository = self.destination.repository(component);
        AttestError::NotOurs {
            component: component.to_owned(),
            reference: format!("{repository}:{}@{digest}", input.tag),
            lock: self.settings.lock.clone(),
        }
        .into()
    }

    pub(super) fn open_key(&self) -> Result<Option<PrivateKey>, ImageError> {
        let key = self.settings.attest.key.as_ref();
        Ok(key
            .map(|key| key.open())
            .transpose()
            .map_err(AttestError::from)?)
    }

    fn locked<'l>(&self, lock: &'l Lock, component: &str) -> Result<&'l Entry, ImageError> {
        let entry = lock.components.get(component);
        Ok(entry.ok_or_else(|| AttestError::NotPushed {
            component: component.to_owned(),
            lock: self.settings.lock.clone(),
        })?)
    }

    /// Names as far as the lock's own bases give them.
    fn locked_inputs(&self, prepared: &Prepared) -> BTreeMap<String, Input> {
        let inputs = input::name_each(&prepared.sources, |reference| {
            prepared.bases.known(reference)
        });
        inputs
            .into_iter()
            .filter_map(|(name, input)| Some((name, input.ok()?)))
            .collect()
    }

    /// Documents quote the sources, so these must be what was pushed.
    fn check_fresh(
        &self,
        entry: &Entry,
        input: Option<&Input>,
        component: &str,
    ) -> Result<(), ImageError> {
        if input.is_some_and(|input| input.hash.to_string() == entry.input) {
            return Ok(());
        }
        Err(AttestError::Stale {
            component: component.to_owned(),
            reference: entry.pinned(),
        }
        .into())
    }

    fn store<'r>(&'r self, component: &str, registry: &'r dyn Registry) -> Store<'r> {
        Store {
            registry,
            repository: self.destination.path(component),
            policy: self.settings.policy,
            reporter: self.reporter.as_ref(),
        }
    }

    async fn attest_one(
        &self,
        prepared: &Prepared,
        inputs: &BTreeMap<String, Input>,
        source: &Source,
        entry: &Entry,
        registry: &dyn Registry,
        key: Option<&PrivateKey>,
    ) -> Result<Attested, ImageError> {
        let name = &source.component.name;
        let store = self.store(name, registry);
        let mut attested = Attested {
            reference: entry.pinned(),
            ..Attested::default()
        };
        let wanted = &self.settings.attest;
        if wanted.sbom || wanted.provenance {
            let manifest = store.image(&entry.digest).await?;
            if wanted.provenance {
                let build = self.build_of(prepared, inputs, source, entry);
                let known = store.referrers(&entry.digest).await?;
                let signed = key.is_some();
                let placed =
                    attach_provenance(&store, source, build, &manifest, &known, signed).await?;
                self.attached(&mut attested, name, "provenance", placed.new);
                if let (Some(key), Some(made)) = (key, &placed.made) {
                    let statement = (provenance::MEDIA_TYPE, made.as_ref());
                    let new = store.seal(&entry.repository, &entry.digest, statement, key);
                    let new = new.await?;
                    self.attached(&mut attested, name, "signed provenance", new);
                }
                attested.provenance = Some(placed.digest);
            }
            if wanted.sbom {
                for image in self.platforms(&store, source, manifest).await? {
                    let signed = key.is_some();
                    let placed = self
                        .attach_sbom(&store, source, entry, &image, signed)
                        .await?;
                    self.attached(&mut attested, name, "list of packages", placed.new);
                    if let (Some(key), Some(made)) = (key, &placed.made) {
                        let subject = image.manifest.digest();
                        let list = (spdx::MEDIA_TYPE, made.as_ref());
                        let new = store.seal(&entry.repository, &subject, list, key);
                        let new = new.await?;
                        self.attached(&mut attested, name, "signed list of packages", new);
                    }
                    attested.sbom.push(placed.digest);
                }
            }
        }
        if let Some(key) = key {
            let new = store.sign(&entry.repository, &entry.digest, key).await?;
            self.attached(&mut attested, name, "signature", new);
            attested.signed = true;
        }
        Ok(attested)
    }

    fn attached(&self, attested: &mut Attested, component: &str, document: &str, new: bool) {
        attested.added += usize::from(new);
        self.reporter.event(ImageEvent::Attached {
            component: component.to_owned(),
            document: document.to_owned(),
            new,
        });
    }

    /// The list of packages that is at the image now; one that is to be `signed` is always made here.
    async fn attach_sbom(
        &self,
        store: &Store<'_>,
        source: &Source,
        entry: &Entry,
        image: &Platform,
        signed: bool,
    ) -> Result<Placed, ImageError> {
        let digest = image.manifest.digest();
        let known = store.referrers(&digest).await?;
        let wanted = [(INPUT, entry.input.as_str()), (FORMAT, FORMAT_VERSION)];
        let there = known.all(spdx::MEDIA_TYPE, &wanted);
        if let Some(there) = there.first().filter(|_| !signed) {
            return Ok(Placed::there(there));
        }
        let bytes: Bytes = self
            .list_packages(store, source, entry, image)
            .await?
            .into();
        let artifact = document(
            &image.manifest,
            spdx::MEDIA_TYPE,
            bytes.clone(),
            sbom_annotations(&entry.input),
        );
        let artifact = artifact.map_err(unwritable(entry, "list of packages"))?;
        let new = store.attach(&digest, &known, &artifact).await?;
        Ok(Placed {
            digest: artifact.descriptor.digest,
            new,
            made: Some(bytes),
        })
    }

    async fn list_packages(
        &self,
        store: &Store<'_>,
        source: &Source,
        entry: &Entry,
        image: &Platform,
    ) -> Result<Vec<u8>, ImageError> {
        let name = format!("{}@{}", entry.repository, image.manifest.digest());
        let manifest: Manifest = serde_json::from_slice(&image.manifest.bytes)
            .map_err(|error| not_an_image(&name, &error.to_string()))?;
        let cache = LayerStore::new(&self.settings.cache);
        let (policy, reporter) = (self.settings.policy, self.reporter.as_ref());
        let layers = manifest.layers.iter().map(|layer| {
            let cache = &cache;
            async move {
                let wanted = (layer.digest.as_str(), layer.size);
                let (registry, repository) = (store.registry, store.repository.as_str());
                let path = cache.fetch(registry, repository, wanted, policy, reporter);
                Ok::<_, ImageError>((layer.digest.clone(), path.await?))
            }
        });
        let subject = Subject {
            repository: entry.repository.clone(),
            digest: image.manifest.digest(),
            platform: image.platform.clone(),
            layers: try_join_all(layers).await?,
        };
        let context = source.context.clone();
        let bom = tokio::task::spawn_blocking(move || subject.describe(&context))
            .await
            .map_err(|_| AttestError::Interrupted { image: name })??;
        let bytes = bom.to_json();
        Ok(bytes.map_err(unwritable(entry, "list of packages"))?)
    }

    /// The images under a manifest: itself, or those of an index.
    async fn platforms(
        &self,
        store: &Store<'_>,
        source: &Source,
        manifest: RawManifest,
    ) -> Result<Vec<Platform>, ImageError> {
        let Ok(index) = serde_json::from_slice::<Index>(&manifest.bytes) else {
            let platform = source.component.platforms.first().cloned();
            return Ok(vec![Platform {
                manifest,
                platform: platform.unwrap_or_default(),
            }]);
        };
        let images = index.manifests.iter().filter_map(|child| {
            let field = |name: &str| {
                let platform = child.other.get("platform")?;
                Some(platform.get(name)?.as_str()?.to_owned())
            };
            let parts = [field("os"), field("architecture"), field("variant")];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            // What builders put beside images is marked as being for no platform.
            let image = parts.first().is_some_and(|os| os != "unknown");
            image.then_some(async move {
                Ok::<_, ImageError>(Platform {
                    manifest: store.image(&child.digest).await?,
                    platform: parts.join("/"),
                })
            })
        });
        try_join_all(images).await
    }

    fn build_of(
        &self,
        prepared: &Prepared,
        inputs: &BTreeMap<String, Input>,
        source: &Source,
        entry: &Entry,
    ) -> Build {
        let component = &source.component;
        let bases = source.references.iter().map(|reference| {
            let dependency = inputs
                .get(reference)
                .filter(|_| source.dependencies.contains(reference));
            let identity = match dependency {
                Some(input) => format!("{COMPONENT}{}", input.hash),
                None => {
                    let known = prepared.bases.known(reference);
                    known.map(|known| known.to_string()).unwrap_or_default()
                }
            };
            (reference.clone(), identity)
        });
        Build {
            repository: entry.repository.clone(),
            digest: entry.digest.clone(),
            component: component.name.clone(),
            dockerfile: shown(&component.context, &component.dockerfile),
            target: component.target.clone(),
            arguments: component.args.keys().cloned().collect(),
            platforms: component.platforms.clone(),
            input: entry.input.clone(),
            parts: entry.parts.clone(),
            bases: bases.collect(),
            checkout: None,
        }
    }
}

/// The provenance that is at the image now; one that is to be `signed` is always made here.
async fn attach_provenance(
    store: &Store<'_>,
    source: &Source,
    build: Build,
    manifest: &RawManifest,
    known: &Referrers,
    signed: bool,
) -> Result<Placed, ImageError> {
    let checkout = git::checkout(&source.context, &source.component.dockerfile).await;
    let commit = checkout.as_ref().filter(|checkout| !checkout.dirty);
    let commit = commit.map(|checkout| checkout.commit.clone());
    let wanted = [(INPUT, build.input.as_str()), (FORMAT, FORMAT_VERSION)];
    // The first commit that had these sources is as good as any later one. Any commit is better than none. But anybody who may
    // push can write such annotations.
    let there = known.all(provenance::MEDIA_TYPE, &wanted);
    let named = there
        .iter()
        .find(|entry| entry.annotations.contains_key(REVISION));
    let enough = named.or_else(|| there.first().filter(|_| commit.is_none()));
    if let Some(there) = enough.filter(|_| !signed) {
        return Ok(Placed::there(there));
    }
    let build = Build { checkout, ..build };
    let image = format!("{}@{}", build.repository, build.digest);
    let written = |source| AttestError::Document {
        image: image.clone(),
        document: "provenance",
        source,
    };
    let bytes: Bytes = build.to_json().map_err(written)?.into();
    let annotations = provenance_annotations(&build.input, commit.as_deref());
    let artifact = document(manifest, provenance::MEDIA_TYPE, bytes.clone(), annotations);
    let artifact = artifact.map_err(written)?;
    let new = store.attach(&build.digest, known, &artifact).await?;
    Ok(Placed {
        digest: artifact.descriptor.digest,
        new,
        made: Some(bytes),
    })
}

/// The Dockerfile's name for people: below the context if it is there, and never a folder of this machine.
fn shown(context: &Path, dockerfile: &Path) -> String {
    let below = dockerfile.strip_prefix(context).ok();
    let name = below.or_else(|| dockerfile.file_name().map(Path::new));
    name.unwrap_or(dockerfile).display().to_string()
}

fn not_an_image(image: &str, reason: &str) -> AttestError {
    AttestError::Image {
        image: image.to_owned(),
        reason: format!("its manifest is none of an image ({reason})"),
    }
}

fn unwritable(entry: &Entry, document: &'static str) -> impl Fn(serde_json::Error) -> AttestError {
    let image = entry.pinned();
    move |source| AttestError::Document {
        image: image.clone(),
        document,
        source,
    }
}
