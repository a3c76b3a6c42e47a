//! A registry in this process that fails on demand, for the faults that a real one does not produce when asked.
//!
//! Speaks as much of the distribution specification over HTTP/1.1 as pushing needs, and keeps to its rules: an unknown blob in
//! a manifest, a wrong digest and a missing token are refused.

#![allow(dead_code, reason = "each test uses its part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What goes wrong, once, with the next request of this method whose path or query contains this text.
pub(crate) struct Fault {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) kind: FaultKind,
}

pub(crate) enum FaultKind {
    /// An answer with this status and these header lines.
    Status(u16, &'static str),
    /// An answer with this status, once the upload holds this many bytes.
    After(usize, u16),
    /// The connection closes after this many bytes of the body were read and kept.
    Cut(usize),
    /// The request is carried out and its answer is lost.
    LoseAnswer,
    /// Somebody else stores this manifest right after this request was answered.
    Overtake {
        repository: String,
        tag: String,
        manifest: Vec<u8>,
    },
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) faults: Vec<Fault>,
    /// `METHOD path` of every request.
    pub(crate) log: Vec<String>,
    /// Bytes of every blob by digest.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Digests by repository.
    pub(crate) holds: BTreeMap<String, BTreeSet<String>>,
    /// Bytes by `repository/reference`.
    pub(crate) manifests: BTreeMap<String, Vec<u8>>,
    /// `Authorization` values that are let in; empty lets everybody in.
    pub(crate) tokens: BTreeSet<String>,
    /// What the token server was told: `Authorization`, and the body of a form.
    pub(crate) logins: Vec<String>,
    /// `Authorization` of every request but those for tokens.
    pub(crate) authorizations: Vec<String>,
    /// What each token was asked for: scopes by `Authorization` value.
    scopes: BTreeMap<String, BTreeSet<String>>,
    uploads: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone)]
pub(crate) struct FakeRegistry {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) address: String,
}

