//! The gateway's binary against a real RabbitMQ, and against an upstream that shows what it was
//! sent or misbehaves on demand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a failed assumption is a failed test"
)]

#[path = "../support/http.rs"]
mod http;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/rabbitmq.rs"]
mod rabbitmq;
#[path = "../support/service.rs"]
mod service;
#[path = "../support/wait.rs"]
mod wait;

mod broker_faults;
mod movies;
mod orders;

use crate::rabbitmq::RabbitMq;
use crate::service::{Service, Variables};

/// Starts the gateway with short time limits, so that faults show soon.
async fn gateway(broker: &RabbitMq, queue: &str, inventory: &str) -> Service {
    let own: Variables = vec![
        ("INVENTORY_URL", inventory.to_owned()),
        ("PUBLISH_TIMEOUT_SECONDS", "2".to_owned()),
        ("REQUEST_TIMEOUT_SECONDS", "3".to_owned()),
        ("LOG_LEVEL", "trace".to_owned()),
    ];
    Service::start(
        env!("CARGO_BIN_EXE_api-gateway-app"),
        &[own, broker.variables(queue)],
    )
    .await
}

/// An address that refuses connections.
fn nowhere() -> String {
    format!("http://127.0.0.1:{}", process::free_port())
}
