//! From an image in the engine to blobs on disk: every layer is compressed once, in parallel, with fixed settings.
//!
//! `docker save` gives uncompressed layers with any engine. They are written to disk as they come (memory stays flat however
//! large an image is), hashed on the way, and compressed unless the cache knows their diffID. Cache layout below its root:
//! `layers/<settings>/<diffID>.json` says which blob a layer became, `images/<ID>.json` which layers an image has,
//! `blobs/<digest>` holds the bytes. Everything in it can be deleted at any time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, mpsc};

use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use oci_distribution::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::engine::{Engine, EngineError, child};
use super::event::{ImageEvent, Reporter};
use super::hash::Sha256Digest;
use super::registry::RawManifest;

/// Names the compressor and its settings. What they give for equal input must never change under one name.
pub const COMPRESSION: &str = "gzip-6-zlib-rs-1";
/// zlib's default: half the time of 9 for a few per cent more bytes.
const LEVEL: u32 = 6;
/// gzip's "unknown operating system" (RFC 1952), so that the header says nothing about this machine.
const UNKNOWN_SYSTEM: u8 = 255;
/// What may be taken for a configuration and kept in memory, in bytes.
const CONFIGURATION_LIMIT: u64 = 4 * 1024 * 1024;
/// How much is read at once.
const CHUNK: usize = 256 * 1024;

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
    /// The configuration, byte for byte as the engine wrote it.
    pub config: Bytes,
    /// Layers from the bottom.
    pub layers: Vec<Layer>,
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
            config: descriptor(IMAGE_CONFIG_MEDIA_TYPE, self.config_digest(), self.config.len() as u64),
            layers: layers.map(|layer| descriptor(IMAGE_LAYER_GZIP_MEDIA_TYPE, layer.digest.clone(), layer.size)).collect(),
            ..OciImageManifest::default()
        };
        Ok(RawManifest { media_type: OCI_IMAGE_MEDIA_TYPE.to_owned(), bytes: serde_json::to_vec(&manifest)?.into() })
    }
}

impl LayerStore {
    /// A cache below `root`, which need not exist.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where a blob's bytes are.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.root.join("blobs").join(digest.strip_prefix("sha256:").unwrap_or(digest))
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
        let failed = |source| LayerError::Engine { image: image.to_owned(), source };
        for folder in ["blobs", "images", "layers", "temporary"] {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).map_err(|source| LayerError::Cache { path, source })?;
        }
        let mut command = engine.command(&["save", image]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = child::describe(&command);
        let mut child = child::spawn(command).map_err(failed)?;
        let read = |source| failed(EngineError::Read { command: text.clone(), source });
        let Some(stdout) = child.stdout.take() else { return Err(read(io::ErrorKind::BrokenPipe.into())) };
        let stdout = File::from(stdout.into_owned_fd().map_err(read)?);
        let export = Export { store: self.clone(), image: image.to_owned(), component: component.to_owned(), reporter };
        let result = tokio::task::spawn_blocking(move || export.run(stdout)).await;
        let output = child.wait_with_output().await.map_err(read)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(failed(EngineError::Failed { command: text, status: output.status.to_string(), output: words }));
        }
        let exported = result.map_err(|error| read(io::Error::other(error)))??;
        self.remember(image, &exported)?;
        Ok(exported)
    }

    fn known(&self, image: &str) -> Option<Image> {
        let record: Record = serde_json::from_slice(&fs::read(self.record(image)).ok()?).ok()?;
        let complete = record.layers.iter().all(|layer| self.has(layer));
        let config: Bytes = fs::read(self.blob(&record.config)).ok()?.into();
        let intact = Sha256Digest::of(&config).to_string() == record.config;
        (complete && intact).then_some(Image { config, layers: record.layers })
    }

    fn remember(&self, image: &str, exported: &Image) -> Result<(), LayerError> {
        let config = exported.config_digest();
        self.write(&self.blob(&config), &exported.config)?;
        let record = Record { config, layers: exported.layers.clone() };
        let path = self.record(image);
        let bytes = serde_json::to_vec(&record)
            .map_err(|error| LayerError::Cache { path: path.clone(), source: error.into() })?;
        self.write(&path, &bytes)
    }

    fn record(&self, image: &str) -> PathBuf {
        self.root.join("images").join(format!("{}.json", image.trim_start_matches("sha256:")))
    }

    fn layer_record(&self, diff_id: &Sha256Digest) -> PathBuf {
        self.root.join("layers").join(format!("{COMPRESSION}-{}.json", diff_id.hex()))
    }

    fn layer(&self, diff_id: &Sha256Digest) -> Option<Layer> {
        let layer: Layer = serde_json::from_slice(&fs::read(self.layer_record(diff_id)).ok()?).ok()?;
        self.has(&layer).then_some(layer)
    }

    fn has(&self, layer: &Layer) -> bool {
        fs::metadata(self.blob(&layer.digest)).is_ok_and(|metadata| metadata.len() == layer.size)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), LayerError> {
        super::file::replace(path, bytes)
            .map(|_| ())
            .map_err(|source| LayerError::Cache { path: path.to_owned(), source })
    }

    fn temporary(&self) -> Result<NamedTempFile, LayerError> {
        let path = self.root.join("temporary");
        NamedTempFile::new_in(&path).map_err(|source| LayerError::Cache { path, source })
    }
}

