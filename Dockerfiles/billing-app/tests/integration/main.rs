//! Billing's binary against a real RabbitMQ and a real PostgreSQL, alone and with the rest of the
//! stack.

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
#[path = "../../../inventory-app/tests/support/postgres.rs"]
mod postgres;
#[path = "../../../api-gateway-app/tests/support/process.rs"]
mod process;
#[path = "../../../api-gateway-app/tests/support/rabbitmq.rs"]
mod rabbitmq;
#[path = "../../../api-gateway-app/tests/support/service.rs"]
mod service;
#[path = "../../../api-gateway-app/tests/support/wait.rs"]
mod wait;

mod faults;
mod orders;
mod stack;

use std::collections::BTreeMap;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use sqlx::PgPool;
use uuid::Uuid;

use crate::rabbitmq::RabbitMq;
use crate::service::{Service, Variables};
use crate::wait::until;

const ORDER: &str = r#"{"user_id":"20","number_of_items":"99","total_amount":"250"}"#;

async fn billing(broker: &RabbitMq, queue: &str, database: &Variables) -> Service {
    let own: Variables = vec![("LOG_LEVEL", "trace".to_owned())];
    Service::start(
        env!("CARGO_BIN_EXE_billing-app"),
        &[own, broker.variables(queue), database.clone()],
    )
    .await
}

fn queue_name() -> String {
    format!("orders-{}", Uuid::now_v7())
}

/// A channel that confirms what is published on it, as [`publish`] expects.
async fn confirming(broker: &RabbitMq) -> (Connection, Channel) {
    let connection = broker.connect().await;
    let channel = connection.create_channel().await.unwrap();
    let options = ConfirmSelectOptions::default();
    channel.confirm_select(options).await.unwrap();
    (connection, channel)
}

/// Queues a message as the gateway does, except that anything may be in it.
async fn publish(channel: &Channel, queue: &str, message_id: Option<&str>, body: &[u8]) {
    let mut properties = BasicProperties::default().with_delivery_mode(2);
    if let Some(id) = message_id {
        properties = properties.with_message_id(id.into());
    }
    let options = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let sent = channel.basic_publish("".into(), queue.into(), options, body, properties);
    let confirmation = sent.await.unwrap().await.unwrap();
    assert!(
        matches!(confirmation, Confirmation::Ack(None)),
        "{confirmation:?}"
    );
}

/// How many rows there are for each message id.
async fn rows(pool: &PgPool) -> BTreeMap<Uuid, i64> {
    let counted = sqlx::query_as("SELECT message_id, count(*) FROM orders GROUP BY message_id");
    let counted: Vec<(Uuid, i64)> = counted.fetch_all(pool).await.unwrap();
    counted.into_iter().collect()
}

/// Waits until every one of these has a row.
async fn until_recorded(pool: &PgPool, ids: &[Uuid]) {
    until("every order has a row", async || {
        let rows = rows(pool).await;
        ids.iter().all(|id| rows.contains_key(id)).then_some(())
    })
    .await;
}
