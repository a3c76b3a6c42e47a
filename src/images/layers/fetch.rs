//! Layers that only the registry has: into the cache, compared with their digest, in pieces that fit into memory.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use futures::TryStreamExt;
use sha2::{Digest, Sha256};

use super::{LayerError, LayerStore};
use crate::images::ImageError;
use crate::images::event::Reporter;
use crate::images::hash::is_digest;
use crate::images::registry::retry::Policy;
use crate::images::registry::{Registry, RegistryError};

impl LayerStore {
    /// The file that holds a layer of `repository`, sent for if the cache lacks it.
    pub async fn fetch(
        &self,
        registry: &dyn Registry,
        repository: &str,
        (digest, size): (&str, u64),
        policy: Policy,
        reporter: &dyn Reporter,
    ) -> Result<PathBuf, ImageError> {
        if !is_digest(digest) {
            let reason = "its manifest gives that as a layer's digest, and only `sha256:` with 64 hexadecimal digits is read: \
                          build and push the image again";
            return Err(RegistryError::Protocol {
                operation: format!("reading layer {digest:?} of {repository}"),
                reason: reason.to_owned(),
            }
            .into());
        }
        let path = self.blob(digest);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == size) {
            return Ok(path);
        }
        for folder in ["blobs", "temporary"] {
            let path = self.root.join(folder);
            fs::create_dir_all(&path).map_err(|source| LayerError::Cache { path, source })?;
        }
        // A stream that broke cannot be gone on with, so it is asked for anew as a whole.
        let mut attempt = 1;
        loop {
            match self.receive(registry, repository, digest, size).await {
                Err(ImageError::Registry(error)) => policy.wait(attempt, error, reporter).await?,
                other => return other.map(|()| path),
            }
            attempt += 1;
        }
    }

    async fn receive(
        &self,
        registry: &dyn Registry,
        repository: &str,
        digest: &str,
        size: u64,
    ) -> Result<(), ImageError> {
        let protocol = |reason: String| RegistryError::Protocol {
            operation: format!("reading layer {digest} of {repository}"),
            reason,
        };
        let stream = registry.get_blob(repository, digest).await?;
        let mut stream = stream.ok_or_else(|| {
            protocol("the registry does not have it: run `orch images push`".to_owned())
        })?;
        let mut file = self.temporary()?;
        let cache = |source| LayerError::Cache {
            path: self.blob(digest),
            source,
        };
        let mut hasher = Sha256::new();
        let mut received = 0_u64;
        while let Some(chunk) = stream.try_next().await? {
            received = received.saturating_add(chunk.len() as u64);
            if received > size {
                let reason = format!(
                    "the registry sends more than the {size} bytes that its manifest gives: build and push the image again"
                );
                return Err(protocol(reason).into());
            }
            hasher.update(&chunk);
            file.write_all(&chunk).map_err(cache)?;
        }
        let found = format!("sha256:{}", hex::encode(hasher.finalize()));
        if found != digest {
            return Err(protocol(format!("its bytes have digest {found}")).into());
        }
        file.as_file().sync_all().map_err(cache)?;
        file.persist(self.blob(digest))
            .map_err(|error| cache(error.error))?;
        Ok(())
    }
}
