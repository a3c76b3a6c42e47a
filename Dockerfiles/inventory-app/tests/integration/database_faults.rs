//! The inventory without its database, and several replicas that meet an empty one.

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::postgres::Postgres;
use crate::wait::until;
use crate::{add, ask, inventory};

#[tokio::test]
async fn it_waits_for_its_database_and_survives_losing_it() {
    let postgres = Postgres::prepare();
    let service = inventory(postgres.variables("postgres")).await;
    service
        .until_readiness(StatusCode::SERVICE_UNAVAILABLE)
        .await;
    let unavailable = async || {
        let answer = ask(&service, Method::GET, "/api/movies", "").await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.error_code(), "database_unavailable");
        assert!(answer.headers.contains_key("retry-after"));
    };
    unavailable().await;

    postgres.launch();
    service.until_readiness(StatusCode::OK).await;
    let movie = add(&service, "kept").await;

    postgres.kill();
    unavailable().await;
    service
        .until_readiness(StatusCode::SERVICE_UNAVAILABLE)
        .await;

    postgres.launch();
    let listed = until("the movies are back", async || {
        let answer = ask(&service, Method::GET, "/api/movies", "").await;
        (answer.status == StatusCode::OK).then(|| answer.json())
    })
    .await;
    assert_eq!(listed, json!([movie]));
}

#[tokio::test]
async fn replicas_that_start_together_agree_on_the_schema() {
    let postgres = Postgres::shared();
    let (pool, variables) = postgres.create_database().await;
    let (first, second, third) = tokio::join!(
        inventory(variables.clone()),
        inventory(variables.clone()),
        inventory(variables),
    );
    for replica in [&first, &second, &third] {
        replica.until_readiness(StatusCode::OK).await;
        add(replica, "shared").await;
    }
    let migrations: i64 = sqlx::query_scalar("SELECT count(*) FROM _sqlx_migrations WHERE success")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(migrations, 1);
    let listed = ask(&third, Method::GET, "/api/movies", "").await;
    assert_eq!(listed.json().as_array().unwrap().len(), 3);
}