struct Request {
    method: String,
    target: String,
    path: String,
    query: BTreeMap<String, String>,
    scopes: BTreeSet<String>,
    authorization: String,
    length: usize,
    chunked: bool,
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn answer(status: u16, headers: impl Into<String>, body: impl Into<Vec<u8>>) -> Answer {
    Answer {
        status,
        headers: headers.into(),
        body: body.into(),
    }
}

fn problem(status: u16, code: &str) -> Answer {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"as asked"}}]}}"#);
    answer(status, "", body)
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl FakeRegistry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Self {
            state: Arc::default(),
            address,
        };
        let served = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                tokio::spawn(async move { served.serve(stream).await });
            }
        });
        registry
    }

    pub(crate) fn fail(&self, method: &'static str, path: &'static str, kind: FaultKind) {
        self.state
            .lock()
            .unwrap()
            .faults
            .push(Fault { method, path, kind });
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub(crate) fn count(&self, start: &str) -> usize {
        self.log()
            .iter()
            .filter(|line| line.starts_with(start))
            .count()
    }

    async fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(request) = read_head(&mut stream).await {
            let line = format!("{} {}", request.method, request.path);
            let fault = {
                let mut state = self.state.lock().unwrap();
                state.log.push(line);
                let id = request.path.rsplit('/').next().unwrap_or_default();
                let held = state.uploads.get(id).map_or(0, Vec::len);
                let matches = |fault: &Fault| {
                    fault.method == request.method
                        && request.target.contains(fault.path)
                        && !matches!(fault.kind, FaultKind::After(bytes, _) if held < bytes)
                };
                let position = state.faults.iter().position(matches);
                position.map(|position| state.faults.remove(position).kind)
            };
            if let Some(FaultKind::Cut(count)) = fault {
                let mut part = vec![0; count.min(request.length)];
                stream.read_exact(&mut part).await.unwrap();
                let id = request
                    .path
                    .rsplit('/')
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                self.state
                    .lock()
                    .unwrap()
                    .uploads
                    .entry(id)
                    .or_default()
                    .extend(part);
                return;
            }
            let Some(body) = read_body(&mut stream, &request).await else {
                return;
            };
            let mut reply = match &fault {
                Some(FaultKind::Status(status, headers)) => answer(*status, *headers, ""),
                Some(FaultKind::After(_, status)) => answer(*status, "", ""),
                _ => self.handle(&request, body),
            };
            match fault {
                Some(FaultKind::LoseAnswer) => return,
                Some(FaultKind::Overtake {
                    repository,
                    tag,
                    manifest,
                }) => {
                    let mut state = self.state.lock().unwrap();
                    state.manifests.insert(
                        format!("{repository}/{}", digest(&manifest)),
                        manifest.clone(),
                    );
                    state
                        .manifests
                        .insert(format!("{repository}/{tag}"), manifest);
                }
                _ => {}
            }
            if request.method == "HEAD" {
                reply
                    .headers
                    .push_str(&format!("X-Length: {}\r\n", reply.body.len()));
                reply.body.clear();
            }
            let Answer {
                status,
                headers,
                body,
            } = reply;
            let length = if request.method == "HEAD" || status == 204 {
                String::new()
            } else {
                format!("Content-Length: {}\r\n", body.len())
            };
            let head = format!(
                "HTTP/1.1 {status} x\r\nDocker-Distribution-Api-Version: registry/2.0\r\n{headers}{length}\r\n"
            );
            if stream.write_all(head.as_bytes()).await.is_err()
                || stream.write_all(&body).await.is_err()
            {
                return;
            }
        }
    }

    fn handle(&self, request: &Request, body: Vec<u8>) -> Answer {
        let mut state = self.state.lock().unwrap();
        if request.path == "/token" {
            let token = format!(
                "token-{}",
                state
                    .log
                    .iter()
                    .filter(|line| line.ends_with("/token"))
                    .count()
            );
            let form = String::from_utf8_lossy(&body);
            let login = format!("{} {form}", request.authorization);
            state.logins.push(login);
            if request.authorization.is_empty() && form.is_empty() {
                return answer(401, "", "");
            }
            state.tokens.insert(format!("Bearer {token}"));
            state
                .scopes
                .insert(format!("Bearer {token}"), request.scopes.clone());
            return answer(
                200,
                "",
                format!(r#"{{"token":"{token}","expires_in":300}}"#),
            );
        }
        state.authorizations.push(request.authorization.clone());
        let let_in = state.tokens.contains(&request.authorization) && may_mount(&state, request);
        if !state.tokens.is_empty() && !let_in {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"fake\"\r\n",
                self.address
            );
            return answer(401, challenge, "");
        }
        let Some(rest) = request
            .path
            .strip_prefix("/v2/")
            .filter(|rest| !rest.is_empty())
        else {
            let version = "Docker-Distribution-Api-Version: registry/2.0\r\n";
            return answer(200, version, "{}");
        };
        if let Some((repository, reference)) = rest.split_once("/manifests/") {
            return manifests(&mut state, &request.method, repository, reference, body);
        }
        if let Some((repository, id)) = rest.split_once("/blobs/uploads/") {
            return uploads(&mut state, request, repository, id, &body);
        }
        if let Some((repository, digest)) = rest.split_once("/blobs/") {
            let held = state
                .holds
                .get(repository)
                .is_some_and(|blobs| blobs.contains(digest));
            return if held {
                answer(200, "", state.blobs[digest].clone())
            } else {
                problem(404, "BLOB_UNKNOWN")
            };
        }
        problem(404, "NOT_FOUND")
    }
}

/// A mount reads another repository, which the token must cover as well.
fn may_mount(state: &State, request: &Request) -> bool {
    let Some(from) = request.query.get("from") else {
        return true;
    };
    let readable = |scope: &String| {
        let actions = scope.strip_prefix(&format!("repository:{from}:"));
        actions.is_some_and(|actions| actions.split(',').any(|action| action == "pull"))
    };
    let scopes = state.scopes.get(&request.authorization);
    scopes.is_some_and(|scopes| scopes.iter().any(readable))
}

