//! The three services together: what a client of the gateway can rely on.

use std::path::Path;
use std::process::Command;

use futures_util::StreamExt;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use serde_json::json;
use uuid::Uuid;

use crate::postgres::Postgres;
use crate::process::run;
use crate::rabbitmq::RabbitMq;
use crate::service::{Service, Variables};
use crate::wait::until;
use crate::{ORDER, billing, http, queue_name, rows, until_recorded};

/// Starts another service of the stack, built from its folder beside this one.
async fn sibling(name: &str, variables: &[Variables]) -> Service {
    let own_binary = Path::new(env!("CARGO_BIN_EXE_billing-app"));
    let profile_directory = own_binary.parent().unwrap();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../{name}/Cargo.toml"));
    run(Command::new(std::env::var("CARGO").unwrap())
        .args(["build", "--locked", "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(profile_directory.parent().unwrap()));
    let binary = profile_directory.join(name);
    Service::start(binary.to_str().unwrap(), variables).await
}

async fn gateway(broker: &RabbitMq, queue: &str, inventory: &str) -> Service {
    let own: Variables = vec![("INVENTORY_URL", inventory.to_owned())];
    sibling("api-gateway-app", &[own, broker.variables(queue)]).await
}

/// The id of an order, if the gateway accepted it.
async fn order(gateway: &Service) -> Option<Uuid> {
    let url = gateway.url("/api/billing/");
    let answer = http::send_json(Method::POST, &url, ORDER).await?;
    let id = || {
        answer.json()["message_id"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    (answer.status == StatusCode::OK).then(id)
}

#[tokio::test]
async fn movies_and_orders_go_all_the_way() {
    let (broker, postgres, queue) = (RabbitMq::shared(), Postgres::shared(), queue_name());
    let (_movies, inventory_database) = postgres.create_database().await;
    let (orders, billing_database) = postgres.create_database().await;
    let inventory = sibling("inventory-app", &[inventory_database]).await;
    let gateway = gateway(&broker, &queue, &inventory.url("")).await;
    gateway.until_readiness(StatusCode::OK).await;
    inventory.until_readiness(StatusCode::OK).await;

    let url = gateway.url("/api/movies/");
    let movie = json!({ "title": "A new movie", "description": "Very short description" });
    let added = http::send_json(Method::POST, &url, movie.to_string())
        .await
        .unwrap();
    assert_eq!(added.status, StatusCode::OK);
    assert_eq!(http::get(&url).await.unwrap().json(), json!([added.json()]));

    let accepted_while_billing_is_away = order(&gateway).await.unwrap();
    let billing = billing(&broker, &queue, &billing_database).await;
    billing.until_readiness(StatusCode::OK).await;
    let request = Request::post(gateway.url("/api/billing"))
        .header("content-type", "application/json")
        .header("x-request-id", "followed-1");
    let answer = http::send(request.body(Full::from(ORDER)).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.headers["x-request-id"], "followed-1");
    let accepted = answer.json()["message_id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    until_recorded(&orders, &[accepted_while_billing_is_away, accepted]).await;
    until(
        "billing's log names the request that the order came with",
        async || {
            billing
                .log()
                .contains(r#""request_id":"followed-1""#)
                .then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn every_accepted_order_is_recorded_once_whatever_is_killed_meanwhile() {
    let (broker, postgres, queue) = (RabbitMq::start(), Postgres::prepare(), queue_name());
    postgres.launch();
    let (pool, database) = postgres.create_database().await;
    let gateway = gateway(&broker, &queue, "http://127.0.0.1:9").await;
    let billing_before = billing(&broker, &queue, &database).await;
    billing_before.until_readiness(StatusCode::OK).await;
    until("an order is accepted", async || order(&gateway).await).await;

    let count = std::sync::atomic::AtomicUsize::new(0);
    let kills = async {
        // By orders, not by the clock: a busy machine accepts fewer in the same time.
        let pause = async || {
            let enough = count.load(std::sync::atomic::Ordering::Relaxed) + 40;
            until("orders are accepted", async || {
                (count.load(std::sync::atomic::Ordering::Relaxed) >= enough).then_some(())
            })
            .await;
        };
        pause().await;
        drop(billing_before);
        let billing_after = billing(&broker, &queue, &database).await;
        pause().await;
        postgres.kill();
        pause().await;
        broker.kill();
        postgres.launch();
        broker.launch();
        gateway_accepts_again(&gateway).await;
        billing_after
    };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let posting = futures_util::stream::repeat(())
        .take_while(|()| std::future::ready(!*stopped.borrow()))
        .map(|()| async {
            let accepted = order(&gateway).await;
            if accepted.is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            } else {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            accepted
        })
        .buffer_unordered(8)
        .filter_map(std::future::ready)
        .collect::<Vec<Uuid>>();
    let killing = async {
        let billing_after = kills.await;
        stop.send_replace(true);
        billing_after
    };
    let (accepted, _billing) = tokio::join!(posting, killing);
    assert!(
        accepted.len() > 100,
        "too few to say anything: {}",
        accepted.len()
    );

    until("the database is back", async || {
        sqlx::query("SELECT 1").execute(&pool).await.ok()
    })
    .await;
    until_recorded(&pool, &accepted).await;
    assert!(rows(&pool).await.values().all(|count| *count == 1));
}

async fn gateway_accepts_again(gateway: &Service) {
    until("an order is accepted again", async || order(gateway).await).await;
}
