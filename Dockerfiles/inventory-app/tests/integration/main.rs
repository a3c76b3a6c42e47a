//! The inventory's binary against a real PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a failed assumption is a failed test"
)]

#[path = "../../../api-gateway-app/tests/support/http.rs"]
mod http;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../../../api-gateway-app/tests/support/process.rs"]
mod process;
#[path = "../../../api-gateway-app/tests/support/service.rs"]
mod service;
#[path = "../../../api-gateway-app/tests/support/wait.rs"]
mod wait;

mod database_faults;
mod movies;
mod refusals;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::http::Answer;
use crate::service::{Service, Variables};

async fn inventory(database: Variables) -> Service {
    let own: Variables = vec![("LOG_LEVEL", "trace".to_owned())];
    Service::start(env!("CARGO_BIN_EXE_inventory-app"), &[own, database]).await
}

async fn ask(service: &Service, method: Method, path: &str, body: &str) -> Answer {
    let url = service.url(path);
    http::send_json(method, &url, body.to_owned())
        .await
        .unwrap()
}

/// Adds a movie and returns it as the service does.
async fn add(service: &Service, title: &str) -> Value {
    let movie = json!({ "title": title, "description": "" }).to_string();
    let answer = ask(service, Method::POST, "/api/movies/", &movie).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    answer.json()
}
