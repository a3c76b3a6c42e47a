//! From an image in the engine to blobs on disk: every layer is compressed once, in parallel, with fixed settings.
//!
//! `docker save` gives uncompressed layers with any engine. They are written to disk as they come (memory stays flat however
//! large an image is), hashed on the way, and compressed unless the cache knows their diffID. On the way they lose what only says
//! when they were built ([`times`]). Cache layout below its root: `layers/<settings>-<diffID>.json` says which blob a layer became, `images/<ID>.json` which layers an image has,
//! `blobs/<digest>` holds the bytes. Everything in it can be deleted at any time.

mod export;
mod fetch;
mod times;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use oci_distribution::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor,
    OciImageManifest,
};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::engine::{Engine, EngineError, child};
use super::event::Reporter;
use super::hash::Sha256Digest;
use super::registry::RawManifest;
use export::Export;

/// Names the compressor and its settings. What they give for equal input must never change under one name.
pub const COMPRESSION: &str = "gzip-6-zlib-rs-1";

/// An image could not be turned into blobs.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The engine cannot be used.
    #[error("cannot get image {image} out of the container engine")]
    Engine {
        /// The image.
        image: String,
        /// The engine's error.
        #[source]
        source: EngineError,
    },
    /// The archive that the engine wrote cannot be used.
    #[error("cannot read what the container engine saved of image {image}: {reason}")]
    Archive {
        /// The image.
        image: String,
        /// What is wrong.
        reason: String,
    },
    /// The cache cannot be used.
    #[error("cannot use the layer cache at {path}: check its permissions and the space left")]
    Cache {
        /// A file in it.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// A compressed layer on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the compressed bytes, `sha256:...`.
    pub digest: String,
    /// Their number.
    pub size: u64,
}

/// An image as it goes to a registry.
#[derive(Debug, Clone)]
pub struct Image {
    /// The configuration, as the engine wrote it but for the time of building.
    pub config: Bytes,
    /// Layers from the bottom.
    pub layers: Vec<Layer>,
}

/// What became of a layer that the engine saved.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Compressed {
    /// Digest of the bytes that were compressed.
    diff_id: String,
    #[serde(flatten)]
    layer: Layer,
}

/// What the cache knows about an image.
#[derive(Serialize, Deserialize)]
struct Record {
    config: String,
    layers: Vec<Layer>,
}

/// The cache.
#[derive(Debug, Clone)]
pub struct LayerStore {
    root: PathBuf,
    /// Layers that somebody compresses right now: images that share one wait instead of compressing it as well.
    in_progress: Arc<Mutex<BTreeMap<Sha256Digest, Arc<Mutex<()>>>>>,
}

impl Image {
    /// Digest of the configuration.
    pub fn config_digest(&self) -> String {
        Sha256Digest::of(&self.config).to_string()
    }

