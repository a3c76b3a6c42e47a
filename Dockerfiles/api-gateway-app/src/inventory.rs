//! Forwards `/api/movies` to inventory-app: any method, sub-path, query and header, both ways.
//!
//! A request body is read whole first (it is small by the body limit), so that inventory-app never
//! sees half of one; a response body is streamed.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, Method, Request, StatusCode, Uri, header};
use axum::response::Response;
use axum::{Router, routing};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_http::timeout::TimeoutBody;
use tracing::warn;

use crate::json_body::body_unreadable;
use crate::service::api_error::ApiError;
use crate::service::request_id::{REQUEST_ID_HEADER, RequestId};
use crate::service::telemetry::chain;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Shorter than the server side keeps an idle connection, and short enough that new inventory-app
/// replicas soon get their share.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const READINESS_TIMEOUT: Duration = Duration::from_secs(2);

/// RFC 9110, section 7.6.1: headers about one connection, not about the message. The last three
/// are set anew for the next hop.
const NOT_FORWARDED: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
    REQUEST_ID_HEADER,
];

/// A client of inventory-app with a pool of connections; cheap to clone.
#[derive(Clone)]
pub(crate) struct Inventory {
    base: Uri,
    /// How long a response body may pause.
    idle_timeout: Duration,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Inventory {
    pub(crate) fn new(base: Uri, idle_timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build(connector);
        Self {
            base,
            idle_timeout,
            client,
        }
    }

    /// Whether inventory-app answers at all; whether it is ready is its own matter.
    pub(crate) async fn is_reachable(&self) -> bool {
        let health = PathAndQuery::from_static("/healthz");
        let Some(request) = self.request(Method::GET, Some(&health), Bytes::new()) else {
            return false;
        };
        tokio::time::timeout(READINESS_TIMEOUT, self.client.request(request))
            .await
            .is_ok_and(|answer| answer.is_ok_and(|response| response.status().is_success()))
    }

    fn request(
        &self,
        method: Method,
        path: Option<&PathAndQuery>,
        body: Bytes,
    ) -> Option<Request<Full<Bytes>>> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.base.authority()?.clone())
            .path_and_query(path?.clone())
            .build()
            .ok()?;
        let request = Request::builder().method(method).uri(uri);
        request.body(Full::new(body)).ok()
    }
}

pub(crate) fn routes(inventory: Inventory) -> Router {
    Router::new()
        .route("/api/movies", routing::any(forward))
        .route("/api/movies/", routing::any(forward))
        .route("/api/movies/{*rest}", routing::any(forward))
        .with_state(inventory)
}

async fn forward(
    State(inventory): State<Inventory>,
    Extension(request_id): Extension<RequestId>,
    method: Method,
    uri: Uri,
    mut headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(body_unreadable)?;
    let mut request = inventory
        .request(method, uri.path_and_query(), body)
        .ok_or_else(|| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_target",
                "the request target is not valid",
            )
        })?;
    remove_connection_headers(&mut headers);
    // The whole body is known by now, so its length is set from the body itself.
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(REQUEST_ID_HEADER, request_id.header_value());
    *request.headers_mut() = headers;

    let response = inventory.client.request(request).await.map_err(|error| {
        warn!(error = chain(&error), "inventory-app did not answer");
        ApiError::new(
            StatusCode::BAD_GATEWAY,
            "inventory_unreachable",
            "the inventory service cannot be reached",
        )
    })?;
    let (mut parts, body) = response.into_parts();
    remove_connection_headers(&mut parts.headers);
    let body = Body::new(TimeoutBody::new(inventory.idle_timeout, body));
    Ok(Response::from_parts(parts, body))
}

fn remove_connection_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&NOT_FORWARDED) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn headers_of_the_connection_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("host", "localhost:3000"),
            ("content-type", "application/json"),
            ("x-other", "2"),
        ] {
            headers.insert(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_static(value),
            );
        }
        remove_connection_headers(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "x-other"]);
    }
}
