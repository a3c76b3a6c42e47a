//! The distribution specification's requests, one method each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use oci_distribution::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE};
use reqwest::{Method, RequestBuilder};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::page::{LIMITS, List};
use super::{HttpRegistry, read_limited};
use crate::images::hash::{Sha256Digest, is_digest};
use crate::images::registry::meter::Meter;
use crate::images::registry::{
    Blob, BlobSource, BlobStream, Descriptor, Mount, RawManifest, Registry, RegistryError, Session,
    Stored,
};

/// How much of a layer is read ahead of the socket.
const READ_BUFFER: usize = 256 * 1024;
/// The largest manifest the distribution specification asks registries to take, in bytes.
const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;
/// Media type of a blob in transit.
const OCTETS: &str = "application/octet-stream";
/// Digest of a manifest.
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";
/// Digest of the manifest whose referrers the registry has just added to.
const OCI_SUBJECT: &str = "oci-subject";

/// `length` bytes of a blob from `offset`, opened when the connection asks for them and counted as they leave.
fn body(
    blob: &Blob,
    offset: u64,
    length: u64,
    meter: Arc<Meter>,
    moved: Arc<AtomicU64>,
) -> reqwest::Body {
    let progress = blob.progress.clone();
    let count = move |chunk: &std::io::Result<Bytes>| {
        let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        meter.sent(bytes);
        moved.fetch_add(bytes, Ordering::Relaxed);
        if let Some(progress) = &progress {
            progress(bytes);
        }
    };
    match blob.source.clone() {
        BlobSource::Memory(bytes) => {
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            let end = start
                .saturating_add(usize::try_from(length).unwrap_or(usize::MAX))
                .min(bytes.len());
            let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes.slice(start..end))]);
            reqwest::Body::wrap_stream(stream.inspect(count))
        }
        BlobSource::File(path) => {
            let open = async move {
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(std::io::SeekFrom::Start(offset)).await?;
                Ok::<_, std::io::Error>(ReaderStream::with_capacity(file.take(length), READ_BUFFER))
            };
            reqwest::Body::wrap_stream(futures::stream::once(open).try_flatten().inspect(count))
        }
    }
}

fn accept(request: RequestBuilder) -> RequestBuilder {
    let types = [
        OCI_IMAGE_MEDIA_TYPE,
        OCI_IMAGE_INDEX_MEDIA_TYPE,
        IMAGE_MANIFEST_MEDIA_TYPE,
        IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    ];
    types.iter().fold(request, |request, media_type| {
        request.header(ACCEPT, *media_type)
    })
}

fn digest_header(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(DOCKER_CONTENT_DIGEST)?.to_str().ok()?;
    is_digest(value).then(|| value.to_owned())
}

#[async_trait]
impl Registry for HttpRegistry {
    async fn head_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<String>, RegistryError> {
        let operation = format!("looking for {repository} {reference}");
        let url = self.url(repository, &format!("manifests/{reference}"))?;
        let build = || Ok(accept(self.client.head(url.clone())));
        let Some(response) = self.find(&operation, repository, &[404], build).await? else {
            return Ok(None);
        };
        match digest_header(response.headers()) {
            Some(digest) => Ok(Some(digest)),
            // Optional in the specification: the manifest itself has to be hashed then.
            None => Ok(self
                .get_manifest(repository, reference)
                .await?
                .map(|manifest| manifest.digest())),
        }
    }

    async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<RawManifest>, RegistryError> {
        let operation = format!("getting {repository} {reference}");
        let url = self.url(repository, &format!("manifests/{reference}"))?;
        let build = || Ok(accept(self.client.get(url.clone())));
        let Some(response) = self.find(&operation, repository, &[404], build).await? else {
            return Ok(None);
        };
        let header = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let media_type = header.unwrap_or(OCI_IMAGE_MEDIA_TYPE).to_owned();
        let bytes = read_limited(response, MANIFEST_LIMIT).await;
        let bytes = bytes.map_err(|source| self.interrupted(&operation, source))?;
        if reference.starts_with("sha256:") && Sha256Digest::of(&bytes).to_string() != reference {
            let reason = format!(
                "the registry's answer has digest {}",
                Sha256Digest::of(&bytes)
            );
            return Err(RegistryError::Protocol { operation, reason });
        }
        Ok(Some(RawManifest { media_type, bytes }))
    }