    /// The OCI manifest. Equal images give equal bytes.
    pub fn manifest(&self) -> Result<RawManifest, serde_json::Error> {
        let descriptor = |media_type: &str, digest: String, size: u64| OciDescriptor {
            media_type: media_type.to_owned(),
            digest,
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let layers = self.layers.iter();
        let manifest = OciImageManifest {
            schema_version: 2,
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: descriptor(
                IMAGE_CONFIG_MEDIA_TYPE,
                self.config_digest(),
                self.config.len() as u64,
            ),
            layers: layers
                .map(|layer| {
                    descriptor(
                        IMAGE_LAYER_GZIP_MEDIA_TYPE,
                        layer.digest.clone(),
                        layer.size,
                    )
                })
                .collect(),
            ..OciImageManifest::default()
        };
        Ok(RawManifest {
            media_type: OCI_IMAGE_MEDIA_TYPE.to_owned(),
            bytes: serde_json::to_vec(&manifest)?.into(),
        })
    }
}

impl LayerStore {
    /// A cache below `root`, which need not exist.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            in_progress: Arc::default(),
        }
    }

    /// Where a blob's bytes are.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.strip_prefix("sha256:").unwrap_or(digest))
    }

    /// The image with this ID as blobs. An image that was exported before costs no call to the engine.
    pub async fn export(
        &self,
        engine: &Engine,
        image: &str,
        component: &str,
        reporter: Arc<dyn Reporter>,
    ) -> Result<Image, LayerError> {
        if let Some(known) = self.known(image) {
            return Ok(known);
        }
        let failed = |source| LayerError::Engine {
            image: image.to_owned(),
            source,
        };
        for folder in ["blobs", "images", "layers", "temporary"] {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).map_err(|source| LayerError::Cache { path, source })?;
        }
        let mut command = engine.save(image).await;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = child::describe(&command);
        let mut child = child::spawn(command).map_err(failed)?;
        let read = |source| {
            failed(EngineError::Read {
                command: text.clone(),
                source,
            })
        };
        let Some(stdout) = child.stdout.take() else {
            return Err(read(io::ErrorKind::BrokenPipe.into()));
        };
        let stdout = File::from(stdout.into_owned_fd().map_err(read)?);
        let export = Export {
            store: self.clone(),
            image: image.to_owned(),
            component: component.to_owned(),
            reporter,
        };
        let result = tokio::task::spawn_blocking(move || export.run(stdout)).await;
        let output = child.wait_with_output().await.map_err(read)?;
        let exported = result.map_err(|error| read(io::Error::other(error)))?;
        // The engine's status would only say that nobody read on.
        if let Err(error @ LayerError::Cache { .. }) = exported {
            return Err(error);
        }
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(EngineError::Failed {
                command: text,
                status: output.status.to_string(),
                output: words,
            }));
        }
        let exported = exported?;
        self.remember(image, &exported)?;
        Ok(exported)
    }

    fn known(&self, image: &str) -> Option<Image> {
        let record: Record = serde_json::from_slice(&fs::read(self.record(image)).ok()?).ok()?;
        let complete = record.layers.iter().all(|layer| self.has(layer));
        let config: Bytes = fs::read(self.blob(&record.config)).ok()?.into();
        let intact = Sha256Digest::of(&config).to_string() == record.config;
        (complete && intact).then_some(Image {
            config,
            layers: record.layers,
        })
    }

    fn remember(&self, image: &str, exported: &Image) -> Result<(), LayerError> {
        let config = exported.config_digest();
        self.write(&self.blob(&config), &exported.config)?;
        let record = Record {
            config,
            layers: exported.layers.clone(),
        };
        let path = self.record(image);
        let bytes = serde_json::to_vec(&record).map_err(|error| LayerError::Cache {
            path: path.clone(),
            source: error.into(),
        })?;
        self.write(&path, &bytes)
    }

    fn record(&self, image: &str) -> PathBuf {
        self.root.join("images").join(format!(
            "{}-{}.json",
            times::RULES,
            image.trim_start_matches("sha256:")
        ))
    }

    fn layer_record(&self, diff_id: &Sha256Digest) -> PathBuf {
        self.root.join("layers").join(format!(
            "{COMPRESSION}-{}-{}.json",
            times::RULES,
            diff_id.hex()
        ))
    }

    fn turn(&self, diff_id: &Sha256Digest) -> Arc<Mutex<()>> {
        let in_progress = self.in_progress.lock();
        in_progress
            .map(|mut turns| Arc::clone(turns.entry(*diff_id).or_default()))
            .unwrap_or_default()
    }

    fn layer(&self, diff_id: &Sha256Digest) -> Option<Compressed> {
        let known: Compressed =
            serde_json::from_slice(&fs::read(self.layer_record(diff_id)).ok()?).ok()?;
        self.has(&known.layer).then_some(known)
    }

    fn has(&self, layer: &Layer) -> bool {
        fs::metadata(self.blob(&layer.digest)).is_ok_and(|metadata| metadata.len() == layer.size)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), LayerError> {
        crate::files::replace(path, bytes)
            .map(|_| ())
            .map_err(|source| LayerError::Cache {
                path: path.to_owned(),
                source,
            })
    }

    fn temporary(&self) -> Result<NamedTempFile, LayerError> {
        let path = self.root.join("temporary");
        NamedTempFile::new_in(&path).map_err(|source| LayerError::Cache { path, source })
    }
}
