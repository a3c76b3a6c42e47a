//! What every request goes through: an id, a log line, a time limit, a size limit, and JSON errors
//! for what no route answers.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use tracing::{Instrument, debug, info, info_span};

use super::api_error::ApiError;
use super::http_settings::HttpSettings;
use super::request_id::{REQUEST_ID_HEADER, RequestId};

/// Wraps a service's routes. Handlers find a [`RequestId`] in the request's extensions.
pub(crate) fn wrap(routes: Router, settings: &HttpSettings) -> Router {
    let limit = settings.request_timeout;
    routes
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such resource"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this resource does not support that method",
            )
        })
        .layer(DefaultBodyLimit::max(settings.body_limit_bytes))
        .layer(from_fn(move |request, next| observe(request, next, limit)))
}

async fn observe(mut request: Request, next: Next, limit: Duration) -> Response {
    let id = RequestId::accept_or_generate(request.headers().get(&REQUEST_ID_HEADER));
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let span = info_span!("request", request_id = id.as_str());

    let started = Instant::now();
    let mut response = tokio::time::timeout(limit, next.run(request).instrument(span.clone()))
        .await
        .unwrap_or_else(|_elapsed| {
            ApiError::unavailable("timeout", "the request took too long").into_response()
        });

    let status = response.status().as_u16();
    let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
    span.in_scope(|| {
        if matches!(path.as_str(), "/healthz" | "/readyz") {
            debug!(%method, path, status, milliseconds, "request");
        } else {
            info!(%method, path, status, milliseconds, "request");
        }
    });
    response
        .headers_mut()
        .insert(REQUEST_ID_HEADER, id.header_value());
    response
}
