//! Forwarding to inventory-app. The upstream here is an echo: only it can show what was forwarded.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri};
use axum::{Json, Router, routing};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::json;
use tokio::net::TcpListener;

use crate::rabbitmq::RabbitMq;
use crate::{gateway, http, nowhere};

/// An address where `answer` is given to every request.
async fn upstream(answer: routing::MethodRouter) -> String {
    let router = Router::new()
        .route("/healthz", routing::get(async || "ok"))
        .fallback_service(answer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

async fn echo(
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: String,
) -> Json<serde_json::Value> {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    let headers: std::collections::BTreeMap<_, _> = headers.into_iter().collect();
    Json(
        json!({ "method": method.as_str(), "uri": uri.to_string(), "headers": headers, "body": body }),
    )
}

#[tokio::test]
async fn every_method_path_query_and_body_arrives_unchanged() {
    let gateway = gateway(
        &RabbitMq::prepare(),
        "unused",
        &upstream(routing::any(echo)).await,
    )
    .await;
    for (method, path, body) in [
        (Method::GET, "/api/movies", ""),
        (Method::GET, "/api/movies/?title=a%20b&x=%C3%A9", ""),
        (Method::POST, "/api/movies/", r#"{"title":"a"}"#),
        (Method::PUT, "/api/movies/12", "text"),
        (Method::PATCH, "/api/movies/a/b/c?d", "text"),
        (Method::DELETE, "/api/movies/12/", ""),
    ] {
        let request = Request::builder()
            .method(&method)
            .uri(gateway.url(path))
            .header("x-request-id", "test-1")
            .header("x-other", "kept")
            .header("connection", "x-private")
            .header("x-private", "not for the next hop");
        let answer = http::send(request.body(Full::from(body)).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["x-request-id"], "test-1");
        let seen = answer.json();
        assert_eq!(seen["method"], method.as_str());
        assert_eq!(seen["uri"], path);
        assert_eq!(seen["body"], body);
        assert_eq!(seen["headers"]["x-request-id"], "test-1");
        assert_eq!(seen["headers"]["x-other"], "kept");
        assert!(seen["headers"]["x-private"].is_null());
    }
}

#[tokio::test]
async fn what_the_upstream_answers_comes_back_unchanged() {
    let teapot = routing::any(async || {
        let headers = [("x-kind", "teapot"), ("content-type", "text/plain")];
        (StatusCode::IM_A_TEAPOT, headers, "short and stout")
    });
    let gateway = gateway(&RabbitMq::prepare(), "unused", &upstream(teapot).await).await;
    let answer = http::get(&gateway.url("/api/movies")).await.unwrap();
    assert_eq!(answer.status, StatusCode::IM_A_TEAPOT);
    assert_eq!(answer.headers["x-kind"], "teapot");
    assert_eq!(answer.body, "short and stout");
    assert!(
        !answer.headers["x-request-id"].is_empty(),
        "an id is generated"
    );
}

#[tokio::test]
async fn a_large_response_is_passed_on_whole() {
    const SIZE: usize = 8 << 20;
    let large = routing::any(async || vec![b'x'; SIZE]);
    let gateway = gateway(&RabbitMq::prepare(), "unused", &upstream(large).await).await;
    let answer = http::get(&gateway.url("/api/movies")).await.unwrap();
    assert_eq!(answer.body.len(), SIZE);
}

#[tokio::test]
async fn a_body_over_the_limit_never_reaches_the_upstream() {
    let gateway = gateway(
        &RabbitMq::prepare(),
        "unused",
        &upstream(routing::any(echo)).await,
    )
    .await;
    let post = |size: usize| {
        let body = Full::new(Bytes::from(vec![b'x'; size]));
        http::send(
            Request::post(gateway.url("/api/movies"))
                .body(body)
                .unwrap(),
        )
    };
    assert_eq!(post(64 * 1024).await.unwrap().status, StatusCode::OK);
    let answer = post(64 * 1024 + 1).await.unwrap();
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.error_code(), "body_too_large");
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_json_502() {
    let gateway = gateway(&RabbitMq::prepare(), "unused", &nowhere()).await;
    let answer = http::get(&gateway.url("/api/movies")).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    assert_eq!(answer.error_code(), "inventory_unreachable");
}

#[tokio::test]
async fn an_upstream_that_hangs_is_a_json_503() {
    let hang = routing::any(async || {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    });
    let gateway = gateway(&RabbitMq::prepare(), "unused", &upstream(hang).await).await;
    let answer = http::get(&gateway.url("/api/movies")).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.error_code(), "timeout");
}

#[tokio::test]
async fn an_upstream_that_stops_in_the_middle_ends_the_response() {
    let stall = routing::any(async || {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>("first")]);
        let never = futures_util::stream::pending();
        Body::from_stream(futures_util::StreamExt::chain(first, never))
    });
    let gateway = gateway(&RabbitMq::prepare(), "unused", &upstream(stall).await).await;
    let answer = http::get(&gateway.url("/api/movies")).await;
    assert!(answer.is_none(), "half a response passed for a whole one");
}
