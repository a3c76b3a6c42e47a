//! One image into one repository with as few requests and bytes as the registry allows.
//!
//! What is known to be in a repository from earlier pushes is not asked about; if the registry has lost it since, it says so
//! when it gets the manifest, and everything is looked up. A blob that several images share travels once, the others mount it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::TryStreamExt;
use futures::stream::FuturesUnordered;

use super::event::{ImageEvent, Reporter};
use super::index::index;
use super::layers::{Image, LayerStore};
use super::registry::retry::Policy;
use super::registry::upload::{Outcome, upload};
use super::registry::{Blob, BlobSource, RawManifest, Registry, RegistryError};
use crate::files;

/// From this size on, in bytes, a blob nobody knows about is asked for before it is sent: the question is cheaper.
const ASK_FROM: u64 = 1024 * 1024;
/// How many bytes leave between two progress events.
const PROGRESS_STEP: u64 = 1024 * 1024;

/// An image that the registry has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest under the tag.
    pub digest: String,
    /// Blobs sent.
    pub sent: u64,
    /// Blobs that were there or were mounted.
    pub reused: u64,
    /// Somebody else was first with another image: the digest is theirs.
    pub theirs: bool,
}

/// Which repository is believed to hold which blobs. Only ever a belief: the registry has the last word.
#[derive(Debug)]
pub struct Knowledge {
    path: PathBuf,
    repositories: Mutex<BTreeMap<String, BTreeSet<String>>>,
    in_flight: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Knowledge {
    /// What earlier runs learnt about the registry at `host`, kept below `cache`.
    pub fn load(cache: &Path, host: &str) -> Self {
        let path = cache
            .join("registries")
            .join(format!("{}.json", host.replace([':', '[', ']'], "_")));
        let repositories = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            path,
            repositories: Mutex::new(repositories.unwrap_or_default()),
            in_flight: Mutex::default(),
        }
    }

    /// Keeps it for the next run. A cache that cannot be written costs requests, not correctness.
    pub fn save(&self) {
        let Ok(repositories) = self.repositories.lock() else {
            return;
        };
        let Ok(bytes) = serde_json::to_vec(&*repositories) else {
            return;
        };
        if let Some(folder) = self.path.parent() {
            let _ = std::fs::create_dir_all(folder)
                .and_then(|()| files::replace(&self.path, &bytes).map(|_| ()));
        }
    }

    fn holds(&self, repository: &str, digest: &str) -> bool {
        let repositories = self.repositories.lock();
        repositories.is_ok_and(|known| {
            known
                .get(repository)
                .is_some_and(|blobs| blobs.contains(digest))
        })
    }

    /// A repository to mount the blob from. Another namespace may be somebody else's, whose blobs no token of ours opens.
    fn elsewhere(&self, repository: &str, digest: &str) -> Option<String> {
        let namespace = |name: &str| name.rsplit_once('/').map(|(head, _)| head.to_owned());
        let wanted = namespace(repository);
        let repositories = self.repositories.lock().ok()?;
        let mut others = repositories.iter().filter(|(name, blobs)| {
            *name != repository && namespace(name) == wanted && blobs.contains(digest)
        });
        others.next().map(|(name, _)| name.clone())
    }

    fn learn(&self, repository: &str, digest: &str) {
        if let Ok(mut repositories) = self.repositories.lock() {
            repositories
                .entry(repository.to_owned())
                .or_default()
                .insert(digest.to_owned());
        }
    }

    /// Only what the newest image uses is worth remembering.
    fn keep_only(&self, repository: &str, digests: BTreeSet<String>) {
        if let Ok(mut repositories) = self.repositories.lock() {
            repositories.insert(repository.to_owned(), digests);
        }
    }

    fn forget_all(&self) {
        if let Ok(mut repositories) = self.repositories.lock() {
            repositories.clear();
        }
    }

    fn turn(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let in_flight = self.in_flight.lock();
        in_flight
            .map(|mut turns| Arc::clone(turns.entry(digest.to_owned()).or_default()))
            .unwrap_or_default()
    }
}

