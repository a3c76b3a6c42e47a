//! The [`Registry`] that speaks HTTP.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Method, RequestBuilder, Response};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::Mutex;
use tokio_util::io::ReaderStream;
use url::Url;

use oci_distribution::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};

use super::auth::{Authorization, State, TokenSource, advice};
use super::credentials::Credential;
use super::meter::Meter;
use super::{Blob, BlobSource, Mount, RawManifest, Registry, RegistryError, Session};
use crate::images::hash::Sha256Digest;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a registry may stay silent.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// How much of a layer is read ahead of the socket.
const READ_BUFFER: usize = 256 * 1024;
/// The largest manifest the distribution specification asks registries to take, in bytes.
const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;
/// Media type of a blob in transit.
const OCTETS: &str = "application/octet-stream";
/// Digest of a manifest.
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";

/// Where a registry is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Base URL, e.g. `https://registry-1.docker.io/`.
    pub url: Url,
}

impl Endpoint {
    /// The endpoint of a registry's name in references. Plain HTTP is for loopback, or where `plain_http` is asked for.
    pub fn of(registry: &str, plain_http: bool) -> Result<Self, RegistryError> {
        let host = match registry {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        };
        let invalid = |reason: String| RegistryError::Protocol {
            operation: format!("using registry `{registry}`"),
            reason,
        };
        let secure =
            Url::parse(&format!("https://{host}/")).map_err(|error| invalid(error.to_string()))?;
        if !plain_http && !is_loopback(&secure) {
            return Ok(Self { url: secure });
        }
        let url =
            Url::parse(&format!("http://{host}/")).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { url })
    }

    /// Host and port.
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url
            .port()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// A registry over HTTP.
pub struct HttpRegistry {
    client: reqwest::Client,
    endpoint: Endpoint,
    credential: Option<Credential>,
    meter: Arc<Meter>,
    state: Mutex<State>,
    /// The repositories of this run, for one token that serves them all.
    push_scopes: BTreeSet<String>,
}

