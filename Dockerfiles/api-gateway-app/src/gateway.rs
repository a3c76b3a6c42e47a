//! Puts the gateway together and runs it until it is told to stop.

use std::sync::Arc;

use thiserror::Error;

use crate::config::Config;
use crate::inventory::{self, Inventory};
use crate::orders;
use crate::publisher::Publisher;
use crate::service::health::{self, Checks, Dependencies};
use crate::service::settings::{Environment, SettingsError};
use crate::service::shutdown::Shutdown;
use crate::service::{middleware, server, telemetry};

#[derive(Debug, Error)]
pub(crate) enum GatewayError {
    #[error("cannot read the settings")]
    Settings(#[from] SettingsError),
    #[error("cannot serve HTTP")]
    Serve(#[from] std::io::Error),
}

pub(crate) async fn run() -> Result<(), GatewayError> {
    let environment = Environment::of_process();
    telemetry::start(&environment)?;
    let config = Config::read(&environment)?;
    let shutdown = Shutdown::on_signal()?;

    let inventory = Inventory::new(config.inventory, config.http.request_timeout);
    let publisher = Arc::new(Publisher::start(
        config.broker,
        config.publish_channels,
        config.publish_timeout,
    ));
    let routes = inventory::routes(inventory.clone())
        .merge(orders::routes(publisher.clone()))
        .merge(health::routes(Upstreams {
            inventory,
            publisher,
        }));
    server::serve(
        middleware::wrap(routes, &config.http),
        &config.http,
        shutdown,
    )
    .await?;
    Ok(())
}

#[derive(Clone)]
struct Upstreams {
    inventory: Inventory,
    publisher: Arc<Publisher>,
}

impl Dependencies for Upstreams {
    async fn check(&self) -> Checks {
        Checks::from([
            ("inventory-app", self.inventory.is_reachable().await),
            ("rabbitmq", self.publisher.is_connected()),
        ])
    }
}