/// Everything that pushing needs and that stays the same for all images of a run.
pub struct Pusher {
    /// The registry.
    pub registry: Arc<dyn Registry>,
    /// What is known about it.
    pub knowledge: Knowledge,
    /// Where layers are.
    pub store: LayerStore,
    /// How patiently broken uploads are resumed.
    pub policy: Policy,
    /// Who is told.
    pub reporter: Arc<dyn Reporter>,
}

impl Pusher {
    /// Pushes `image` as `repository:tag`. If somebody else was first, theirs is taken over, unless it is `replaces`.
    pub async fn push(
        &self,
        component: &str,
        repository: &str,
        tag: &str,
        image: &Image,
        replaces: Option<&str>,
    ) -> Result<Pushed, RegistryError> {
        let manifests = [(tag.to_owned(), describe(repository, image)?)];
        let blobs = self.blobs(image);
        self.complete(component, repository, blobs, &manifests, replaces)
            .await
    }

    /// [`Pusher::push`] for the images of several platforms: each by its digest, and an index of them under the tag.
    pub async fn push_index(
        &self,
        component: &str,
        repository: &str,
        tag: &str,
        images: &[(String, Image)],
        replaces: Option<&str>,
    ) -> Result<Pushed, RegistryError> {
        let (mut blobs, mut manifests) = (Vec::new(), Vec::new());
        for (_, image) in images {
            blobs.extend(self.blobs(image));
            let manifest = describe(repository, image)?;
            manifests.push((manifest.digest(), manifest));
        }
        let children: Vec<(&str, &RawManifest)> = images
            .iter()
            .zip(&manifests)
            .map(|((platform, _), (_, manifest))| (platform.as_str(), manifest))
            .collect();
        let index = index(&children);
        manifests.push((tag.to_owned(), index));
        self.complete(component, repository, blobs, &manifests, replaces)
            .await
    }

    /// Sends blobs and then manifests, each under its reference. The last is what the others are for, under the tag.
    async fn complete(
        &self,
        component: &str,
        repository: &str,
        mut blobs: Vec<Blob>,
        manifests: &[(String, RawManifest)],
        replaces: Option<&str>,
    ) -> Result<Pushed, RegistryError> {
        let Some((tag, named)) = manifests.last() else {
            return Err(RegistryError::Protocol {
                operation: format!("pushing {repository}"),
                reason: "there is no image to push".to_owned(),
            });
        };
        let mut seen = BTreeSet::new();
        blobs.retain(|blob| seen.insert(blob.digest.clone()));
        let mut sent = self.send_all(component, repository, &blobs).await?;
        // Whoever pinned the first image of this name must find it there.
        let there = self.registry.head_manifest(repository, tag).await?;
        if let Some(theirs) = there.filter(|theirs| Some(theirs.as_str()) != replaces) {
            return Ok(Pushed {
                theirs: theirs != named.digest(),
                digest: theirs,
                sent,
                reused: (blobs.len() as u64).saturating_sub(sent),
            });
        }
        match self.put_all(repository, manifests).await {
            // The registry lost blobs that it had: it was emptied or collected its garbage.
            Err(RegistryError::Status {
                status: 400 | 404, ..
            }) => {
                self.knowledge.forget_all();
                sent += self.send_all(component, repository, &blobs).await?;
                self.put_all(repository, manifests).await?;
            }
            other => {
                other?;
            }
        }
        self.knowledge.keep_only(repository, seen);
        Ok(Pushed {
            digest: named.digest(),
            sent,
            reused: (blobs.len() as u64).saturating_sub(sent),
            theirs: false,
        })
    }

    /// In order: a registry takes an index only when it has what the index lists.
    async fn put_all(
        &self,
        repository: &str,
        manifests: &[(String, RawManifest)],
    ) -> Result<(), RegistryError> {
        for (reference, manifest) in manifests {
            self.registry
                .put_manifest(repository, reference, manifest)
                .await?;
        }
        Ok(())
    }