    async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: &RawManifest,
    ) -> Result<Stored, RegistryError> {
        let operation = format!("storing {repository} {reference}");
        let url = self.url(repository, &format!("manifests/{reference}"))?;
        let build = || {
            self.meter.sent(manifest.bytes.len() as u64);
            let request = self
                .change(Method::PUT, &url)
                .header(CONTENT_TYPE, &manifest.media_type);
            Ok(request.body(manifest.bytes.clone()))
        };
        let response = self.send(&operation, repository, build).await?;
        let response = self.expect(&operation, response, &[200, 201, 202]).await?;
        match digest_header(response.headers()) {
            Some(stored) if stored != manifest.digest() => Err(RegistryError::Protocol {
                operation,
                reason: format!(
                    "the registry stored {stored} where {} was sent",
                    manifest.digest()
                ),
            }),
            _ => {
                let subject = response.headers().get(OCI_SUBJECT);
                let subject = subject
                    .and_then(|value| value.to_str().ok())
                    .filter(|value| is_digest(value));
                Ok(Stored {
                    subject: subject.map(str::to_owned),
                })
            }
        }
    }

    async fn referrers(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        #[derive(serde::Deserialize)]
        struct Index {
            manifests: Vec<Descriptor>,
        }
        let list = List {
            operation: &format!("listing what refers to {repository}@{digest}"),
            repository,
            url: self.url(repository, &format!("referrers/{digest}"))?,
            accept: OCI_IMAGE_INDEX_MEDIA_TYPE,
            // A registry from before version 1.1 of the specification does not know the path. What it makes of it differs:
            // Artifactory answers 406, GitHub's sends us to its website, others show a page of their own.
            absent: &[400, 404, 405, 406],
            optional: true,
        };
        let pages = self.pages::<Index>(list, LIMITS).await?;
        Ok(pages.map(|pages| {
            let entries = pages.into_iter().flat_map(|page| page.manifests);
            // What lies under another algorithm's sum is not orch's, and what is no sum at all must not get into a URL.
            entries.filter(|entry| is_digest(&entry.digest)).collect()
        }))
    }

    async fn head_blob(&self, repository: &str, digest: &str) -> Result<bool, RegistryError> {
        let operation = format!("looking for blob {digest} in {repository}");
        let url = self.url(repository, &format!("blobs/{digest}"))?;
        let build = || Ok(self.client.head(url.clone()));
        let found = self.find(&operation, repository, &[404], build).await?;
        Ok(found.is_some())
    }

    async fn get_blob(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<BlobStream>, RegistryError> {
        let operation = format!("reading blob {digest} of {repository}");
        let url = self.url(repository, &format!("blobs/{digest}"))?;
        let build = || Ok(self.client.get(url.clone()));
        let Some(response) = self.find(&operation, repository, &[404], build).await? else {
            return Ok(None);
        };
        let host = self.endpoint.host();
        let stream = response.bytes_stream().map_err(move |source| {
            let (operation, host) = (operation.clone(), host.clone());
            RegistryError::Interrupted {
                operation,
                host,
                source: source.without_url(),
            }
        });
        Ok(Some(stream.boxed()))
    }

    async fn mount_blob(
        &self,
        repository: &str,
        digest: &str,
        from: &str,
    ) -> Result<Mount, RegistryError> {
        let operation = format!("taking blob {digest} over from {from} into {repository}");
        let mut url = self.url(repository, "blobs/uploads/")?;
        url.query_pairs_mut()
            .append_pair("mount", digest)
            .append_pair("from", from);
        let build = || Ok(self.change(Method::POST, &url).header(CONTENT_LENGTH, 0));
        let source_scope = self.pull_scope(from);
        if let Some(scope) = &source_scope {
            self.state.lock().await.want(scope.clone());
        }
        let answer = match self.send(&operation, repository, build).await {
            Ok(response) => self.expect(&operation, response, &[201, 202, 404]).await,
            Err(error) => Err(error),
        };
        let response = match answer {
            Ok(response) => response,
            // Whether this repository may be written shows when the upload is opened, without the other one in the token.
            Err(RegistryError::Denied { .. }) => {
                if let Some(scope) = &source_scope {
                    self.state.lock().await.do_without(scope);
                }
                return Ok(Mount::Refused);
            }
            Err(error) => return Err(error),
        };
        match response.status().as_u16() {
            201 => return Ok(Mount::Mounted),
            404 => return Ok(Mount::Refused),
            _ => {}
        }
        Ok(Mount::Session(self.session(
            &operation,
            repository,
            response.headers(),
        )?))
    }

    async fn start_upload(&self, repository: &str) -> Result<Session, RegistryError> {
        let operation = format!("opening an upload to {repository}");
        let url = self.url(repository, "blobs/uploads/")?;
        let build = || Ok(self.change(Method::POST, &url).header(CONTENT_LENGTH, 0));
        let response = self.send(&operation, repository, build).await?;
        let response = self.expect(&operation, response, &[202]).await?;
        self.session(&operation, repository, response.headers())
    }

    async fn patch_upload(
        &self,
        session: &Session,
        blob: &Blob,
        offset: u64,
        length: u64,
    ) -> Result<Session, RegistryError> {
        let operation = format!("sending blob {} to {}", blob.digest, session.repository);
        let range = format!("{offset}-{}", (offset + length).saturating_sub(1));
        let moved = Arc::<AtomicU64>::default();
        let build = || {
            let request = self
                .changes
                .request(Method::PATCH, session.location.clone());
            let request = request
                .header(CONTENT_TYPE, OCTETS)
                .header(CONTENT_LENGTH, length);
            let (meter, moved) = (Arc::clone(&self.meter), Arc::clone(&moved));
            let body = body(blob, offset, length, meter, moved);
            Ok(request.header(CONTENT_RANGE, &range).body(body))
        };
        let sent = async {
            let response = self.send(&operation, &session.repository, build).await?;
            self.expect(&operation, response, &[202]).await
        };
        let response = self.while_moving(&operation, &moved, sent).await?;
        self.session(&operation, &session.repository, response.headers())
    }

    async fn upload_status(
        &self,
        session: &Session,
    ) -> Result<Option<(Session, u64)>, RegistryError> {
        let operation = format!(
            "asking {} how much of an upload arrived",
            session.repository
        );
        let build = || Ok(self.client.get(session.location.clone()));
        let response = self.send(&operation, &session.repository, build).await?;
        // The CNCF registry gives up an upload whose session is older than what it kept of a broken piece: with 404, from version 3
        // on with 416.
        if matches!(response.status().as_u16(), 404 | 416) {
            return Ok(None);
        }
        let response = self.expect(&operation, response, &[204]).await?;
        let range = response
            .headers()
            .get(RANGE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("0-0");
        let last: u64 = range
            .rsplit('-')
            .next()
            .and_then(|last| last.parse().ok())
            .unwrap_or_default();
        // `0-0` stands for nothing as well as for one byte; nothing is the safe reading.
        let received = if last == 0 { 0 } else { last.saturating_add(1) };
        Ok(Some((
            self.session(&operation, &session.repository, response.headers())?,
            received,
        )))
    }

    async fn finish_upload(
        &self,
        session: &Session,
        blob: &Blob,
        with_body: bool,
    ) -> Result<(), RegistryError> {
        let operation = format!("completing blob {} in {}", blob.digest, session.repository);
        let mut url = session.location.clone();
        url.query_pairs_mut().append_pair("digest", &blob.digest);
        let moved = Arc::<AtomicU64>::default();
        let build = || {
            let request = self.changes.put(url.clone()).header(CONTENT_TYPE, OCTETS);
            if !with_body {
                return Ok(request.header(CONTENT_LENGTH, 0));
            }
            let (meter, moved) = (Arc::clone(&self.meter), Arc::clone(&moved));
            let body = body(blob, 0, blob.size, meter, moved);
            Ok(request.header(CONTENT_LENGTH, blob.size).body(body))
        };
        let sent = async {
            let response = self.send(&operation, &session.repository, build).await?;
            self.expect(&operation, response, &[201, 204]).await
        };
        self.while_moving(&operation, &moved, sent)
            .await
            .map(|_| ())
    }

    async fn list_tags(&self, repository: &str) -> Result<Option<Vec<String>>, RegistryError> {
        self.tags(repository).await
    }

    async fn delete_manifest(&self, repository: &str, digest: &str) -> Result<bool, RegistryError> {
        self.delete(repository, digest).await
    }
}
