//! The gateway's settings, read once at start.

use std::time::Duration;

use axum::http::Uri;

use crate::broker::BrokerSettings;
use crate::service::http_settings::HttpSettings;
use crate::service::settings::{Environment, SettingsError};

const PORT: u16 = 3000;

#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) http: HttpSettings,
    /// `http://host:port` of inventory-app.
    pub(crate) inventory: Uri,
    pub(crate) broker: BrokerSettings,
    /// For the broker to confirm one order.
    pub(crate) publish_timeout: Duration,
    /// Orders that can wait for their confirms at the same time.
    pub(crate) publish_channels: u16,
}

impl Config {
    pub(crate) fn read(environment: &Environment) -> Result<Self, SettingsError> {
        let inventory = environment.parsed(
            "INVENTORY_URL",
            Uri::from_static("http://inventory-app:8080"),
        )?;
        let bare = inventory.path_and_query().is_none_or(|path| path == "/");
        if inventory.scheme_str() != Some("http") || inventory.host().is_none() || !bare {
            return Err(SettingsError::Invalid {
                name: "INVENTORY_URL",
                reason: "must look like http://host:port".to_owned(),
            });
        }
        Ok(Self {
            http: HttpSettings::read(environment, PORT)?,
            inventory,
            broker: BrokerSettings::read(environment)?,
            publish_timeout: environment.seconds("PUBLISH_TIMEOUT_SECONDS", 5)?,
            publish_channels: environment.within("PUBLISH_CHANNELS", 8, 1..=256)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_url_with_anything_but_host_and_port_is_refused() {
        let read = |url: &str| {
            let environment = [
                ("INVENTORY_URL", url),
                ("RABBITMQ_USER", "user"),
                ("RABBITMQ_PASSWORD", "password"),
            ];
            Config::read(
                &environment
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into_iter()
                    .collect(),
            )
        };
        assert!(read("http://inventory-app:8080").is_ok());
        assert!(read("http://inventory-app:8080/").is_ok());
        for url in [
            "inventory-app",
            "https://host",
            "http://host/path",
            "http://host/?q",
            "/",
        ] {
            assert!(read(url).is_err(), "accepted {url}");
        }
    }
}
