//! Puts billing together and runs it until it is told to stop.

use thiserror::Error;

use crate::config::Config;
use crate::consumer::Consumer;
use crate::database::Database;
use crate::ledger::Ledger;
use crate::service::health::{self, Checks, Dependencies};
use crate::service::settings::{Environment, SettingsError};
use crate::service::shutdown::Shutdown;
use crate::service::{middleware, server, telemetry};

#[derive(Debug, Error)]
pub(crate) enum BillingError {
    #[error("cannot read the settings")]
    Settings(#[from] SettingsError),
    #[error("cannot serve HTTP")]
    Serve(#[from] std::io::Error),
}

pub(crate) async fn run() -> Result<(), BillingError> {
    let environment = Environment::of_process();
    telemetry::start(&environment)?;
    let config = Config::read(&environment)?;
    let shutdown = Shutdown::on_signal()?;

    let concurrency = config.database.pool_size as usize;
    let database = Database::start(config.database, sqlx::migrate!());
    let consumer = Consumer::new(
        config.broker,
        config.prefetch,
        concurrency,
        Ledger::new(database.clone()),
    );
    let upstreams = Upstreams {
        database,
        consumer: consumer.clone(),
    };
    let routes = middleware::wrap(health::routes(upstreams), &config.http);

    tokio::try_join!(
        server::serve(routes, &config.http, shutdown.clone()),
        async {
            consumer.run(shutdown).await;
            Ok(())
        },
    )?;
    Ok(())
}

#[derive(Clone)]
struct Upstreams {
    database: Database,
    consumer: Consumer,
}

impl Dependencies for Upstreams {
    async fn check(&self) -> Checks {
        Checks::from([
            ("database", self.database.is_ready().await),
            ("rabbitmq", self.consumer.is_subscribed()),
        ])
    }
}
