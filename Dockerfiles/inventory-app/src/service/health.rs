//! `/healthz` (the process answers) and `/readyz` (so do the things it depends on).

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

/// Dependency name to whether it can be used now.
pub(crate) type Checks = BTreeMap<&'static str, bool>;

/// Something that can say which of its dependencies answer. Must return within seconds.
pub(crate) trait Dependencies: Clone + Send + Sync + 'static {
    fn check(&self) -> impl Future<Output = Checks> + Send;
}

pub(crate) fn routes<D: Dependencies>(dependencies: D) -> Router {
    Router::new()
        .route("/healthz", get(async || Json(json!({ "status": "ok" }))))
        .route("/readyz", get(ready::<D>))
        .with_state(dependencies)
}

async fn ready<D: Dependencies>(State(dependencies): State<D>) -> Response {
    let checks = dependencies.check().await;
    let (status, word) = if checks.values().all(|usable| *usable) {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready")
    };
    (status, Json(json!({ "status": word, "checks": checks }))).into_response()
}
