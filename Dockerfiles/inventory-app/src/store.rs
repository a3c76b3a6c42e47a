//! The statements on table `movies`.

use std::time::Duration;

use sqlx::PgPool;
use thiserror::Error;

use crate::database::Database;
use crate::movie::{Movie, MovieFields};

/// For one statement, the wait for a connection included.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(6);

#[derive(Debug, Error)]
pub(crate) enum StoreError {
    #[error("the database schema is not there yet")]
    NotReady,
    #[error("the database did not answer in time")]
    Timeout,
    #[error("the database cannot be reached")]
    Unreachable(#[source] sqlx::Error),
    #[error("the database refused a statement")]
    Refused(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(reported) if !is_outage(reported.code().as_deref()) => {
                Self::Refused(error)
            }
            _ => Self::Unreachable(error),
        }
    }
}

/// SQLSTATE classes of a server that is going down, starting or out of resources, or that has
/// cancelled the statement: PostgreSQL documentation, appendix A.
fn is_outage(code: Option<&str>) -> bool {
    code.and_then(|code| code.get(..2))
        .is_some_and(|class| matches!(class, "08" | "53" | "57"))
}

#[derive(Debug, Clone)]
pub(crate) struct Store(Database);

impl Store {
    pub(crate) fn new(database: Database) -> Self {
        Self(database)
    }

    pub(crate) async fn add(&self, movie: &MovieFields) -> Result<Movie, StoreError> {
        let insert = sqlx::query_as(
            "INSERT INTO movies (title, description) VALUES ($1, $2) RETURNING id, title, description",
        )
        .bind(&movie.title)
        .bind(&movie.description);
        within_time(insert.fetch_one(self.pool()?)).await
    }

    /// All movies, or those whose title contains the given text, whatever its case.
    pub(crate) async fn list(&self, title: Option<&str>) -> Result<Vec<Movie>, StoreError> {
        let select = sqlx::query_as(
            "SELECT id, title, description FROM movies \
             WHERE $1::text IS NULL OR strpos(lower(title), lower($1)) > 0 ORDER BY id",
        )
        .bind(title);
        within_time(select.fetch_all(self.pool()?)).await
    }

    pub(crate) async fn get(&self, id: i64) -> Result<Option<Movie>, StoreError> {
        let select =
            sqlx::query_as("SELECT id, title, description FROM movies WHERE id = $1").bind(id);
        within_time(select.fetch_optional(self.pool()?)).await
    }

    /// `None` when there is no such movie.
    pub(crate) async fn replace(
        &self,
        id: i64,
        movie: &MovieFields,
    ) -> Result<Option<Movie>, StoreError> {
        let update = sqlx::query_as(
            "UPDATE movies SET title = $2, description = $3 WHERE id = $1 \
             RETURNING id, title, description",
        )
        .bind(id)
        .bind(&movie.title)
        .bind(&movie.description);
        within_time(update.fetch_optional(self.pool()?)).await
    }

    /// How many movies were deleted: none or one.
    pub(crate) async fn delete(&self, id: i64) -> Result<u64, StoreError> {
        let delete = sqlx::query("DELETE FROM movies WHERE id = $1").bind(id);
        let done = within_time(delete.execute(self.pool()?)).await?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn delete_all(&self) -> Result<u64, StoreError> {
        let delete = sqlx::query("DELETE FROM movies");
        let done = within_time(delete.execute(self.pool()?)).await?;
        Ok(done.rows_affected())
    }

    fn pool(&self) -> Result<&PgPool, StoreError> {
        self.0.pool().ok_or(StoreError::NotReady)
    }
}

async fn within_time<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    let result = tokio::time::timeout(OPERATION_TIMEOUT, statement).await;
    Ok(result.map_err(|_elapsed| StoreError::Timeout)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_goes_away_is_an_outage_and_a_broken_rule_is_not() {
        for code in ["57P01", "57P03", "53300", "08006", "57014"] {
            assert!(is_outage(Some(code)), "{code}");
        }
        for code in ["23514", "22021", "42P01", ""] {
            assert!(!is_outage(Some(code)), "{code}");
        }
        assert!(!is_outage(None));
    }
}