    /// Gives a manifest that is in the registry another tag, unless somebody else has given that tag to theirs meanwhile.
    pub async fn retag(
        &self,
        repository: &str,
        digest: &str,
        tag: &str,
    ) -> Result<Pushed, RegistryError> {
        let manifest = self.registry.get_manifest(repository, digest).await?;
        let manifest = manifest.ok_or_else(|| RegistryError::Protocol {
            operation: format!("tagging {repository}@{digest} as {tag}"),
            reason: "the registry lost it a moment ago: run the command again".to_owned(),
        })?;
        if let Some(there) = self.registry.head_manifest(repository, tag).await? {
            return Ok(Pushed {
                theirs: there != digest,
                digest: there,
                sent: 0,
                reused: 0,
            });
        }
        self.registry
            .put_manifest(repository, tag, &manifest)
            .await?;
        Ok(Pushed {
            digest: digest.to_owned(),
            sent: 0,
            reused: 0,
            theirs: false,
        })
    }

    fn blobs(&self, image: &Image) -> Vec<Blob> {
        let config = Blob {
            source: BlobSource::Memory(image.config.clone()),
            digest: image.config_digest(),
            size: image.config.len() as u64,
            progress: None,
        };
        let layers = image.layers.iter().map(|layer| Blob {
            source: BlobSource::File(self.store.blob(&layer.digest)),
            digest: layer.digest.clone(),
            size: layer.size,
            progress: None,
        });
        layers.chain([config]).collect()
    }

    /// Brings all blobs into the repository; how many had to be sent.
    async fn send_all(
        &self,
        component: &str,
        repository: &str,
        blobs: &[Blob],
    ) -> Result<u64, RegistryError> {
        let tasks: FuturesUnordered<_> = blobs
            .iter()
            .map(|blob| self.send_one(component, repository, blob))
            .collect();
        tasks
            .try_fold(0, |total, sent| async move { Ok(total + u64::from(sent)) })
            .await
    }

    async fn send_one(
        &self,
        component: &str,
        repository: &str,
        blob: &Blob,
    ) -> Result<bool, RegistryError> {
        if self.knowledge.holds(repository, &blob.digest) {
            return Ok(false);
        }
        let turn = self.knowledge.turn(&blob.digest);
        let _turn = turn.lock().await;
        let mount_from = self.knowledge.elsewhere(repository, &blob.digest);
        if mount_from.is_none()
            && blob.size >= ASK_FROM
            && self.registry.head_blob(repository, &blob.digest).await?
        {
            self.knowledge.learn(repository, &blob.digest);
            return Ok(false);
        }
        let blob = Blob {
            progress: Some(self.progress(component, blob)),
            ..blob.clone()
        };
        let (registry, reporter) = (self.registry.as_ref(), self.reporter.as_ref());
        let outcome = upload(
            registry,
            repository,
            &blob,
            mount_from.as_deref(),
            self.policy,
            reporter,
        )
        .await?;
        self.knowledge.learn(repository, &blob.digest);
        Ok(outcome == Outcome::Sent)
    }

    fn progress(&self, component: &str, blob: &Blob) -> Arc<dyn Fn(u64) + Send + Sync> {
        let (component, digest, total) = (component.to_owned(), blob.digest.clone(), blob.size);
        let reporter = Arc::clone(&self.reporter);
        let done = AtomicU64::new(0);
        Arc::new(move |bytes| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            let sent = (before + bytes).min(total);
            let first = before == 0;
            if first || before / PROGRESS_STEP != sent / PROGRESS_STEP || sent == total {
                let (component, digest) = (component.clone(), digest.clone());
                reporter.event(ImageEvent::UploadProgress {
                    component,
                    digest,
                    sent,
                    total,
                });
            }
        })
    }
}

fn describe(repository: &str, image: &Image) -> Result<RawManifest, RegistryError> {
    image.manifest().map_err(|error| RegistryError::Protocol {
        operation: format!("describing {repository}"),
        reason: error.to_string(),
    })
}
