//! Billing's settings, read once at start.

use crate::broker::BrokerSettings;
use crate::database::DatabaseSettings;
use crate::service::http_settings::HttpSettings;
use crate::service::settings::{Environment, SettingsError};

const PORT: u16 = 8080;
const POOL_SIZE: u32 = 4;

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) http: HttpSettings,
    pub(crate) database: DatabaseSettings,
    pub(crate) broker: BrokerSettings,
    /// Unacknowledged messages that the broker hands out at once (AMQP `prefetch-count`).
    pub(crate) prefetch: u16,
}

impl Config {
    pub(crate) fn read(environment: &Environment) -> Result<Self, SettingsError> {
        Ok(Self {
            http: HttpSettings::read(environment, PORT)?,
            database: DatabaseSettings::read(environment, "billing-database", "orders", POOL_SIZE)?,
            broker: BrokerSettings::read(environment)?,
            prefetch: environment.within("PREFETCH", 32, 1..=1000)?,
        })
    }
}
