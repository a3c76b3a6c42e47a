//! Requests that must be refused, each with a JSON error.

use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use serde_json::json;

use crate::postgres::Postgres;
use crate::{ask, http, inventory};

#[tokio::test]
async fn bad_requests_get_a_4xx_in_json() {
    let postgres = Postgres::shared();
    let service = inventory(postgres.create_database().await.1).await;
    service.until_readiness(StatusCode::OK).await;
    let movie = |title: &str, description: &str| {
        json!({ "title": title, "description": description }).to_string()
    };

    let huge = movie("a", &"x".repeat(64 * 1024));
    let deep = "[".repeat(10_000);
    for (body, status, code) in [
        ("", 400, "invalid_json"),
        ("{\"title\":", 400, "invalid_json"),
        ("\u{0}", 400, "invalid_json"),
        (&deep, 422, "invalid_value"),
        (r#"["a","b"]"#, 422, "invalid_value"),
        ("null", 422, "invalid_value"),
        ("{}", 422, "invalid_value"),
        (r#"{"title":"a"}"#, 422, "invalid_value"),
        (r#"{"title":1,"description":""}"#, 422, "invalid_value"),
        (r#"{"title":null,"description":""}"#, 422, "invalid_value"),
        (
            r#"{"title":"\u0000","description":""}"#,
            422,
            "invalid_value",
        ),
        (
            r#"{"title":"a","description":"b\u0000"}"#,
            422,
            "invalid_value",
        ),
        (
            r#"{"title":"\ud800","description":""}"#,
            400,
            "invalid_json",
        ),
        (&movie("", ""), 422, "invalid_value"),
        (&movie("   ", ""), 422, "invalid_value"),
        (&movie(&"x".repeat(256), ""), 422, "invalid_value"),
        (&movie("a", &"x".repeat(10_001)), 422, "invalid_value"),
        (&huge, 413, "body_too_large"),
    ] {
        let shown = &body[..body.len().min(60)];
        for (method, path) in [
            (Method::POST, "/api/movies"),
            (Method::PUT, "/api/movies/1"),
        ] {
            let answer = ask(&service, method, path, body).await;
            assert_eq!(answer.status.as_u16(), status, "{shown}: {answer:?}");
            assert_eq!(answer.error_code(), code, "{shown}");
        }
    }

    for (method, path, status, code) in [
        (Method::GET, "/", 404, "not_found"),
        (Method::GET, "/api/movies/1/2", 404, "not_found"),
        (Method::GET, "/api/movies/999999", 404, "movie_not_found"),
        (Method::GET, "/api/movies/-1", 400, "invalid_id"),
        (Method::GET, "/api/movies/0", 400, "invalid_id"),
        (Method::GET, "/api/movies/1.5", 400, "invalid_id"),
        (Method::GET, "/api/movies/NaN", 400, "invalid_id"),
        (
            Method::DELETE,
            "/api/movies/9223372036854775808",
            400,
            "invalid_id",
        ),
        (Method::GET, "/api/movies/%FF", 400, "invalid_id"),
        (Method::GET, "/api/movies?title=%00", 400, "invalid_query"),
        (
            Method::GET,
            "/api/movies?title=a&title=b",
            400,
            "invalid_query",
        ),
        (Method::PATCH, "/api/movies", 405, "method_not_allowed"),
        (Method::POST, "/api/movies/1", 405, "method_not_allowed"),
        (Method::DELETE, "/readyz", 405, "method_not_allowed"),
    ] {
        let answer = ask(&service, method.clone(), path, "").await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path}: {answer:?}"
        );
        assert_eq!(answer.error_code(), code, "{method} {path}");
    }

    let request = Request::post(service.url("/api/movies")).header("content-type", "text/plain");
    let answer = http::send(request.body(Full::from(movie("a", ""))).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(answer.error_code(), "unsupported_media_type");

    let left = ask(&service, Method::GET, "/api/movies", "").await;
    assert_eq!(
        left.json(),
        json!([]),
        "a refused request left something behind"
    );
}