fn manifests(
    state: &mut State,
    method: &str,
    repository: &str,
    reference: &str,
    body: Vec<u8>,
) -> Answer {
    if method == "PUT" {
        let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let layers = parsed["layers"].as_array().cloned().unwrap_or_default();
        let mut blobs = layers
            .iter()
            .chain(parsed.get("config"))
            .filter_map(|blob| blob["digest"].as_str());
        let held = state.holds.get(repository).cloned().unwrap_or_default();
        if !blobs.all(|blob| held.contains(blob)) {
            return problem(400, "MANIFEST_BLOB_UNKNOWN");
        }
        let name = digest(&body);
        state
            .manifests
            .insert(format!("{repository}/{name}"), body.clone());
        state
            .manifests
            .insert(format!("{repository}/{reference}"), body);
        return answer(201, format!("Docker-Content-Digest: {name}\r\n"), "");
    }
    match state.manifests.get(&format!("{repository}/{reference}")) {
        Some(bytes) => {
            let parsed: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
            let kind = parsed["mediaType"].as_str();
            let kind = kind.unwrap_or("application/vnd.oci.image.manifest.v1+json");
            let headers = format!(
                "Docker-Content-Digest: {}\r\nContent-Type: {kind}\r\n",
                digest(bytes)
            );
            answer(200, headers, bytes.clone())
        }
        None => problem(404, "MANIFEST_UNKNOWN"),
    }
}

fn uploads(
    state: &mut State,
    request: &Request,
    repository: &str,
    id: &str,
    body: &[u8],
) -> Answer {
    let place = |id: &str| format!("Location: /v2/{repository}/blobs/uploads/{id}\r\n");
    match request.method.as_str() {
        "POST" => {
            let wanted = request.query.get("mount").zip(request.query.get("from"));
            if let Some((digest, from)) = wanted
                && state
                    .holds
                    .get(from)
                    .is_some_and(|blobs| blobs.contains(digest))
            {
                let held = state.holds.entry(repository.to_owned()).or_default();
                held.insert(digest.clone());
                return answer(201, "", "");
            }
            let id = format!("u{}", state.log.len());
            state.uploads.insert(id.clone(), Vec::new());
            answer(202, place(&id), "")
        }
        "GET" => match state.uploads.get(id) {
            Some(bytes) => answer(
                204,
                format!(
                    "{}Range: 0-{}\r\n",
                    place(id),
                    bytes.len().saturating_sub(1)
                ),
                "",
            ),
            None => problem(404, "BLOB_UPLOAD_UNKNOWN"),
        },
        "PATCH" => match state.uploads.get_mut(id) {
            Some(bytes) => {
                bytes.extend_from_slice(body);
                answer(202, place(id), "")
            }
            None => problem(404, "BLOB_UPLOAD_UNKNOWN"),
        },
        "PUT" => {
            let Some(mut bytes) = state.uploads.remove(id) else {
                return problem(404, "BLOB_UPLOAD_UNKNOWN");
            };
            bytes.extend_from_slice(body);
            let wanted = request.query.get("digest").cloned().unwrap_or_default();
            if digest(&bytes) != wanted {
                return problem(400, "DIGEST_INVALID");
            }
            state.blobs.insert(wanted.clone(), bytes);
            state
                .holds
                .entry(repository.to_owned())
                .or_default()
                .insert(wanted);
            answer(201, "", "")
        }
        _ => problem(405, "UNSUPPORTED"),
    }
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut first = String::new();
    stream
        .read_line(&mut first)
        .await
        .ok()
        .filter(|count| *count > 0)?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut authorization, mut length, mut chunked) = (String::new(), 0, false);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = value.trim().to_owned(),
            "content-length" => length = value.trim().parse().ok()?,
            "transfer-encoding" => chunked = true,
            _ => {}
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let query: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    let scopes = query.iter().filter(|(name, _)| name == "scope");
    let scopes = scopes.map(|(_, value)| value.clone()).collect();
    Some(Request {
        method,
        path: path.to_owned(),
        target: target.clone(),
        query: query.into_iter().collect(),
        scopes,
        authorization,
        length,
        chunked,
    })
}

async fn read_body(stream: &mut BufReader<TcpStream>, request: &Request) -> Option<Vec<u8>> {
    // Every body of ours has a known length; a registry may refuse one that has not.
    assert!(
        !request.chunked,
        "{} {} came without a length",
        request.method, request.path
    );
    let mut body = vec![0; request.length];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}
