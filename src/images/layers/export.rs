//! Reads what `docker save` writes: spools, hashes and compresses layers, several at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::sync::{Arc, Mutex, mpsc};

use flate2::read::MultiGzDecoder;
use flate2::{Compression, GzBuilder};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use super::{Compressed, Image, Layer, LayerError, LayerStore, times};
use crate::images::event::{ImageEvent, Reporter};
use crate::images::hash::Sha256Digest;

/// zlib's default: half the time of 9 for a few per cent more bytes.
const LEVEL: u32 = 6;
/// gzip's "unknown operating system" (RFC 1952), so that the header says nothing about this machine.
const UNKNOWN_SYSTEM: u8 = 255;
/// How compressed layers begin.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What may be taken for a configuration and kept in memory, in bytes.
const CONFIGURATION_LIMIT: u64 = 4 * 1024 * 1024;
/// How much is read at once.
const CHUNK: usize = 256 * 1024;

/// One run of `docker save`, read.
pub(super) struct Export {
    pub(super) store: LayerStore,
    pub(super) image: String,
    pub(super) component: String,
    pub(super) reporter: Arc<dyn Reporter>,
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
    pub(super) fn run(&self, archive: File) -> Result<Image, LayerError> {
        let compressors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let finished: Mutex<BTreeMap<Sha256Digest, Compressed>> = Mutex::default();
        // Bounded: reading waits for compressing, so no more than a few layers lie around uncompressed.
        let (sender, receiver) = mpsc::sync_channel::<Job>(compressors);
        // Owned by the compressors alone: when the last one has failed, sending fails as well instead of waiting.
        let receiver = Arc::new(Mutex::new(receiver));
        let members = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..compressors)
                .map(|_| {
                    let (receiver, finished) = (Arc::clone(&receiver), &finished);
                    scope.spawn(move || -> Result<(), LayerError> {
                        loop {
                            let job = receiver
                                .lock()
                                .ok()
                                .and_then(|receiver| receiver.recv().ok());
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
            drop(receiver);
            let members = self.read_members(archive, &finished, &sender);
            drop(sender);
            for worker in workers {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(self.bad("a compressor stopped")))?;
            }
            members
        })?;
        let finished = finished.into_inner().unwrap_or_default();
        self.assemble(&members, &finished)
    }

    fn bad(&self, reason: impl Into<String>) -> LayerError {
        LayerError::Archive {
            image: self.image.clone(),
            reason: reason.into(),
        }
    }

    fn read_members(
        &self,
        archive: File,
        finished: &Mutex<BTreeMap<Sha256Digest, Compressed>>,
        compressors: &mpsc::SyncSender<Job>,
    ) -> Result<BTreeMap<String, Member>, LayerError> {
        let mut members = BTreeMap::new();
        let mut archive = tar::Archive::new(io::BufReader::with_capacity(CHUNK, archive));
        for entry in archive
            .entries()
            .map_err(|error| self.bad(error.to_string()))?
        {
            let mut entry = entry.map_err(|error| self.bad(error.to_string()))?;
            let path = String::from_utf8_lossy(&entry.path_bytes())
                .trim_start_matches("./")
                .to_owned();
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name_bytes().unwrap_or_default();
                members.insert(
                    path,
                    Member::Link(String::from_utf8_lossy(&target).into_owned()),
                );
                continue;
            }
            if !kind.is_file() {
                continue;
            }
            let size = entry.size();
            let is_layer = path.ends_with(".tar") || path.starts_with("blobs/");
            let mut head = [0; 2];
            let head_length =
                read_up_to(&mut entry, &mut head).map_err(|error| self.bad(error.to_string()))?;
            let head = head.get(..head_length).unwrap_or_default();
            let mut whole = head.chain(&mut entry);
            if !is_layer || (head.starts_with(b"{") && size <= CONFIGURATION_LIMIT) {
                let mut bytes = Vec::new();
                let mut limited = (&mut whole).take(CONFIGURATION_LIMIT);
                limited
                    .read_to_end(&mut bytes)
                    .map_err(|error| self.bad(error.to_string()))?;
                members.insert(path, Member::Memory(bytes));
                continue;
            }
            let (diff_id, spool) = self.spool(&mut whole)?;
            members.insert(path, Member::Layer(diff_id));
            let known = finished
                .lock()
                .is_ok_and(|finished| finished.contains_key(&diff_id));
            if known {
                continue;
            }
            if let Some(layer) = self.store.layer(&diff_id) {
                if let Ok(mut finished) = finished.lock() {
                    finished.insert(diff_id, layer);
                }
                continue;
            }
            if compressors
                .send(Job {
                    diff_id,
                    spool,
                    size,
                })
                .is_err()
            {
                return Err(self.bad("the compressors stopped"));
            }
        }
        // A writer may pad beyond the archive's end, and would die of a pipe that nobody reads.
        io::copy(&mut archive.into_inner(), &mut io::sink())
            .map_err(|error| self.bad(error.to_string()))?;
        Ok(members)
    }

