//! The movies while all is well.

use hyper::{Method, StatusCode};
use serde_json::json;

use crate::postgres::{PASSWORD, Postgres};
use crate::{add, ask, http, inventory};

#[tokio::test]
async fn a_movie_is_added_read_changed_and_deleted() {
    let postgres = Postgres::shared();
    let (pool, variables) = postgres.create_database().await;
    let service = inventory(variables).await;
    service.until_readiness(StatusCode::OK).await;

    for slash in ["", "/"] {
        let all = format!("/api/movies{slash}");
        let movie = json!({ "title": "Ünïcode \u{1f3ac} '; --", "description": "a\nb" });
        let added = ask(&service, Method::POST, &all, &movie.to_string()).await;
        assert_eq!(added.status, StatusCode::OK);
        let mut expected = movie.clone();
        expected["id"] = added.json()["id"].clone();
        assert_eq!(added.json(), expected);

        let listed = ask(&service, Method::GET, &all, "").await;
        assert_eq!(listed.json(), json!([expected]));
        let one = format!("/api/movies/{}{slash}", expected["id"]);
        assert_eq!(ask(&service, Method::GET, &one, "").await.json(), expected);

        expected["title"] = json!("other");
        let body = json!({ "title": "other", "description": "a\nb" }).to_string();
        let changed = ask(&service, Method::PUT, &one, &body).await;
        assert_eq!(changed.json(), expected);
        assert_eq!(ask(&service, Method::GET, &one, "").await.json(), expected);

        let deleted = ask(&service, Method::DELETE, &one, "").await;
        assert_eq!(deleted.json(), json!({ "deleted": 1 }));
        for (method, body) in [
            (Method::GET, ""),
            (Method::PUT, body.as_str()),
            (Method::DELETE, ""),
        ] {
            let answer = ask(&service, method, &one, body).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND);
            assert_eq!(answer.error_code(), "movie_not_found");
        }
    }
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM movies")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(rows, 0);
    assert!(
        !service.log().contains(PASSWORD),
        "the password is in the log"
    );
    let last = service.stop().await;
    assert!(last.contains(r#""message":"stopped""#), "{last}");
}

#[tokio::test]
async fn titles_are_found_by_any_part_in_any_case() {
    let postgres = Postgres::shared();
    let service = inventory(postgres.create_database().await.1).await;
    service.until_readiness(StatusCode::OK).await;
    for title in ["The Matrix", "MATRIX 2", "100%", "a_b", "axb"] {
        add(&service, title).await;
    }
    for (filter, expected) in [
        ("matrix", vec!["The Matrix", "MATRIX 2"]),
        ("MaTrIx%202", vec!["MATRIX 2"]),
        ("%25", vec!["100%"]),
        ("a_b", vec!["a_b"]),
        ("nothing", vec![]),
        ("", vec!["The Matrix", "MATRIX 2", "100%", "a_b", "axb"]),
    ] {
        let url = service.url(&format!("/api/movies?title={filter}"));
        let found = http::get(&url).await.unwrap().json();
        let titles: Vec<_> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|movie| movie["title"].as_str().unwrap())
            .collect();
        assert_eq!(titles, expected, "for {filter:?}");
    }
    let deleted = ask(&service, Method::DELETE, "/api/movies", "").await;
    assert_eq!(deleted.json(), json!({ "deleted": 5 }));
    let left = ask(&service, Method::GET, "/api/movies", "").await;
    assert_eq!(left.json(), json!([]));
}
