//! The inventory's settings, read once at start.

use crate::database::DatabaseSettings;
use crate::service::http_settings::HttpSettings;
use crate::service::settings::{Environment, SettingsError};

const PORT: u16 = 8080;
const POOL_SIZE: u32 = 10;

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) http: HttpSettings,
    pub(crate) database: DatabaseSettings,
}

impl Config {
    pub(crate) fn read(environment: &Environment) -> Result<Self, SettingsError> {
        Ok(Self {
            http: HttpSettings::read(environment, PORT)?,
            database: DatabaseSettings::read(
                environment,
                "inventory-database",
                "inventory",
                POOL_SIZE,
            )?,
        })
    }
}
