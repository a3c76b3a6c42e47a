//! `POST /api/billing` while all is well, and requests that must be refused.

use axum::http::{Method, Request, StatusCode};
use futures_util::StreamExt;
use http_body_util::Full;
use lapin::message::BasicGetMessage;
use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use uuid::Uuid;

use crate::http::{self, Answer};
use crate::rabbitmq::{PASSWORD, RabbitMq};
use crate::service::Service;
use crate::wait::until;
use crate::{gateway, nowhere};

pub(crate) const ORDER: &str = r#"{"user_id":"20","number_of_items":"99","total_amount":"250"}"#;

pub(crate) fn queue_name() -> String {
    format!("orders-{}", Uuid::now_v7())
}

pub(crate) async fn post(gateway: &Service, body: &str) -> Answer {
    let url = gateway.url("/api/billing");
    http::send_json(Method::POST, &url, body.to_owned())
        .await
        .unwrap()
}

/// Sends an order until it is accepted, as a client does that is told to come back later.
pub(crate) async fn until_accepted(gateway: &Service) -> String {
    until("an order is accepted", async || {
        let answer = post(gateway, ORDER).await;
        (answer.status == StatusCode::OK)
            .then(|| answer.json()["message_id"].as_str().unwrap().to_owned())
    })
    .await
}

/// The oldest message in the queue, waiting for it to be there.
async fn next_message(channel: &lapin::Channel, queue: &str) -> BasicGetMessage {
    until("the message is in the queue", async || {
        let options = BasicGetOptions { no_ack: true };
        channel.basic_get(queue.into(), options).await.unwrap()
    })
    .await
}

