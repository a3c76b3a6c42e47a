//! Orders while all is well, and messages that are none.

use hyper::StatusCode;
use lapin::options::BasicGetOptions;
use uuid::Uuid;

use crate::postgres::{self, Postgres};
use crate::rabbitmq::{self, RabbitMq};
use crate::wait::until;
use crate::{ORDER, billing, confirming, http, publish, queue_name, rows, until_recorded};

#[tokio::test]
async fn an_order_becomes_one_row_with_its_exact_values() {
    let (broker, postgres, queue) = (RabbitMq::shared(), Postgres::shared(), queue_name());
    let (pool, database) = postgres.create_database().await;
    let service = billing(&broker, &queue, &database).await;
    service.until_readiness(StatusCode::OK).await;

    let (_connection, channel) = confirming(&broker).await;
    let mut ids = Vec::new();
    for (user, items, amount) in [
        ("\"20\"", "\"99\"", "\"250\""),
        ("20", "99", "0.1"),
        ("9223372036854775807", "2147483647", "123456789012345.6789"),
    ] {
        let id = Uuid::now_v7();
        let body =
            format!(r#"{{"user_id":{user},"number_of_items":{items},"total_amount":{amount}}}"#);
        for _ in 0..3 {
            publish(&channel, &queue, Some(&id.to_string()), body.as_bytes()).await;
        }
        ids.push(id);
    }
    until_recorded(&pool, &ids).await;
    until("the repetitions have been noticed", async || {
        (service.log().matches("order was recorded before").count() == 6).then_some(())
    })
    .await;

    let recorded: Vec<(i64, i32, String)> = sqlx::query_as(
        "SELECT user_id, number_of_items, total_amount::text FROM orders ORDER BY id",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(
        recorded,
        [
            (20, 99, "250".to_owned()),
            (20, 99, "0.1".to_owned()),
            (i64::MAX, i32::MAX, "123456789012345.6789".to_owned()),
        ]
    );
    for password in [postgres::PASSWORD, rabbitmq::PASSWORD] {
        assert!(
            !service.log().contains(password),
            "a password is in the log"
        );
    }
    let last = service.stop().await;
    assert!(last.contains(r#""message":"stopped""#), "{last}");
}

#[tokio::test]
async fn what_is_no_order_goes_to_the_dead_letter_queue() {
    let (broker, postgres, queue) = (RabbitMq::shared(), Postgres::shared(), queue_name());
    let (pool, database) = postgres.create_database().await;
    let service = billing(&broker, &queue, &database).await;
    service.until_readiness(StatusCode::OK).await;

    let (_connection, channel) = confirming(&broker).await;
    let id = Uuid::now_v7().to_string();
    let poison: [(Option<&str>, &[u8]); 7] = [
        (Some(&id), b""),
        (Some(&id), b"not json"),
        (Some(&id), b"\xff\x00\xfe"),
        (
            Some(&id),
            br#"{"user_id":-1,"number_of_items":1,"total_amount":1}"#,
        ),
        (
            Some(&id),
            br#"{"user_id":1,"number_of_items":1,"total_amount":"\u0000"}"#,
        ),
        (Some("not-a-uuid"), ORDER.as_bytes()),
        (None, ORDER.as_bytes()),
    ];
    for (id, body) in poison {
        publish(&channel, &queue, id, body).await;
    }
    let good = Uuid::now_v7();
    publish(&channel, &queue, Some(&good.to_string()), ORDER.as_bytes()).await;
    until_recorded(&pool, &[good]).await;

    let dead = format!("{queue}.dead");
    let options = BasicGetOptions { no_ack: true };
    let mut kept = Vec::new();
    until("all of it is in the dead-letter queue", async || {
        while let Some(message) = channel
            .basic_get(dead.as_str().into(), options)
            .await
            .unwrap()
        {
            kept.push(message.delivery.data.clone());
        }
        (kept.len() == poison.len()).then_some(())
    })
    .await;
    let mut expected = poison.map(|(_, body)| body.to_vec());
    kept.sort_unstable();
    expected.sort_unstable();
    assert_eq!(kept, expected, "kept as it was");
    assert_eq!(rows(&pool).await.len(), 1);
}

#[tokio::test]
async fn it_answers_nothing_but_its_health() {
    let postgres = Postgres::shared();
    let (_pool, database) = postgres.create_database().await;
    let service = billing(&RabbitMq::prepare(), "unused", &database).await;
    service
        .until_readiness(StatusCode::SERVICE_UNAVAILABLE)
        .await;
    let ready = http::get(&service.url("/readyz")).await.unwrap().json();
    assert_eq!(ready["checks"]["rabbitmq"], false);
    let answer = http::get(&service.url("/api/billing")).await.unwrap();
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.error_code(), "not_found");
}
