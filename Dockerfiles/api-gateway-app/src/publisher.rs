//! Puts messages into the queue of orders and reports success only for what the broker confirmed.
//!
//! One connection, replaced in the background whenever it fails, with several channels in confirm
//! mode. A channel carries one message at a time: the client library pairs a returned message with
//! whichever confirm comes next, so with two in flight the wrong order could be called accepted.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::Confirmation;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Event};
use thiserror::Error;
use tokio::sync::{Mutex, Notify, Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use uuid::Uuid;

use crate::broker::{BrokerError, BrokerSettings};
use crate::service::backoff::Backoff;
use crate::service::request_id::REQUEST_ID;
use crate::service::telemetry::chain;

const CLIENT: &str = "api-gateway-app";
/// AMQP 0-9-1 `delivery-mode`: written to disk.
const PERSISTENT: u8 = 2;

/// Why a message must not be called accepted.
#[derive(Debug, Error)]
pub(crate) enum PublishError {
    #[error("there is no connection to RabbitMQ at the moment")]
    NotConnected,
    #[error("every channel to RabbitMQ is busy")]
    Busy,
    #[error("no queue takes the message")]
    Unroutable,
    #[error("RabbitMQ refused the message")]
    Refused,
    #[error("the connection to RabbitMQ failed before the message was confirmed")]
    Lost(#[source] lapin::Error),
    #[error("RabbitMQ did not confirm the message in time")]
    Unconfirmed,
    #[error("publishing was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl PublishError {
    /// Whether the channel, and with it the connection, can no longer be relied on.
    fn ends_session(&self) -> bool {
        matches!(self, Self::Unroutable | Self::Lost(_) | Self::Unconfirmed)
    }
}

pub(crate) struct Message {
    pub(crate) id: Uuid,
    pub(crate) request_id: String,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Publisher {
    session: watch::Receiver<Option<Arc<Session>>>,
    timeout: Duration,
}

impl Publisher {
    /// Returns at once; the connection is made and kept up in the background.
    pub(crate) fn start(broker: BrokerSettings, channels: u16, timeout: Duration) -> Self {
        let (sender, session) = watch::channel(None);
        tokio::spawn(keep_connected(broker, channels, sender));
        Self { session, timeout }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.session.borrow().is_some()
    }

    /// Completes when the broker has the message on disk, or within the publish timeout.
    ///
    /// The work goes on when the caller goes away, so that a channel is never put back with a
    /// confirm outstanding.
    pub(crate) async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let session = self.session.borrow().clone();
        let session = session.ok_or(PublishError::NotConnected)?;
        let deadline = Instant::now() + self.timeout;
        tokio::spawn(async move { session.publish(message, deadline).await })
            .await
            .map_err(PublishError::Interrupted)?
    }
}

async fn keep_connected(
    broker: BrokerSettings,
    channels: u16,
    sender: watch::Sender<Option<Arc<Session>>>,
) {
    let mut backoff = Backoff::new();
    while !sender.is_closed() {
        match Session::open(&broker, channels).await {
            Ok(session) => {
                info!("connected to RabbitMQ");
                let session = Arc::new(session);
                sender.send_replace(Some(session.clone()));
                session.ended().await;
                sender.send_replace(None);
                backoff = Backoff::new();
            }
            Err(error) => warn!(error = chain(&error), "cannot use RabbitMQ"),
        }
        backoff.wait().await;
    }
}

/// One connection and its channels, for as long as it lasts.
struct Session {
    connection: Connection,
    queue: String,
    /// As many permits as `idle` has channels.
    permits: Semaphore,
    idle: Mutex<Vec<Channel>>,
    failed: Notify,
}

impl Session {
    async fn open(broker: &BrokerSettings, channels: u16) -> Result<Self, BrokerError> {
        let opening = |source| BrokerError::Declare {
            what: "a channel".to_owned(),
            source,
        };
        let connection = broker.connect(CLIENT).await?;
        let mut idle = Vec::new();
        for _ in 0..channels {
            let channel = connection.create_channel().await.map_err(opening)?;
            channel
                .confirm_select(ConfirmSelectOptions::default())
                .await
                .map_err(opening)?;
            idle.push(channel);
        }
        if let Some(channel) = idle.first() {
            broker.declare_topology(channel).await?;
        }
        Ok(Self {
            connection,
            queue: broker.queue.clone(),
            permits: Semaphore::new(idle.len()),
            idle: Mutex::new(idle),
            failed: Notify::new(),
        })
    }

    /// Completes when the connection has failed or a publisher has reason to distrust it.
    async fn ended(&self) {
        let mut events = self.connection.events_listener();
        loop {
            tokio::select! {
                () = self.failed.notified() => {
                    warn!("replacing the connection to RabbitMQ after a failed publish");
                    return;
                }
                event = events.next() => match event {
                    Some(Event::Error(error)) => {
                        warn!(error = chain(&error), "lost the connection to RabbitMQ");
                        return;
                    }
                    Some(Event::ConnectionBlocked(reason)) => {
                        warn!(reason, "RabbitMQ accepts no messages");
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }

    async fn publish(&self, message: Message, deadline: Instant) -> Result<(), PublishError> {
        let Ok(Ok(_permit)) = timeout_at(deadline, self.permits.acquire()).await else {
            return Err(PublishError::Busy);
        };
        let channel = self.idle.lock().await.pop();
        let channel = channel.ok_or(PublishError::NotConnected)?;
        let result = timeout_at(deadline, self.confirm(&channel, message))
            .await
            .unwrap_or(Err(PublishError::Unconfirmed));
        match &result {
            Err(error) if error.ends_session() => self.failed.notify_one(),
            _ => self.idle.lock().await.push(channel),
        }
        result
    }

    async fn confirm(&self, channel: &Channel, message: Message) -> Result<(), PublishError> {
        let mut headers = FieldTable::default();
        headers.insert(
            REQUEST_ID.into(),
            AMQPValue::LongString(message.request_id.into()),
        );
        let properties = BasicProperties::default()
            .with_app_id(CLIENT.into())
            .with_content_type("application/json".into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(message.id.to_string().into())
            .with_headers(headers);
        let mandatory = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let default_exchange = "";
        let confirmation = channel
            .basic_publish(
                default_exchange.into(),
                self.queue.as_str().into(),
                mandatory,
                &message.payload,
                properties,
            )
            .await
            .map_err(PublishError::Lost)?
            .await
            .map_err(PublishError::Lost)?;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_returned)) => Err(PublishError::Unroutable),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(PublishError::Refused),
        }
    }
}
