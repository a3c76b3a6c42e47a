//! The connection to PostgreSQL: settings, a pool that gets rid of dead connections, and the schema.
//!
//! The same file in inventory-app and billing-app (`ci/services-test` compares them).

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{Connection, PgPool};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::service::backoff::Backoff;
use crate::service::settings::{Environment, SettingsError};
use crate::service::telemetry::chain;

/// For a connection from the pool, new or used.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// For a used connection to prove that its peer is still there. A node that died sends no reset;
/// without this its connections would fill the pool until TCP gives up, many minutes later.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// For all migrations, the wait for another replica's included.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);
/// What the server allows one statement (PostgreSQL's `statement_timeout`).
const STATEMENT_TIMEOUT: &str = "5s";

#[derive(Debug, Error)]
enum SetUpError {
    #[error("cannot connect to PostgreSQL at {host}:{port}")]
    Connect {
        host: String,
        port: u16,
        source: sqlx::Error,
    },
    #[error("cannot bring the database schema up to date")]
    Migrate(#[source] MigrateError),
    #[error("PostgreSQL at {host}:{port} did not finish in time")]
    Timeout { host: String, port: u16 },
}

/// Where the database is and who we are there.
#[derive(Debug)]
pub(crate) struct DatabaseSettings {
    host: String,
    port: u16,
    name: String,
    user: String,
    password: SecretString,
    pub(crate) pool_size: u32,
}

impl DatabaseSettings {
    pub(crate) fn read(
        environment: &Environment,
        default_host: &str,
        default_name: &str,
        default_pool_size: u32,
    ) -> Result<Self, SettingsError> {
        Ok(Self {
            host: environment.parsed("DB_HOST", default_host.to_owned())?,
            port: environment.parsed("DB_PORT", 5432)?,
            name: environment.parsed("DB_NAME", default_name.to_owned())?,
            user: environment.required("DB_USER")?,
            password: environment.secret("DB_PASSWORD")?,
            pool_size: environment.within("DB_POOL_SIZE", default_pool_size, 1..=100)?,
        })
    }

    fn connect_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .database(&self.name)
            .username(&self.user)
            .password(self.password.expose_secret())
            .application_name(env!("CARGO_PKG_NAME"))
            .options([("statement_timeout", STATEMENT_TIMEOUT)])
    }
}

/// A pool that can be used once the schema is there; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pool: PgPool,
    migrated: watch::Receiver<bool>,
}

impl Database {
    /// Returns at once; connecting and migrating are retried in the background until they succeed.
    pub(crate) fn start(settings: DatabaseSettings, migrator: Migrator) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(settings.pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, _| {
                Box::pin(async move { ping(connection).await.map(|()| true) })
            })
            .after_release(|connection, _| {
                Box::pin(async move { ping(connection).await.map(|()| true) })
            })
            .connect_lazy_with(settings.connect_options());
        let (sender, migrated) = watch::channel(false);
        tokio::spawn(async move {
            let mut backoff = Backoff::new();
            while let Err(error) = migrate(&settings, &migrator).await {
                warn!(error = chain(&error), "the database cannot be used yet");
                backoff.wait().await;
            }
            info!("the database schema is up to date");
            sender.send_replace(true);
        });
        Self { pool, migrated }
    }

    /// `None` until the schema is there.
    pub(crate) fn pool(&self) -> Option<&PgPool> {
        self.migrated.borrow().then_some(&self.pool)
    }

    /// Whether a statement would succeed now.
    pub(crate) async fn is_ready(&self) -> bool {
        let Some(pool) = self.pool() else {
            return false;
        };
        // The pool pings a connection before it hands it out.
        pool.acquire().await.is_ok()
    }
}

async fn ping(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    tokio::time::timeout(PING_TIMEOUT, connection.ping())
        .await
        .unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Uses a pool of its own: the migration lock lives as long as its connection, which must not go
/// back among the others when this is interrupted.
async fn migrate(settings: &DatabaseSettings, migrator: &Migrator) -> Result<(), SetUpError> {
    let work = async {
        // Waiting for another replica's migration may take longer than a statement should.
        let options = settings
            .connect_options()
            .options([("statement_timeout", "0")]);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(|source| SetUpError::Connect {
                host: settings.host.clone(),
                port: settings.port,
                source,
            })?;
        let result = migrator.run(&pool).await.map_err(SetUpError::Migrate);
        pool.close().await;
        result
    };
    tokio::time::timeout(MIGRATION_TIMEOUT, work)
        .await
        .unwrap_or_else(|_elapsed| {
            Err(SetUpError::Timeout {
                host: settings.host.clone(),
                port: settings.port,
            })
        })
}
