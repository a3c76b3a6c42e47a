//! Puts the inventory together and runs it until it is told to stop.

use thiserror::Error;

use crate::config::Config;
use crate::database::Database;
use crate::routes;
use crate::service::health::{self, Checks, Dependencies};
use crate::service::settings::{Environment, SettingsError};
use crate::service::shutdown::Shutdown;
use crate::service::{middleware, server, telemetry};
use crate::store::Store;

#[derive(Debug, Error)]
pub(crate) enum InventoryError {
    #[error("cannot read the settings")]
    Settings(#[from] SettingsError),
    #[error("cannot serve HTTP")]
    Serve(#[from] std::io::Error),
}

pub(crate) async fn run() -> Result<(), InventoryError> {
    let environment = Environment::of_process();
    telemetry::start(&environment)?;
    let config = Config::read(&environment)?;
    let shutdown = Shutdown::on_signal()?;

    let database = Database::start(config.database, sqlx::migrate!());
    let routes =
        routes::routes(Store::new(database.clone())).merge(health::routes(Upstream(database)));
    server::serve(
        middleware::wrap(routes, &config.http),
        &config.http,
        shutdown,
    )
    .await?;
    Ok(())
}

#[derive(Clone)]
struct Upstream(Database);

impl Dependencies for Upstream {
    async fn check(&self) -> Checks {
        Checks::from([("database", self.0.is_ready().await)])
    }
}