impl HttpRegistry {
    /// A client of `endpoint`. `repositories` are those that the run may push to.
    pub fn new(
        endpoint: Endpoint,
        credential: Option<Credential>,
        repositories: impl IntoIterator<Item = String>,
        meter: Arc<Meter>,
    ) -> Result<Self, RegistryError> {
        // Taken already when another part of the program was first; both choose the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("orch/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT);
        if is_loopback(&endpoint.url) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|source| RegistryError::Connect {
            operation: "preparing the HTTP client".to_owned(),
            host: endpoint.host(),
            source,
        })?;
        let actions = if credential.is_some() {
            "pull,push"
        } else {
            "pull"
        };
        let push_scopes = repositories
            .into_iter()
            .map(|name| format!("repository:{name}:{actions}"))
            .collect();
        Ok(Self {
            client,
            endpoint,
            credential,
            meter,
            state: Mutex::default(),
            push_scopes,
        })
    }

    /// Does a registry answer within `timeout`? Any answer counts, 401 included.
    pub async fn answers(&self, timeout: Duration) -> bool {
        let Ok(url) = self.endpoint.url.join("v2/") else {
            return false;
        };
        self.meter.request();
        match self.client.get(url).timeout(timeout).send().await {
            Ok(response) => response
                .headers()
                .contains_key("docker-distribution-api-version"),
            Err(_) => false,
        }
    }

    fn url(&self, repository: &str, rest: &str) -> Result<Url, RegistryError> {
        let path = format!("v2/{repository}/{rest}");
        self.endpoint
            .url
            .join(&path)
            .map_err(|error| RegistryError::Protocol {
                operation: format!("asking for {path}"),
                reason: error.to_string(),
            })
    }

    fn token_source(&self) -> TokenSource<'_> {
        TokenSource {
            client: &self.client,
            credential: self.credential.as_ref(),
            meter: &self.meter,
            host: self.endpoint.url.host_str().unwrap_or_default(),
        }
    }

    /// Sends what `build` makes, with whatever authorisation the registry wants. `build` may be called twice.
    async fn send(
        &self,
        operation: &str,
        repository: &str,
        build: impl Fn() -> Result<RequestBuilder, RegistryError> + Send + Sync,
    ) -> Result<Response, RegistryError> {
        let source = self.token_source();
        let mut state = self.state.lock().await;
        if !state.asked {
            for scope in &self.push_scopes {
                state.want(scope.clone());
            }
            let response = self.execute(operation, build()?).await?;
            if response.status() != 401 {
                state.asked = true;
                return Ok(response);
            }
            if !state.challenged(response.headers()) {
                return Err(self.denied(operation, response).await);
            }
        }
        let prefix = format!("repository:{repository}:");
        if !self
            .push_scopes
            .iter()
            .any(|scope| scope.starts_with(&prefix))
        {
            state.want(format!("{prefix}pull"));
        }
        let authorization = state.authorization(&source).await?;
        drop(state);
        let response = self
            .execute(operation, authorize(build()?, &authorization))
            .await?;
        if response.status() != 401 {
            return Ok(response);
        }
        // The token expired on the way, or it did not cover this repository.
        let mut state = self.state.lock().await;
        if !state.challenged(response.headers()) {
            return Err(self.denied(operation, response).await);
        }
        let authorization = state.authorization(&source).await?;
        drop(state);
        let response = self
            .execute(operation, authorize(build()?, &authorization))
            .await?;
        if response.status() == 401 {
            Err(self.denied(operation, response).await)
        } else {
            Ok(response)
        }
    }

    async fn execute(
        &self,
        operation: &str,
        request: RequestBuilder,
    ) -> Result<Response, RegistryError> {
        self.meter.request();
        request.send().await.map_err(|source| {
            let (operation, host) = (operation.to_owned(), self.endpoint.host());
            let source = source.without_url();
            if source.is_connect() {
                RegistryError::Connect {
                    operation,
                    host,
                    source,
                }
            } else {
                RegistryError::Interrupted {
                    operation,
                    host,
                    source,
                }
            }
        })
    }

    async fn denied(&self, operation: &str, response: Response) -> RegistryError {
        let status = response.status();
        let message = error_message(response).await;
        RegistryError::Denied {
            operation: operation.to_owned(),
            host: self.endpoint.host(),
            reason: format!("{} {message}", status.as_u16())
                .trim_end()
                .to_owned(),
            advice: advice(self.credential.as_ref()),
        }
    }

    /// The answer if its status is one of `expected`, otherwise the error it stands for.
    async fn expect(
        &self,
        operation: &str,
        response: Response,
        expected: &[u16],
    ) -> Result<Response, RegistryError> {
        let status = response.status().as_u16();
        if expected.contains(&status) {
            return Ok(response);
        }
        if status == 403 {
            return Err(self.denied(operation, response).await);
        }
        Err(status_error(operation.to_owned(), response).await)
    }

    fn session(
        &self,
        operation: &str,
        repository: &str,
        headers: &HeaderMap,
    ) -> Result<Session, RegistryError> {
        let protocol = |reason: &str| RegistryError::Protocol {
            operation: operation.to_owned(),
            reason: reason.to_owned(),
        };
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location
            .ok_or_else(|| protocol("the registry opened an upload without saying where"))?;
        let location =
            self.endpoint.url.join(location).map_err(|_| {
                protocol("the registry opened an upload at something that is no URL")
            })?;
        // A registry that answers over TLS does not get to move a layer, or the token with it, to a plain connection.
        if self.endpoint.url.scheme() == "https" && location.scheme() != "https" {
            return Err(protocol("the registry wants to continue without TLS"));
        }
        Ok(Session {
            location,
            repository: repository.to_owned(),
        })
    }
}

fn authorize(request: RequestBuilder, authorization: &Authorization) -> RequestBuilder {
    match authorization {
        Authorization::None => request,
        Authorization::Basic(username, secret) => {
            request.basic_auth(username.as_str(), Some(secret.as_str()))
        }
        Authorization::Bearer(token) => request.bearer_auth(token.as_str()),
    }
}

/// The error that an unexpected answer stands for.
pub(super) async fn status_error(operation: String, response: Response) -> RegistryError {
    let status = response.status().as_u16();
    let header = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let retry_after = header
        .and_then(|value| value.trim().parse().ok())
        .map(Duration::from_secs);
    RegistryError::Status {
        operation,
        status,
        message: error_message(response).await,
        retry_after,
    }
}

/// The codes and messages of the distribution specification's error body, or the status in words.
async fn error_message(response: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Problem>,
    }
    #[derive(serde::Deserialize)]
    struct Problem {
        code: Option<String>,
        message: Option<String>,
    }
    let words = response
        .status()
        .canonical_reason()
        .unwrap_or_default()
        .to_owned();
    let Ok(body) = read_limited(response, 64 * 1024).await else {
        return words;
    };
    let Ok(parsed) = serde_json::from_slice::<Errors>(&body) else {
        return words;
    };
    let problems = parsed.errors.into_iter().map(|problem| {
        [problem.code, problem.message]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(": ")
    });
    let joined = problems.collect::<Vec<_>>().join("; ");
    if joined.is_empty() { words } else { joined }
}

