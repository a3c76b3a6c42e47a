//! What the gateway says while RabbitMQ is absent, frozen, dying or without its queue: never 200
//! for an order that is not safe.

use std::collections::HashSet;

use axum::http::StatusCode;
use futures_util::StreamExt;
use lapin::options::{BasicGetOptions, QueueDeleteOptions};

use crate::orders::{ORDER, post, queue_name, until_accepted};
use crate::rabbitmq::RabbitMq;
use crate::service::Service;
use crate::wait::until;
use crate::{gateway, nowhere};

async fn assert_not_accepted(gateway: &Service) {
    let answer = post(gateway, ORDER).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.error_code(), "order_not_accepted");
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn without_a_broker_orders_are_refused_until_it_comes() {
    let broker = RabbitMq::prepare();
    let gateway = gateway(&broker, &queue_name(), &nowhere()).await;
    gateway
        .until_readiness(StatusCode::SERVICE_UNAVAILABLE)
        .await;
    assert_not_accepted(&gateway).await;
    broker.launch();
    until_accepted(&gateway).await;
}

#[tokio::test]
async fn an_order_that_no_queue_takes_is_refused_and_the_queue_comes_back() {
    let broker = RabbitMq::shared();
    let queue = queue_name();
    let gateway = gateway(&broker, &queue, &nowhere()).await;
    let connection = broker.connect().await;
    until_accepted(&gateway).await;

    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeleteOptions::default();
    channel
        .queue_delete(queue.as_str().into(), options)
        .await
        .unwrap();
    assert_not_accepted(&gateway).await;
    until_accepted(&gateway).await;
}

#[tokio::test]
async fn an_order_that_a_frozen_broker_does_not_confirm_is_refused() {
    let broker = RabbitMq::start();
    let gateway = gateway(&broker, &queue_name(), &nowhere()).await;
    until_accepted(&gateway).await;
    broker.signal("STOP");
    assert_not_accepted(&gateway).await;
    broker.signal("CONT");
    until_accepted(&gateway).await;
}

#[tokio::test]
async fn every_order_accepted_while_the_broker_was_killed_is_in_the_queue() {
    let broker = RabbitMq::start();
    let queue = queue_name();
    let gateway = gateway(&broker, &queue, &nowhere()).await;
    let mut accepted = HashSet::from([until_accepted(&gateway).await]);

    let killed_in_the_middle = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        broker.kill();
    };
    let posting = futures_util::stream::iter(0..2000)
        .map(|_| post(&gateway, ORDER))
        .buffer_unordered(16)
        .collect::<Vec<_>>();
    let (answers, ()) = tokio::join!(posting, killed_in_the_middle);
    let refused = answers
        .iter()
        .filter(|answer| answer.status != StatusCode::OK)
        .count();
    assert!(refused > 0, "the broker was killed too late to matter");
    for answer in answers
        .iter()
        .filter(|answer| answer.status == StatusCode::OK)
    {
        accepted.insert(answer.json()["message_id"].as_str().unwrap().to_owned());
    }
    assert!(
        accepted.len() > 1,
        "the broker was killed too early to matter"
    );

    broker.launch();
    let connection = broker.connect().await;
    until(
        "every accepted order has come out of the queue",
        async || {
            // A queue that is not up yet answers with an error that closes the channel.
            let channel = connection.create_channel().await.ok()?;
            let options = BasicGetOptions { no_ack: true };
            while let Some(message) = channel
                .basic_get(queue.as_str().into(), options)
                .await
                .ok()?
            {
                accepted.remove(
                    message
                        .delivery
                        .properties
                        .message_id()
                        .as_ref()
                        .unwrap()
                        .as_str(),
                );
            }
            accepted.is_empty().then_some(())
        },
    )
    .await;
}