/// One run of `docker save`, read.
struct Export {
    store: LayerStore,
    image: String,
    component: String,
    reporter: Arc<dyn Reporter>,
}

/// A file of the archive.
enum Member {
    Memory(Vec<u8>),
    Layer(Sha256Digest),
    Link(String),
}

/// A layer that waits for a compressor.
struct Job {
    diff_id: Sha256Digest,
    spool: NamedTempFile,
    size: u64,
}

/// Where `manifest.json` says that things are.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

impl Export {
    fn run(&self, archive: File) -> Result<Image, LayerError> {
        let compressors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let finished: Mutex<BTreeMap<Sha256Digest, Layer>> = Mutex::default();
        // Bounded: reading waits for compressing, so no more than a few layers lie around uncompressed.
        let (sender, receiver) = mpsc::sync_channel::<Job>(compressors);
        let receiver = Mutex::new(receiver);
        let members = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..compressors)
                .map(|_| {
                    scope.spawn(|| -> Result<(), LayerError> {
                        loop {
                            let job = receiver.lock().ok().and_then(|receiver| receiver.recv().ok());
                            let Some(job) = job else { return Ok(()) };
                            let diff_id = job.diff_id;
                            let layer = self.compress(job)?;
                            if let Ok(mut finished) = finished.lock() {
                                finished.insert(diff_id, layer);
                            }
                        }
                    })
                })
                .collect();
            let members = self.read_members(archive, &finished, &sender);
            drop(sender);
            for worker in workers {
                worker.join().unwrap_or_else(|_| Err(self.bad("a compressor stopped")))?;
            }
            members
        })?;
        let finished = finished.into_inner().unwrap_or_default();
        self.assemble(&members, &finished)
    }

    fn bad(&self, reason: impl Into<String>) -> LayerError {
        LayerError::Archive { image: self.image.clone(), reason: reason.into() }
    }

    fn read_members(
        &self,
        archive: File,
        finished: &Mutex<BTreeMap<Sha256Digest, Layer>>,
        compressors: &mpsc::SyncSender<Job>,
    ) -> Result<BTreeMap<String, Member>, LayerError> {
        let mut members = BTreeMap::new();
        let mut archive = tar::Archive::new(io::BufReader::with_capacity(CHUNK, archive));
        for entry in archive.entries().map_err(|error| self.bad(error.to_string()))? {
            let mut entry = entry.map_err(|error| self.bad(error.to_string()))?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                members.insert(path, Member::Link(String::from_utf8_lossy(&target).into_owned()));
                continue;
            }
            if !kind.is_file() {
                continue;
            }
            let size = entry.size();
            let is_layer = path.ends_with("/layer.tar") || path.starts_with("blobs/");
            let mut head = [0; 2];
            let head_length = read_up_to(&mut entry, &mut head).map_err(|error| self.bad(error.to_string()))?;
            let head = head.get(..head_length).unwrap_or_default();
            let mut whole = head.chain(&mut entry);
            if !is_layer || (head.starts_with(b"{") && size <= CONFIGURATION_LIMIT) {
                let mut bytes = Vec::new();
                let mut limited = (&mut whole).take(CONFIGURATION_LIMIT);
                limited.read_to_end(&mut bytes).map_err(|error| self.bad(error.to_string()))?;
                members.insert(path, Member::Memory(bytes));
                continue;
            }
            let (diff_id, spool) = self.spool(&mut whole)?;
            members.insert(path, Member::Layer(diff_id));
            let known = finished.lock().is_ok_and(|finished| finished.contains_key(&diff_id));
            if known {
                continue;
            }
            if let Some(layer) = self.store.layer(&diff_id) {
                if let Ok(mut finished) = finished.lock() {
                    finished.insert(diff_id, layer);
                }
                continue;
            }
            if compressors.send(Job { diff_id, spool, size }).is_err() {
                return Err(self.bad("the compressors stopped"));
            }
        }
        Ok(members)
    }

    /// Writes a layer to disk and hashes it on the way.
    fn spool(&self, content: &mut impl Read) -> Result<(Sha256Digest, NamedTempFile), LayerError> {
        let mut file = self.store.temporary()?;
        let path = file.path().to_owned();
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = content.read(&mut buffer).map_err(|error| self.bad(error.to_string()))?;
            let chunk = buffer.get(..count).unwrap_or_default();
            if chunk.is_empty() {
                break;
            }
            hasher.update(chunk);
            file.write_all(chunk).map_err(|source| LayerError::Cache { path: path.clone(), source })?;
        }
        let digest: [u8; 32] = hasher.finalize().into();
        Ok((digest.into(), file))
    }

    fn compress(&self, job: Job) -> Result<Layer, LayerError> {
        let path = job.spool.path().to_owned();
        let failed = |source| LayerError::Cache { path: path.clone(), source };
        let mut source = File::open(&path).map_err(failed)?;
        let target = self.store.temporary()?;
        let compressed_already = is_gzip(&mut source).map_err(failed)?;
        let mut writer = Hashing::new(BufWriter::with_capacity(CHUNK, target));
        if compressed_already {
            // Engines with the containerd store save layers as they were pulled.
            io::copy(&mut source, &mut writer).map_err(failed)?;
        } else {
            let builder = GzBuilder::new().mtime(0).operating_system(UNKNOWN_SYSTEM);
            let mut encoder = builder.write(&mut writer, Compression::new(LEVEL));
            let mut buffer = vec![0; CHUNK];
            loop {
                let count = source.read(&mut buffer).map_err(failed)?;
                if count == 0 {
                    break;
                }
                encoder.write_all(buffer.get(..count).unwrap_or_default()).map_err(failed)?;
            }
            encoder.finish().map_err(failed)?;
        }
        let (writer, digest, size) = writer.finish();
        let target = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        let layer = Layer { digest: digest.to_string(), size };
        let blob = self.store.blob(&layer.digest);
        target.as_file().sync_all().map_err(failed)?;
        target.persist(&blob).map_err(|error| LayerError::Cache { path: blob, source: error.error })?;
        let record = serde_json::to_vec(&layer).map_err(|error| failed(error.into()))?;
        self.store.write(&self.store.layer_record(&job.diff_id), &record)?;
        self.reporter.event(ImageEvent::LayerCompressed {
            component: self.component.clone(),
            digest: layer.digest.clone(),
            uncompressed: job.size,
            compressed: layer.size,
        });
        Ok(layer)
    }

    fn assemble(
        &self,
        members: &BTreeMap<String, Member>,
        finished: &BTreeMap<Sha256Digest, Layer>,
    ) -> Result<Image, LayerError> {
        let Some(Member::Memory(manifest)) = members.get("manifest.json") else {
            return Err(self.bad("it holds no manifest.json"));
        };
        let images: Vec<SavedImage> =
            serde_json::from_slice(manifest).map_err(|error| self.bad(format!("manifest.json: {error}")))?;
        let saved = images.first().ok_or_else(|| self.bad("manifest.json lists no image"))?;
        let Some(Member::Memory(config)) = members.get(&saved.config) else {
            return Err(self.bad(format!("it lacks the configuration {}", saved.config)));
        };
        let mut layers = Vec::new();
        for path in &saved.layers {
            let mut member = members.get(path);
            if let Some(Member::Link(target)) = member {
                member = members.get(&resolve(path, target));
            }
            let layer = match member {
                Some(Member::Layer(diff_id)) => finished.get(diff_id),
                _ => None,
            };
            layers.push(layer.cloned().ok_or_else(|| self.bad(format!("it lacks the layer {path}")))?);
        }
        Ok(Image { config: config.clone().into(), layers })
    }
}

/// The member that a link beside `path` points to.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let count = reader.read(rest)?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

fn is_gzip(file: &mut File) -> io::Result<bool> {
    let mut magic = [0; 2];
    let count = read_up_to(file, &mut magic)?;
    io::Seek::rewind(file)?;
    Ok(count == 2 && magic == [0x1f, 0x8b])
}

/// Hashes and counts what passes through.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), size: 0 }
    }

    fn finish(self) -> (W, Sha256Digest, u64) {
        let digest: [u8; 32] = self.hasher.finalize().into();
        (self.inner, digest.into(), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
