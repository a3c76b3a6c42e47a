//! `POST /api/billing`: turns an order into a message and answers when the broker holds it.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Json, Router, routing};
use serde_json::{Value, json};
use tracing::{error, info};
use uuid::Uuid;

use crate::json_body::JsonBody;
use crate::order::Order;
use crate::publisher::{Message, Publisher};
use crate::service::api_error::ApiError;
use crate::service::request_id::RequestId;
use crate::service::telemetry::chain;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MAX_KEY_LENGTH: usize = 255;

pub(crate) fn routes(publisher: Arc<Publisher>) -> Router {
    Router::new()
        .route("/api/billing", routing::post(accept))
        .route("/api/billing/", routing::post(accept))
        .with_state(publisher)
}

async fn accept(
    State(publisher): State<Arc<Publisher>>,
    Extension(request_id): Extension<RequestId>,
    headers: HeaderMap,
    JsonBody(order): JsonBody<Order>,
) -> Result<Json<Value>, ApiError> {
    let payload = serde_json::to_vec(&order).map_err(|error| {
        error!(error = chain(&error), "cannot encode an order");
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "internal error",
        )
    })?;
    let id = message_id(&headers, &payload)?;
    let message = Message {
        id,
        request_id: request_id.as_str().to_owned(),
        payload,
    };
    publisher.publish(message).await.map_err(|error| {
        error!(message_id = %id, error = chain(&error), "order not accepted");
        ApiError::unavailable(
            "order_not_accepted",
            "the order could not be queued; send it again, with the same Idempotency-Key if it had one",
        )
    })?;
    info!(message_id = %id, "order accepted");
    Ok(Json(
        json!({ "status": "accepted", "message_id": id.to_string() }),
    ))
}

/// The id under which billing records the order once.
///
/// With an `Idempotency-Key` it depends on the key and the order, so that a repeated request is the
/// same order, while a key used again for another order cannot make that one disappear.
fn message_id(headers: &HeaderMap, payload: &[u8]) -> Result<Uuid, ApiError> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(Uuid::now_v7());
    };
    let key = key.as_bytes();
    if key.is_empty() || key.len() > MAX_KEY_LENGTH {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_idempotency_key",
            format!("Idempotency-Key must have 1 to {MAX_KEY_LENGTH} characters"),
        ));
    }
    // A header value holds no NUL, so the separator keeps (key, payload) unambiguous.
    let name = [key, b"\0", payload].concat();
    Ok(Uuid::new_v5(&Uuid::NAMESPACE_URL, &name))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn keyed(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            IDEMPOTENCY_KEY.parse().unwrap(),
            HeaderValue::from_str(key).unwrap(),
        )])
    }

    #[test]
    fn the_id_follows_from_key_and_order() {
        let id = |key: &str, order: &[u8]| message_id(&keyed(key), order).unwrap();
        assert_eq!(id("a", b"1"), id("a", b"1"));
        assert_ne!(id("a", b"1"), id("b", b"1"));
        assert_ne!(
            id("a", b"1"),
            id("a", b"2"),
            "another order must not vanish"
        );
    }

    #[test]
    fn without_a_key_every_request_is_an_order_of_its_own() {
        let id = || message_id(&HeaderMap::new(), b"1").unwrap();
        assert_ne!(id(), id());
        assert_eq!(id().get_version_num(), 7);
    }

    #[test]
    fn an_empty_or_endless_key_is_refused() {
        assert!(message_id(&keyed(""), b"1").is_err());
        assert!(message_id(&keyed(&"k".repeat(MAX_KEY_LENGTH + 1)), b"1").is_err());
    }
}
