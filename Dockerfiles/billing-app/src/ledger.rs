//! Writes orders into table `orders`, at most once per message id.

use std::time::Duration;

use thiserror::Error;

use crate::database::Database;
use crate::delivery::IdentifiedOrder;

/// For one insert, the wait for a connection included.
const INSERT_TIMEOUT: Duration = Duration::from_secs(6);

#[derive(Debug, Error)]
pub(crate) enum LedgerError {
    /// Trying again later can help.
    #[error("the database cannot be used at the moment")]
    Unavailable(#[source] sqlx::Error),
    #[error("the database did not confirm an insert in time")]
    Timeout,
    #[error("the database schema is not there yet")]
    NotReady,
    /// Trying again cannot help.
    #[error("the database does not accept these values")]
    Refused(#[source] sqlx::Error),
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(reported) if is_about_values(reported.code().as_deref()) => {
                Self::Refused(error)
            }
            _ => Self::Unavailable(error),
        }
    }
}

/// SQLSTATE classes "data exception" and "integrity constraint violation": PostgreSQL
/// documentation, appendix A.
fn is_about_values(code: Option<&str>) -> bool {
    code.and_then(|code| code.get(..2))
        .is_some_and(|class| matches!(class, "22" | "23"))
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    Now,
    Before,
}

#[derive(Debug, Clone)]
pub(crate) struct Ledger(Database);

impl Ledger {
    pub(crate) fn new(database: Database) -> Self {
        Self(database)
    }

    /// Whether an order could be written now.
    pub(crate) async fn is_ready(&self) -> bool {
        self.0.is_ready().await
    }

    /// When this succeeds the order is committed, by this call or by an earlier one.
    pub(crate) async fn record(
        &self,
        identified: &IdentifiedOrder,
    ) -> Result<Recorded, LedgerError> {
        let pool = self.0.pool().ok_or(LedgerError::NotReady)?;
        let order = &identified.order;
        let insert = sqlx::query(
            "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
             VALUES ($1, $2, $3, $4) ON CONFLICT (message_id) DO NOTHING",
        )
        .bind(identified.message_id)
        .bind(order.user_id)
        .bind(order.number_of_items)
        .bind(order.total_amount)
        .execute(pool);
        let done = tokio::time::timeout(INSERT_TIMEOUT, insert)
            .await
            .map_err(|_elapsed| LedgerError::Timeout)??;
        Ok(match done.rows_affected() {
            0 => Recorded::Before,
            _ => Recorded::Now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_about_values_are_final() {
        for code in ["23514", "22003"] {
            assert!(is_about_values(Some(code)), "{code}");
        }
        for code in ["57P01", "53100", "40001", "42P01", "25006", ""] {
            assert!(!is_about_values(Some(code)), "{code}");
        }
        assert!(!is_about_values(None));
    }
}
