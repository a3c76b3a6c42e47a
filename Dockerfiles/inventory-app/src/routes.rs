//! `/api/movies` over HTTP. Every path works with and without a trailing slash.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Json, Router, routing};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{error, info};

use crate::json_body::JsonBody;
use crate::movie::{InvalidMovie, MAX_TITLE, Movie, MovieFields, check_text};
use crate::service::api_error::ApiError;
use crate::service::telemetry::chain;
use crate::store::{Store, StoreError};

pub(crate) fn routes(store: Store) -> Router {
    let all = || routing::get(list).post(add).delete(delete_all);
    let one = || routing::get(show).put(replace).delete(delete);
    Router::new()
        .route("/api/movies", all())
        .route("/api/movies/", all())
        .route("/api/movies/{id}", one())
        .route("/api/movies/{id}/", one())
        .with_state(store)
}

type Id = Result<Path<i64>, PathRejection>;

#[derive(Deserialize)]
struct Filter {
    title: Option<String>,
}

async fn list(
    State(store): State<Store>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Vec<Movie>>, ApiError> {
    let Query(filter) = filter.map_err(|rejection| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_query",
            rejection.body_text(),
        )
    })?;
    let title = filter.title.filter(|title| !title.is_empty());
    if let Some(title) = &title {
        check_text(title, MAX_TITLE, InvalidMovie::LongTitle).map_err(|invalid| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_query",
                invalid.to_string(),
            )
        })?;
    }
    Ok(Json(store.list(title.as_deref()).await?))
}

async fn add(
    State(store): State<Store>,
    JsonBody(movie): JsonBody<MovieFields>,
) -> Result<Json<Movie>, ApiError> {
    Ok(Json(store.add(&movie).await?))
}

async fn delete_all(State(store): State<Store>) -> Result<Json<Value>, ApiError> {
    let deleted = store.delete_all().await?;
    info!(deleted, "all movies deleted");
    Ok(Json(json!({ "deleted": deleted })))
}

async fn show(State(store): State<Store>, id: Id) -> Result<Json<Movie>, ApiError> {
    let movie = store.get(valid(id)?).await?;
    movie.map(Json).ok_or_else(no_such_movie)
}

async fn replace(
    State(store): State<Store>,
    id: Id,
    JsonBody(movie): JsonBody<MovieFields>,
) -> Result<Json<Movie>, ApiError> {
    let movie = store.replace(valid(id)?, &movie).await?;
    movie.map(Json).ok_or_else(no_such_movie)
}

async fn delete(State(store): State<Store>, id: Id) -> Result<Json<Value>, ApiError> {
    match store.delete(valid(id)?).await? {
        0 => Err(no_such_movie()),
        deleted => Ok(Json(json!({ "deleted": deleted }))),
    }
}

fn valid(id: Id) -> Result<i64, ApiError> {
    match id {
        Ok(Path(id)) if id > 0 => Ok(id),
        _ => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_id",
            "the id must be a whole number above zero",
        )),
    }
}

fn no_such_movie() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "movie_not_found",
        "there is no movie with this id",
    )
}

impl From<StoreError> for ApiError {
    fn from(failure: StoreError) -> Self {
        error!(error = chain(&failure), "a statement failed");
        match failure {
            StoreError::NotReady | StoreError::Timeout | StoreError::Unreachable(_) => {
                Self::unavailable(
                    "database_unavailable",
                    "the movies cannot be reached at the moment",
                )
            }
            StoreError::Refused(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "internal error",
            ),
        }
    }
}
