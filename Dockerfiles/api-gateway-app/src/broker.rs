//! How the stack's services reach RabbitMQ and what they expect to find there.
//!
//! The same file in api-gateway-app and billing-app (`ci/services-test` compares them): both declare
//! the same topology, so that whichever starts first creates it.
//!
//! Queues are classic and durable: for a persistent message the broker confirms what is on disk.
//! Not quorum queues: on a single node they replicate to nobody, and with RabbitMQ 3.10 one that is
//! killed within a second of the queue's creation comes back with an empty queue, confirmed or not.
//! See <https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

use crate::service::settings::{Environment, SettingsError};

/// For TCP, the AMQP handshake and the login together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Seconds; a peer that vanished is noticed after about two of these.
const HEARTBEAT_SECONDS: u16 = 5;
/// AMQP short strings hold 255 bytes; the suffixes below must fit too.
const MAX_QUEUE_NAME: usize = 200;

#[derive(Debug, Error)]
pub(crate) enum BrokerError {
    #[error("cannot connect to RabbitMQ at {host}:{port}")]
    Connect {
        host: String,
        port: u16,
        source: lapin::Error,
    },
    #[error("RabbitMQ at {host}:{port} did not complete a connection in time")]
    ConnectTimeout { host: String, port: u16 },
    #[error("cannot declare {what} in RabbitMQ")]
    Declare { what: String, source: lapin::Error },
}

/// Where the broker is, who we are there, and the queue of orders.
#[derive(Debug, Clone)]
pub(crate) struct BrokerSettings {
    host: String,
    port: u16,
    vhost: String,
    user: String,
    password: SecretString,
    pub(crate) queue: String,
}

impl BrokerSettings {
    pub(crate) fn read(environment: &Environment) -> Result<Self, SettingsError> {
        let queue = environment.parsed("RABBITMQ_QUEUE", "billing_queue".to_owned())?;
        if queue.len() > MAX_QUEUE_NAME {
            return Err(SettingsError::Invalid {
                name: "RABBITMQ_QUEUE",
                reason: format!("must not be longer than {MAX_QUEUE_NAME} bytes"),
            });
        }
        Ok(Self {
            host: environment.parsed("RABBITMQ_HOST", "rabbitmq".to_owned())?,
            port: environment.parsed("RABBITMQ_PORT", 5672)?,
            vhost: environment.parsed("RABBITMQ_VHOST", "/".to_owned())?,
            user: environment.required("RABBITMQ_USER")?,
            password: environment.secret("RABBITMQ_PASSWORD")?,
            queue,
        })
    }

    /// Connects once, within [`CONNECT_TIMEOUT`]. `client` is the name the broker shows for it.
    pub(crate) async fn connect(&self, client: &str) -> Result<Connection, BrokerError> {
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.user.clone(),
                    password: self.password.expose_secret().to_owned(),
                },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString {
                heartbeat: Some(HEARTBEAT_SECONDS),
                ..AMQPQueryString::default()
            },
        };
        let properties = ConnectionProperties::default().with_connection_name(client.into());
        tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect_uri(uri, properties))
            .await
            .map_err(|_elapsed| BrokerError::ConnectTimeout {
                host: self.host.clone(),
                port: self.port,
            })?
            .map_err(|source| BrokerError::Connect {
                host: self.host.clone(),
                port: self.port,
                source,
            })
    }

    /// Creates what is missing: the queue, and the dead-letter exchange and queue behind it.
    pub(crate) async fn declare_topology(&self, channel: &Channel) -> Result<(), BrokerError> {
        let queue = self.queue.as_str();
        let dead_letter_exchange = format!("{queue}.dlx");
        let dead_letter_queue = format!("{queue}.dead");

        channel
            .exchange_declare(
                dead_letter_exchange.as_str().into(),
                ExchangeKind::Direct,
                ExchangeDeclareOptions {
                    durable: true,
                    ..ExchangeDeclareOptions::default()
                },
                FieldTable::default(),
            )
            .await
            .map_err(declaring(&dead_letter_exchange))?;
        let options = QueueDeclareOptions::durable();
        channel
            .queue_declare(
                dead_letter_queue.as_str().into(),
                options,
                FieldTable::default(),
            )
            .await
            .map_err(declaring(&dead_letter_queue))?;
        channel
            .queue_bind(
                dead_letter_queue.as_str().into(),
                dead_letter_exchange.as_str().into(),
                queue.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(declaring(&dead_letter_queue))?;
        channel
            .queue_declare(
                queue.into(),
                options,
                FieldTable::from(BTreeMap::from([
                    ("x-dead-letter-exchange".into(), text(&dead_letter_exchange)),
                    ("x-dead-letter-routing-key".into(), text(queue)),
                ])),
            )
            .await
            .map_err(declaring(queue))?;
        Ok(())
    }
}

fn declaring(what: &str) -> impl FnOnce(lapin::Error) -> BrokerError + use<> {
    let what = what.to_owned();
    move |source| BrokerError::Declare { what, source }
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_does_not_show_in_debug_output() {
        let environment = [
            ("RABBITMQ_USER", "orders"),
            ("RABBITMQ_PASSWORD", "hunter2"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
        let settings = BrokerSettings::read(&environment).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
