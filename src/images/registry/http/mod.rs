//! The [`super::Registry`] that speaks HTTP: connections, authorisation, errors. The requests themselves are in [`requests`].

mod collect;
mod endpoint;
mod page;
mod requests;
#[cfg(test)]
mod tests;
mod trust;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, Response};
use tokio::sync::Mutex;
use url::Url;

pub use endpoint::Endpoint;
use endpoint::is_loopback;
use trust::Trust;

use super::auth::{Authorization, State, TokenSource, advice};
use super::credentials::Credential;
use super::meter::Meter;
use super::{RegistryError, Session};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a registry may stay silent, or take nothing of what is sent to it.
const SILENCE: Duration = Duration::from_secs(120);

/// Redirects that one request may follow.
const MOST_REDIRECTS: usize = 5;

/// A registry over HTTP.
pub struct HttpRegistry {
    client: reqwest::Client,
    /// For requests that change something. It has no read timeout, because that also runs while a body is sent, however well
    /// that goes.
    ///
    /// It follows no redirect: a PUT or DELETE that is sent on becomes a GET, whose success says nothing. A body that is
    /// streamed could not be sent again elsewhere, and one with a secret must not be.
    changes: reqwest::Client,
    silence: Duration,
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
        Self::with_silence(endpoint, credential, repositories, meter, SILENCE)
    }

    fn with_silence(
        endpoint: Endpoint,
        credential: Option<Credential>,
        repositories: impl IntoIterator<Item = String>,
        meter: Arc<Meter>,
        silence: Duration,
    ) -> Result<Self, RegistryError> {
        // Taken already when another part of the program was first; both choose the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let trust = if endpoint.url.scheme() == "https" {
            let file = endpoint.ca_file.as_deref();
            Trust::read(&endpoint.name, file, &trust::folders())?
        } else {
            Trust::default()
        };
        let builder = || {
            let builder = trust
                .apply(reqwest::Client::builder())
                .user_agent(concat!("orch/", env!("CARGO_PKG_VERSION")))
                .redirect(redirects())
                .connect_timeout(CONNECT_TIMEOUT);
            if is_loopback(&endpoint.url) {
                builder.no_proxy()
            } else {
                builder
            }
        };
        let failed = |source| RegistryError::Connect {
            operation: "preparing the HTTP client".to_owned(),
            host: endpoint.host(),
            source,
        };
        let client = builder().read_timeout(silence).build().map_err(failed)?;
        let changes = builder().redirect(reqwest::redirect::Policy::none());
        // Nothing leads away from it, so what the system trusts need not be read for a registry without TLS.
        let changes = if endpoint.url.scheme() == "https" {
            changes
        } else {
            changes.tls_certs_only([])
        };
        let changes = changes.build().map_err(failed)?;
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
            changes,
            silence,
            endpoint,
            credential,
            meter,
            state: Mutex::default(),
            push_scopes,
        })
    }

    /// Does a registry answer within `timeout`? Any answer counts, 401 included.
    pub async fn answers(&self, timeout: Duration) -> bool {
        self.probe(timeout).await.is_some()
    }

    /// The header fields that a registry answers with within `timeout`.
    pub async fn probe(&self, timeout: Duration) -> Option<HeaderMap> {
        let url = self.endpoint.url.join("v2/").ok()?;
        self.meter.request();
        let response = self.client.get(url).timeout(timeout).send().await.ok()?;
        let is_registry = response
            .headers()
            .contains_key("docker-distribution-api-version");
        is_registry.then(|| response.headers().clone())
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

    /// What has to be asked for to read `repository`; nothing if the run's own scopes cover it.
    fn pull_scope(&self, repository: &str) -> Option<String> {
        let prefix = format!("repository:{repository}:");
        let covered = self
            .push_scopes
            .iter()
            .any(|scope| scope.starts_with(&prefix));
        (!covered).then(|| format!("{prefix}pull"))
    }

    fn token_source(&self) -> TokenSource<'_> {
        TokenSource {
            client: &self.client,
            forms: &self.changes,
            credential: self.credential.as_ref(),
            meter: &self.meter,
            host: self.endpoint.url.host_str().unwrap_or_default(),
            secure: self.endpoint.url.scheme() == "https",
        }
    }

    /// Sends what `build` makes, with whatever authorisation the registry wants. `build` may be called three times.
    ///
    /// An upload may go on at another host, which says in its URL all that it needs: it is not told who we are.
    async fn send(
        &self,
        operation: &str,
        repository: &str,
        build: impl Fn() -> Result<RequestBuilder, RegistryError> + Send + Sync,
    ) -> Result<Response, RegistryError> {
        let first = self.prepare(operation, build()?)?;
        if !self.is_at_home(first.1.url()) {
            let response = self.execute(operation, first).await?;
            if response.status() == 401 {
                return Err(self.denied(operation, response).await);
            }
            return Ok(response);
        }
        let source = self.token_source();
        let mut state = self.state.lock().await;
        let mut first = Some(first);
        if !state.asked {
            for scope in &self.push_scopes {
                state.want(scope.clone());
            }
            if let Some(request) = first.take() {
                let response = self.execute(operation, request).await?;
                if response.status() != 401 {
                    state.asked = true;
                    return Ok(response);
                }
                if !state.challenged(response.headers()) {
                    return Err(self.denied(operation, response).await);
                }
            }
        }
        if let Some(scope) = self.pull_scope(repository) {
            state.want(scope);
        }
        let authorization = state.authorization(&source).await?;
        drop(state);
        let request = match first {
            Some((client, request)) => RequestBuilder::from_parts(client, request),
            None => build()?,
        };
        let request = self.prepare(operation, authorize(request, &authorization))?;
        let response = self.execute(operation, request).await?;
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
        let request = self.prepare(operation, authorize(build()?, &authorization))?;
        let response = self.execute(operation, request).await?;
        if response.status() == 401 {
            Err(self.denied(operation, response).await)
        } else {
            Ok(response)
        }
    }

    /// Looks for something: the answer, or nothing where its status is one of `absent`.
    async fn find(
        &self,
        operation: &str,
        repository: &str,
        absent: &[u16],
        build: impl Fn() -> Result<RequestBuilder, RegistryError> + Send + Sync,
    ) -> Result<Option<Response>, RegistryError> {
        let response = self.send(operation, repository, build).await?;
        if absent.contains(&response.status().as_u16()) {
            return Ok(None);
        }
        self.expect(operation, response, &[200]).await.map(Some)
    }

    /// A request that changes something, without a body that takes long.
    fn change(&self, method: Method, url: &Url) -> RequestBuilder {
        self.changes
            .request(method, url.clone())
            .timeout(self.silence)
    }

    /// Is the URL one of this registry itself? Only those are told who we are.
    fn is_at_home(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.url.origin()
    }

    fn prepare(&self, operation: &str, request: RequestBuilder) -> Result<Prepared, RegistryError> {
        let (client, request) = request.build_split();
        let request = request.map_err(|source| self.broken(operation, source))?;
        Ok((client, request))
    }

    /// Waits for `work` as long as `moved` grows.
    async fn while_moving<T>(
        &self,
        operation: &str,
        moved: &AtomicU64,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let mut work = pin!(work);
        loop {
            let before = moved.load(Ordering::Relaxed);
            match tokio::time::timeout(self.silence, &mut work).await {
                Ok(result) => return result,
                Err(_) if moved.load(Ordering::Relaxed) != before => {}
                Err(_) => {
                    return Err(RegistryError::Silent {
                        operation: operation.to_owned(),
                        host: self.endpoint.host(),
                        seconds: self.silence.as_secs(),
                    });
                }
            }
        }
    }

    async fn execute(
        &self,
        operation: &str,
        (client, request): Prepared,
    ) -> Result<Response, RegistryError> {
        self.meter.request();
        let sent = client.execute(request).await;
        sent.map_err(|source| self.broken(operation, source))
    }

    /// The error that a request without an answer stands for.
    fn broken(&self, operation: &str, source: reqwest::Error) -> RegistryError {
        broken(operation, &self.endpoint.host(), source)
    }

    /// The error that an answer without an end stands for.
    fn interrupted(&self, operation: &str, source: reqwest::Error) -> RegistryError {
        RegistryError::Interrupted {
            operation: operation.to_owned(),
            host: self.endpoint.host(),
            source,
        }
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

/// A request and who sends it.
type Prepared = (reqwest::Client, reqwest::Request);

fn authorize(request: RequestBuilder, authorization: &Authorization) -> RequestBuilder {
    match authorization {
        Authorization::None => request,
        Authorization::Basic(username, secret) => {
            request.basic_auth(username.as_str(), Some(secret.as_str()))
        }
        Authorization::Bearer(token) => request.bearer_auth(token.as_str()),
    }
}

/// The error that a request without an answer stands for.
pub(super) fn broken(operation: &str, host: &str, source: reqwest::Error) -> RegistryError {
    let (operation, host) = (operation.to_owned(), host.to_owned());
    if let Some(reason) = trust::complaint(&source, &host) {
        return RegistryError::Tls {
            operation,
            host,
            reason,
        };
    }
    if source.is_redirect() {
        let reason = format!("{host} sends us on too often, or to where there is no TLS");
        return RegistryError::Protocol { operation, reason };
    }
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
}

/// Blobs may lie elsewhere, but never on the other side of a connection without TLS if the registry itself has it. The client
/// leaves our credentials out wherever the host changes. Lists of referrers do not lie elsewhere: a registry that keeps none may
/// send whoever asks to a website.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let leaves = |from: &Url| from.host_str() != attempt.url().host_str();
        let first = attempt.previous().first();
        if first.is_some_and(|first| asks_for_referrers(first) && leaves(first)) {
            return attempt.stop();
        }
        let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
        if was_secure && attempt.url().scheme() != "https" {
            return attempt.error("a redirect away from TLS");
        }
        if attempt.previous().len() > MOST_REDIRECTS {
            return attempt.error("too many redirects");
        }
        attempt.follow()
    })
}