#[tokio::test]
async fn an_accepted_order_is_a_persistent_message_with_both_ids() {
    let broker = RabbitMq::shared();
    let queue = queue_name();
    let gateway = gateway(&broker, &queue, &nowhere()).await;
    let connection = broker.connect().await;
    let channel = connection.create_channel().await.unwrap();
    for path in ["/api/billing", "/api/billing/"] {
        let answer = until("an order is accepted", async || {
            let request = Request::post(gateway.url(path))
                .header("content-type", "application/json")
                .header("x-request-id", "request-7");
            let answer = http::send(request.body(Full::from(ORDER)).unwrap()).await;
            answer.filter(|answer| answer.status == StatusCode::OK)
        })
        .await;
        let message = next_message(&channel, &queue).await;
        let properties = &message.delivery.properties;
        assert_eq!(properties.delivery_mode(), &Some(2));
        assert_eq!(
            properties.message_id().as_ref().unwrap().as_str(),
            answer.json()["message_id"]
        );
        assert_eq!(
            properties.headers().as_ref().unwrap().inner()["x-request-id"],
            AMQPValue::LongString("request-7".into())
        );
        assert_eq!(
            message.delivery.data,
            br#"{"user_id":20,"number_of_items":99,"total_amount":"250"}"#
        );
    }
    let log = gateway.log();
    assert!(!log.contains(PASSWORD), "the password is in the log");
    assert!(log.contains(r#""request_id":"request-7""#));
}

#[tokio::test]
async fn a_repeated_idempotency_key_gives_the_same_id() {
    let broker = RabbitMq::shared();
    let gateway = gateway(&broker, &queue_name(), &nowhere()).await;
    broker.connect().await;
    let id = async |key: &str| {
        until("an order is accepted", async || {
            let request = Request::post(gateway.url("/api/billing"))
                .header("content-type", "application/json")
                .header("idempotency-key", key);
            let answer = http::send(request.body(Full::from(ORDER)).unwrap()).await?;
            (answer.status == StatusCode::OK).then(|| answer.json()["message_id"].clone())
        })
        .await
    };
    assert_eq!(id("key-1").await, id("key-1").await);
    assert_ne!(id("key-1").await, id("key-2").await);
}

#[tokio::test]
async fn many_orders_at_once_are_all_in_the_queue() {
    const ORDERS: usize = 400;
    let broker = RabbitMq::shared();
    let queue = queue_name();
    let gateway = gateway(&broker, &queue, &nowhere()).await;
    let connection = broker.connect().await;
    until("the gateway has a channel", async || {
        (post(&gateway, "{}").await.status == StatusCode::UNPROCESSABLE_ENTITY
            && gateway.log().contains("connected to RabbitMQ"))
        .then_some(())
    })
    .await;
    let accepted: std::collections::HashSet<String> = futures_util::stream::iter(0..ORDERS)
        .map(|_| until_accepted(&gateway))
        .buffer_unordered(32)
        .collect()
        .await;
    assert_eq!(accepted.len(), ORDERS, "each order has an id of its own");

    let channel = connection.create_channel().await.unwrap();
    let mut queued = std::collections::HashSet::new();
    // One that was refused may be there as well: it may have been confirmed too late.
    while !accepted.is_subset(&queued) {
        let message = next_message(&channel, &queue).await;
        let is_new = queued.insert(
            message
                .delivery
                .properties
                .message_id()
                .as_ref()
                .unwrap()
                .to_string(),
        );
        assert!(is_new, "no order is there twice");
    }
}

#[tokio::test]
async fn bad_requests_get_a_4xx_in_json() {
    let gateway = gateway(&RabbitMq::prepare(), "unused", &nowhere()).await;
    let long = format!(r#"{{"user_id":"{}"}}"#, "1".repeat(64 * 1024));
    let deep = "[".repeat(10_000);
    for (body, status, code) in [
        ("", 400, "invalid_json"),
        ("{", 400, "invalid_json"),
        (deep.as_str(), 422, "invalid_value"),
        ("[]", 422, "invalid_value"),
        ("[20,99,250]", 422, "invalid_value"),
        ("{}", 422, "invalid_value"),
        (
            r#"{"user_id":-1,"number_of_items":1,"total_amount":1}"#,
            422,
            "invalid_value",
        ),
        (
            r#"{"user_id":true,"number_of_items":1,"total_amount":1}"#,
            422,
            "invalid_value",
        ),
        (
            r#"{"user_id":1,"number_of_items":1,"total_amount":"NaN"}"#,
            422,
            "invalid_value",
        ),
        (
            r#"{"user_id":1,"number_of_items":1,"total_amount":NaN}"#,
            400,
            "invalid_json",
        ),
        (
            r#"{"user_id":99999999999999999999,"number_of_items":1,"total_amount":1}"#,
            422,
            "invalid_value",
        ),
        (
            r#"{"user_id":"\u0000","number_of_items":1,"total_amount":1}"#,
            422,
            "invalid_value",
        ),
        (long.as_str(), 413, "body_too_large"),
    ] {
        let answer = post(&gateway, body).await;
        let shown = &body[..body.len().min(80)];
        assert_eq!(answer.status.as_u16(), status, "{shown}: {answer:?}");
        assert_eq!(answer.error_code(), code, "{shown}");
    }

    for (method, path, status, code) in [
        (Method::GET, "/", 404, "not_found"),
        (Method::GET, "/api", 404, "not_found"),
        (Method::GET, "/api/moviesX", 404, "not_found"),
        (Method::POST, "/api/billing/1", 404, "not_found"),
        (Method::GET, "/api/billing", 405, "method_not_allowed"),
        (Method::DELETE, "/api/billing/", 405, "method_not_allowed"),
        (Method::POST, "/healthz", 405, "method_not_allowed"),
    ] {
        let url = gateway.url(path);
        let answer = http::send_json(method.clone(), &url, "{}").await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
        assert_eq!(answer.error_code(), code, "{method} {path}");
    }

    for content_type in [
        None,
        Some("text/plain"),
        Some("application/x-www-form-urlencoded"),
    ] {
        let mut request = Request::post(gateway.url("/api/billing"));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let answer = http::send(request.body(Full::from(ORDER)).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert_eq!(answer.error_code(), "unsupported_media_type");
    }
}

#[tokio::test]
async fn it_stops_cleanly_when_asked_to() {
    let gateway = gateway(&RabbitMq::prepare(), "unused", &nowhere()).await;
    let last = gateway.stop().await;
    assert!(last.contains(r#""message":"stopped""#), "{last}");
}