async fn read_limited(mut response: Response, limit: usize) -> Result<Bytes, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > limit {
            body.truncate(limit);
            break;
        }
    }
    Ok(body.into())
}

/// `length` bytes of a blob from `offset`, opened when the connection asks for them and counted as they leave.
fn body(blob: &Blob, offset: u64, length: u64, meter: Arc<Meter>) -> reqwest::Body {
    let progress = blob.progress.clone();
    let count = move |chunk: &std::io::Result<Bytes>| {
        let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        meter.sent(bytes);
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
    value
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64)
        .map(|_| value.to_owned())
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
        let response = self
            .send(&operation, repository, || {
                Ok(accept(self.client.head(url.clone())))
            })
            .await?;
        if response.status() == 404 {
            return Ok(None);
        }
        let response = self.expect(&operation, response, &[200]).await?;
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
        let response = self
            .send(&operation, repository, || {
                Ok(accept(self.client.get(url.clone())))
            })
            .await?;
        if response.status() == 404 {
            return Ok(None);
        }
        let response = self.expect(&operation, response, &[200]).await?;
        let header = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let media_type = header.unwrap_or(OCI_IMAGE_MEDIA_TYPE).to_owned();
        let bytes = read_limited(response, MANIFEST_LIMIT)
            .await
            .map_err(|source| RegistryError::Interrupted {
                operation: operation.clone(),
                host: self.endpoint.host(),
                source,
            })?;
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
    ) -> Result<(), RegistryError> {
        let operation = format!("storing {repository} {reference}");
        let url = self.url(repository, &format!("manifests/{reference}"))?;
        let build = || {
            self.meter.sent(manifest.bytes.len() as u64);
            let request = self
                .client
                .put(url.clone())
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
            _ => Ok(()),
        }
    }

    async fn head_blob(&self, repository: &str, digest: &str) -> Result<bool, RegistryError> {
        let operation = format!("looking for blob {digest} in {repository}");
        let url = self.url(repository, &format!("blobs/{digest}"))?;
        let response = self
            .send(&operation, repository, || Ok(self.client.head(url.clone())))
            .await?;
        if response.status() == 404 {
            return Ok(false);
        }
        self.expect(&operation, response, &[200])
            .await
            .map(|_| true)
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
        let build = || Ok(self.client.post(url.clone()).header(CONTENT_LENGTH, 0));
        let response = self.send(&operation, repository, build).await?;
        let response = self.expect(&operation, response, &[201, 202]).await?;
        if response.status() == 201 {
            return Ok(Mount::Mounted);
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
        let build = || Ok(self.client.post(url.clone()).header(CONTENT_LENGTH, 0));
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
        let build = || {
            let request = self.client.request(Method::PATCH, session.location.clone());
            let request = request
                .header(CONTENT_TYPE, OCTETS)
                .header(CONTENT_LENGTH, length);
            let body = body(blob, offset, length, Arc::clone(&self.meter));
            Ok(request.header(CONTENT_RANGE, &range).body(body))
        };
        let response = self.send(&operation, &session.repository, build).await?;
        let response = self.expect(&operation, response, &[202]).await?;
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
        if response.status() == 404 {
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
        let received = if last == 0 { 0 } else { last + 1 };
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
        let build = || {
            let request = self.client.put(url.clone()).header(CONTENT_TYPE, OCTETS);
            if !with_body {
                return Ok(request.header(CONTENT_LENGTH, 0));
            }
            let body = body(blob, 0, blob.size, Arc::clone(&self.meter));
            Ok(request.header(CONTENT_LENGTH, blob.size).body(body))
        };
        let response = self.send(&operation, &session.repository, build).await?;
        self.expect(&operation, response, &[201, 204])
            .await
            .map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_or_on_request() {
        let scheme = |registry, plain| Endpoint::of(registry, plain).unwrap().url.to_string();
        assert_eq!(scheme("docker.io", false), "https://registry-1.docker.io/");
        assert_eq!(scheme("127.0.0.1:5000", false), "http://127.0.0.1:5000/");
        assert_eq!(scheme("localhost:5000", false), "http://localhost:5000/");
        assert_eq!(scheme("[::1]:5000", false), "http://[::1]:5000/");
        assert_eq!(scheme("10.0.0.1:5000", false), "https://10.0.0.1:5000/");
        assert_eq!(scheme("10.0.0.1:5000", true), "http://10.0.0.1:5000/");
        assert_eq!(
            scheme("localhost.example.org", false),
            "https://localhost.example.org/"
        );
        assert!(Endpoint::of("not a host", false).is_err());
    }
}