    /// Writes a layer to disk and hashes it on the way.
    fn spool(&self, content: &mut impl Read) -> Result<(Sha256Digest, NamedTempFile), LayerError> {
        let mut file = self.store.temporary()?;
        let path = file.path().to_owned();
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = content
                .read(&mut buffer)
                .map_err(|error| self.bad(error.to_string()))?;
            let chunk = buffer.get(..count).unwrap_or_default();
            if chunk.is_empty() {
                break;
            }
            hasher.update(chunk);
            file.write_all(chunk).map_err(|source| LayerError::Cache {
                path: path.clone(),
                source,
            })?;
        }
        let digest: [u8; 32] = hasher.finalize().into();
        Ok((digest.into(), file))
    }

    fn compress(&self, job: Job) -> Result<Compressed, LayerError> {
        let turn = self.store.turn(&job.diff_id);
        let _turn = turn.lock();
        if let Some(layer) = self.store.layer(&job.diff_id) {
            return Ok(layer);
        }
        let path = job.spool.path().to_owned();
        let failed = |source| LayerError::Cache {
            path: path.clone(),
            source,
        };
        let mut source = File::open(&path).map_err(failed)?;
        let target = self.store.temporary()?;
        let magic = magic(&mut source).map_err(failed)?;
        if magic == ZSTD {
            return Err(self.bad(format!(
                "the layer {} is compressed with zstd, which is not supported yet: use a base image whose layers are gzip, or \
                 turn the engine's containerd image store off, which then saves layers uncompressed",
                job.diff_id
            )));
        }
        let compressed_already = magic.starts_with(&GZIP);
        let mut writer = Hashing::new(BufWriter::with_capacity(CHUNK, target));
        let builder = GzBuilder::new().mtime(0).operating_system(UNKNOWN_SYSTEM);
        let mut encoder = Hashing::new(builder.write(&mut writer, Compression::new(LEVEL)));
        let mut source = io::BufReader::with_capacity(CHUNK, source);
        let copied = if compressed_already {
            // Engines with the containerd store save layers as they were pulled.
            times::copy(&mut MultiGzDecoder::new(source), &mut encoder)
        } else {
            times::copy(&mut source, &mut encoder)
        };
        copied.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                self.bad(format!("the layer {}: {error}", job.diff_id))
            }
            _ => failed(error),
        })?;
        let (encoder, diff_id, _) = encoder.finish();
        encoder.finish().map_err(failed)?;
        let (writer, digest, size) = writer.finish();
        let target = writer
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        let layer = Layer {
            digest: digest.to_string(),
            size,
        };
        let blob = self.store.blob(&layer.digest);
        target.as_file().sync_all().map_err(failed)?;
        target.persist(&blob).map_err(|error| LayerError::Cache {
            path: blob,
            source: error.error,
        })?;
        let layer = Compressed {
            diff_id: diff_id.to_string(),
            layer,
        };
        let record = serde_json::to_vec(&layer).map_err(|error| failed(error.into()))?;
        self.store
            .write(&self.store.layer_record(&job.diff_id), &record)?;
        self.reporter.event(ImageEvent::LayerCompressed {
            component: self.component.clone(),
            digest: layer.layer.digest.clone(),
            uncompressed: job.size,
            compressed: layer.layer.size,
        });
        Ok(layer)
    }

    fn assemble(
        &self,
        members: &BTreeMap<String, Member>,
        finished: &BTreeMap<Sha256Digest, Compressed>,
    ) -> Result<Image, LayerError> {
        let Some(Member::Memory(manifest)) = members.get("manifest.json") else {
            return Err(self.bad("it holds no manifest.json"));
        };
        let images: Vec<SavedImage> = serde_json::from_slice(manifest)
            .map_err(|error| self.bad(format!("manifest.json: {error}")))?;
        let saved = images
            .first()
            .ok_or_else(|| self.bad("manifest.json lists no image"))?;
        let Some(Member::Memory(config)) = members.get(&saved.config) else {
            return Err(self.bad(format!("it lacks the configuration {}", saved.config)));
        };
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for path in &saved.layers {
            let mut member = members.get(path);
            if let Some(Member::Link(target)) = member {
                member = members.get(&resolve(path, target));
            }
            let layer = match member {
                Some(Member::Layer(diff_id)) => finished.get(diff_id),
                _ => None,
            };
            let layer = layer.ok_or_else(|| self.bad(format!("it lacks the layer {path}")))?;
            layers.push(layer.layer.clone());
            diff_ids.push(layer.diff_id.clone());
        }
        let config = times::configuration(config, &diff_ids)
            .map_err(|error| self.bad(format!("{}: {error}", saved.config)))?;
        Ok(Image {
            config: config.into(),
            layers,
        })
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

pub(super) fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
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

/// How a file begins, with zeros where it is too short.
fn magic(file: &mut File) -> io::Result<[u8; 4]> {
    let mut magic = [0; 4];
    read_up_to(file, &mut magic)?;
    io::Seek::rewind(file)?;
    Ok(magic)
}

/// Hashes and counts what passes through.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            size: 0,
        }
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::images::engine::Engine;
    use crate::images::event::Recorder;

    fn layer(number: usize) -> Vec<u8> {
        let mut layer = tar::Builder::new(Vec::new());
        let content = number.to_le_bytes().repeat(16 * 1024);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        layer
            .append_data(&mut header, "file", content.as_slice())
            .unwrap();
        layer.into_inner().unwrap()
    }

    /// More layers than the compressors and their queue hold, and more bytes than a pipe does.
    fn archive(path: &Path) -> Vec<Sha256Digest> {
        let count = 3 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 3;
        let mut archive = tar::Builder::new(File::create(path).unwrap());
        let layers = (0..count).map(|number| {
            let content = layer(number);
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            let path = format!("{number}/layer.tar");
            archive
                .append_data(&mut header, path, content.as_slice())
                .unwrap();
            Sha256Digest::of(&content)
        });
        let layers = layers.collect();
        archive.finish().unwrap();
        layers
    }

    #[test]
    fn compressors_that_all_failed_stop_the_reader() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("archive");
        archive(&path);
        std::fs::create_dir(root.path().join("temporary")).unwrap();
        let export = Export {
            store: LayerStore::new(root.path()),
            image: "app".to_owned(),
            component: "app".to_owned(),
            reporter: Arc::new(Recorder::default()),
        };
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(export.run(File::open(path).unwrap())));
        let result = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        // There is no folder for what they make.
        let error = result.unwrap_err();
        assert!(matches!(error, LayerError::Cache { .. }), "{error:?}");
    }

    #[test]
    fn a_layer_in_zstd_is_called_so() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("archive");
        let mut archive = tar::Builder::new(File::create(&path).unwrap());
        let content = [ZSTD.as_slice(), &[0; 600]].concat();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        let name = "blobs/sha256/1";
        archive
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
        archive.finish().unwrap();
        std::fs::create_dir(root.path().join("temporary")).unwrap();
        let export = Export {
            store: LayerStore::new(root.path()),
            image: "app".to_owned(),
            component: "app".to_owned(),
            reporter: Arc::new(Recorder::default()),
        };
        let text = export.run(File::open(path).unwrap()).unwrap_err();
        let text = text.to_string();
        assert!(text.contains("app"), "{text}");
        assert!(text.contains("zstd"), "{text}");
    }

    #[tokio::test]
    async fn a_cache_that_cannot_be_written_is_not_taken_for_a_broken_pipe() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("archive");
        let store = LayerStore::new(root.path());
        for layer in archive(&path) {
            std::fs::create_dir_all(store.layer_record(&layer)).unwrap();
        }
        let engine = Engine::script(root.path(), &format!("exec cat {}", path.display()));
        let error = store
            .export(&engine, "app", "app", Arc::new(Recorder::default()))
            .await
            .unwrap_err();
        assert!(matches!(error, LayerError::Cache { .. }), "{error:?}");
    }
}