fn asks_for_referrers(url: &Url) -> bool {
    // A repository may be called so as well, but the last part but one says what is asked for.
    let mut parts = url.path_segments().into_iter().flatten();
    parts.nth_back(1) == Some("referrers")
}

/// The error that an unexpected answer stands for.
pub(super) async fn status_error(operation: String, response: Response) -> RegistryError {
    let status = response.status().as_u16();
    let header = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let retry_after = header.and_then(|value| retry_after(&value, jiff::Timestamp::now()));
    let message = match sent_on_to(&response) {
        Some(host) => format!(
            "and sends us on to {host}, which only requests that read follow: if that is the registry's own name, use it"
        ),
        None => error_message(response).await,
    };
    RegistryError::Status {
        operation,
        status,
        message,
        retry_after,
    }
}

/// The host that a redirect names. The rest of its location may hold a secret.
fn sent_on_to(response: &Response) -> Option<String> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let url = response.url().join(location).ok()?;
    let host = url
        .host_str()
        .filter(|_| response.status().is_redirection())?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// `Retry-After` in either of its forms (RFC 9110): seconds, or a date.
fn retry_after(value: &str, now: jiff::Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    // A date that is over means now.
    Some(Duration::try_from(then.duration_since(now)).unwrap_or_default())
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

/// At most `limit` bytes of an answer.
pub(super) async fn read_limited(
    mut response: Response,
    limit: usize,
) -> Result<Bytes, reqwest::Error> {
    let mut body = Vec::new();
    // A blob's URL may hold a signature that opens it, wherever a redirect led.
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(reqwest::Error::without_url)?
    {
        body.extend_from_slice(&chunk);
        if body.len() > limit {
            body.truncate(limit);
            break;
        }
    }
    Ok(body.into())
}
