//! A small HTTP client for tests.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The code of an error in the services' common shape; anything else fails the test.
    pub(crate) fn error_code(&self) -> String {
        let json = self.json();
        let error = &json["error"];
        assert!(error["message"].is_string(), "no message in {json}");
        error["code"].as_str().expect("no code").to_owned()
    }
}

/// `None` when no whole response came back.
pub(crate) async fn send(request: Request<Full<Bytes>>) -> Option<Answer> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let (parts, body) = client.request(request).await.ok()?.into_parts();
    Some(Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.ok()?.to_bytes(),
    })
}

pub(crate) async fn get(url: &str) -> Option<Answer> {
    send(Request::get(url).body(Full::default()).unwrap()).await
}

/// Sends `body` as JSON.
pub(crate) async fn send_json(method: Method, url: &str, body: impl Into<Bytes>) -> Option<Answer> {
    let request = Request::builder().method(method).uri(url);
    let request = request.header("content-type", "application/json");
    send(request.body(Full::new(body.into())).unwrap()).await
}
