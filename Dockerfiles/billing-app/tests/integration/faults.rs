//! Billing while its database, its broker or billing itself is killed: each order one row in the
//! end.

use hyper::StatusCode;
use lapin::Channel;
use lapin::options::QueueDeleteOptions;
use uuid::Uuid;

use crate::postgres::Postgres;
use crate::rabbitmq::RabbitMq;
use crate::wait::until;
use crate::{ORDER, billing, confirming, publish, queue_name, rows, until_recorded};

async fn publish_orders(channel: &Channel, queue: &str, count: usize) -> Vec<Uuid> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = Uuid::now_v7();
        publish(channel, queue, Some(&id.to_string()), ORDER.as_bytes()).await;
        ids.push(id);
    }
    ids
}

#[tokio::test]
async fn orders_wait_for_a_database_that_is_away() {
    let (broker, postgres, queue) = (RabbitMq::shared(), Postgres::prepare(), queue_name());
    postgres.launch();
    let (pool, database) = postgres.create_database().await;
    let service = billing(&broker, &queue, &database).await;
    service.until_readiness(StatusCode::OK).await;
    let (_connection, channel) = confirming(&broker).await;

    postgres.kill();
    let ids = publish_orders(&channel, &queue, 50).await;
    until("an order could not be recorded", async || {
        service
            .log()
            .contains("order not recorded yet")
            .then_some(())
    })
    .await;
    postgres.launch();
    until("the database is back", async || {
        sqlx::query("SELECT 1").execute(&pool).await.ok()
    })
    .await;
    until_recorded(&pool, &ids).await;
    assert_eq!(rows(&pool).await.len(), ids.len());
}

#[tokio::test]
async fn without_a_database_it_starts_and_leaves_the_orders_in_the_queue() {
    let (broker, postgres, queue) = (RabbitMq::shared(), Postgres::prepare(), queue_name());
    let service = billing(&broker, &queue, &postgres.variables("postgres")).await;
    service
        .until_readiness(StatusCode::SERVICE_UNAVAILABLE)
        .await;
    postgres.launch();
    service.until_readiness(StatusCode::OK).await;
}

#[tokio::test]
async fn it_goes_on_after_the_broker_was_killed() {
    let (broker, postgres, queue) = (RabbitMq::start(), Postgres::shared(), queue_name());
    let (pool, database) = postgres.create_database().await;
    let service = billing(&broker, &queue, &database).await;
    service.until_readiness(StatusCode::OK).await;
    let (connection, channel) = confirming(&broker).await;
    let mut ids = publish_orders(&channel, &queue, 200).await;
    broker.kill();
    drop((connection, channel));
    service
        .until_readiness(StatusCode::SERVICE_UNAVAILABLE)
        .await;

    broker.launch();
    service.until_readiness(StatusCode::OK).await;
    let (_connection, channel) = confirming(&broker).await;
    ids.extend(publish_orders(&channel, &queue, 20).await);
    until_recorded(&pool, &ids).await;
    assert_eq!(rows(&pool).await.len(), ids.len());
}

#[tokio::test]
async fn killed_in_the_middle_it_neither_loses_nor_doubles_an_order() {
    let (broker, postgres, queue) = (RabbitMq::shared(), Postgres::shared(), queue_name());
    let (pool, database) = postgres.create_database().await;
    let service = billing(&broker, &queue, &database).await;
    service.until_readiness(StatusCode::OK).await;
    let (_connection, channel) = confirming(&broker).await;
    service.stop().await;
    let ids = publish_orders(&channel, &queue, 1000).await;

    let mut kills = 0;
    let mut recorded_at_last_kill = 0;
    while recorded_at_last_kill < ids.len() && kills < 5 {
        let service = billing(&broker, &queue, &database).await;
        until("it has recorded some more", async || {
            let recorded = rows(&pool).await.len();
            (recorded > recorded_at_last_kill || recorded == ids.len()).then_some(())
        })
        .await;
        drop(service);
        recorded_at_last_kill = rows(&pool).await.len();
        kills += 1;
    }
    let _service = billing(&broker, &queue, &database).await;
    until_recorded(&pool, &ids).await;
    let rows = rows(&pool).await;
    assert_eq!(rows.len(), ids.len());
    assert!(rows.values().all(|count| *count == 1));
}

#[tokio::test]
async fn it_declares_the_queue_again_when_somebody_deletes_it() {
    let (broker, postgres, queue) = (RabbitMq::shared(), Postgres::shared(), queue_name());
    let (pool, database) = postgres.create_database().await;
    let service = billing(&broker, &queue, &database).await;
    service.until_readiness(StatusCode::OK).await;
    let (_connection, channel) = confirming(&broker).await;
    let options = QueueDeleteOptions::default();
    channel
        .queue_delete(queue.as_str().into(), options)
        .await
        .unwrap();
    until("it consumes again", async || {
        (service.log().matches(r#""message":"consuming""#).count() == 2).then_some(())
    })
    .await;
    let ids = publish_orders(&channel, &queue, 1).await;
    until_recorded(&pool, &ids).await;
}

#[tokio::test]
async fn it_notices_a_broker_that_falls_silent_and_comes_back_to_it() {
    let (broker, postgres, queue) = (RabbitMq::start(), Postgres::shared(), queue_name());
    let (pool, database) = postgres.create_database().await;
    let service = billing(&broker, &queue, &database).await;
    service.until_readiness(StatusCode::OK).await;
    broker.signal("STOP");
    service
        .until_readiness(StatusCode::SERVICE_UNAVAILABLE)
        .await;
    broker.signal("CONT");
    service.until_readiness(StatusCode::OK).await;
    let (_connection, channel) = confirming(&broker).await;
    let ids = publish_orders(&channel, &queue, 1).await;
    until_recorded(&pool, &ids).await;
}
