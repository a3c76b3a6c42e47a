//! Takes messages from the queue and settles each one: acknowledged after the commit, to the
//! dead-letter queue when it can never be recorded, and otherwise kept unacknowledged and tried
//! again. A message that is not settled when the connection ends goes back to the queue.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{Instrument, error, info, info_span, warn};

use crate::broker::{BrokerError, BrokerSettings};
use crate::delivery::{self, IdentifiedOrder};
use crate::ledger::{Ledger, LedgerError, Recorded};
use crate::service::backoff::Backoff;
use crate::service::shutdown::Shutdown;
use crate::service::telemetry::chain;

const CLIENT: &str = "billing-app";
/// For the broker to take the last acknowledgements when this service stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// AMQP 0-9-1 reply code of an orderly close.
const REPLY_SUCCESS: u16 = 200;

#[derive(Debug, Error)]
enum ConsumeError {
    #[error("the database cannot be used yet")]
    DatabaseNotReady,
    #[error("cannot use RabbitMQ")]
    Broker(#[from] BrokerError),
    #[error("cannot subscribe to queue {queue}")]
    Subscribe { queue: String, source: lapin::Error },
    #[error("the connection to RabbitMQ failed")]
    Connection(#[from] lapin::Error),
    #[error("RabbitMQ ended the subscription (was the queue deleted?)")]
    Cancelled,
}

/// A handle on the consumer; the clones share its state.
#[derive(Clone)]
pub(crate) struct Consumer {
    broker: BrokerSettings,
    prefetch: u16,
    /// Orders written at the same time.
    concurrency: usize,
    ledger: Ledger,
    subscribed: Arc<watch::Sender<bool>>,
}

impl Consumer {
    pub(crate) fn new(
        broker: BrokerSettings,
        prefetch: u16,
        concurrency: usize,
        ledger: Ledger,
    ) -> Self {
        Self {
            broker,
            prefetch,
            concurrency,
            ledger,
            subscribed: Arc::new(watch::Sender::new(false)),
        }
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        *self.subscribed.borrow()
    }

    /// Consumes until shutdown, over as many connections as that takes; then returns within
    /// seconds, as every step has a time limit.
    pub(crate) async fn run(self, mut shutdown: Shutdown) {
        let mut backoff = Backoff::new();
        while let Err(error) = self.consume(&shutdown).await {
            warn!(error = chain(&error), "not consuming");
            if self.subscribed.send_replace(false) {
                backoff = Backoff::new();
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = shutdown.requested() => return,
            }
        }
    }

    /// One connection, from login to its end; `Ok` only when asked to stop.
    async fn consume(&self, shutdown: &Shutdown) -> Result<(), ConsumeError> {
        let mut stop = shutdown.clone();
        let (connection, deliveries) = tokio::select! {
            subscribed = self.subscribe() => subscribed?,
            () = stop.requested() => return Ok(()),
        };
        info!(queue = self.broker.queue, "consuming");
        self.subscribed.send_replace(true);

        let mut stop_taking = shutdown.clone();
        deliveries
            .map_err(ConsumeError::from)
            .take_until(async move { stop_taking.requested().await })
            .try_for_each_concurrent(self.concurrency, |delivery| {
                self.settle(delivery, shutdown.clone())
            })
            .await?;
        if stop.requested().now_or_never().is_none() {
            return Err(ConsumeError::Cancelled);
        }
        let close = connection.close(REPLY_SUCCESS, "stopping".into());
        if let Ok(Err(error)) = tokio::time::timeout(CLOSE_TIMEOUT, close).await {
            warn!(
                error = chain(&error),
                "cannot close the connection to RabbitMQ"
            );
        }
        Ok(())
    }

    async fn subscribe(&self) -> Result<(Connection, lapin::Consumer), ConsumeError> {
        // Without a database every message would only wait here instead of in the queue.
        if !self.ledger.is_ready().await {
            return Err(ConsumeError::DatabaseNotReady);
        }
        let connection = self.broker.connect(CLIENT).await?;
        let channel = connection.create_channel().await?;
        self.broker.declare_topology(&channel).await?;
        let deliveries =
            self.open_subscription(&channel)
                .await
                .map_err(|source| ConsumeError::Subscribe {
                    queue: self.broker.queue.clone(),
                    source,
                })?;
        Ok((connection, deliveries))
    }

    async fn open_subscription(&self, channel: &Channel) -> Result<lapin::Consumer, lapin::Error> {
        channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await?;
        channel
            .basic_consume(
                self.broker.queue.as_str().into(),
                CLIENT.into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
    }

    async fn settle(&self, delivery: Delivery, shutdown: Shutdown) -> Result<(), ConsumeError> {
        let request_id = delivery::request_id(&delivery.properties);
        let span = match delivery::decode(&delivery.properties, &delivery.data) {
            Ok(identified) => {
                let span = info_span!("order", request_id, message_id = %identified.message_id);
                return self
                    .record(delivery, identified, shutdown)
                    .instrument(span)
                    .await;
            }
            Err(poison) => {
                let span = info_span!("order", request_id);
                let size = delivery.data.len();
                span.in_scope(|| {
                    error!(
                        error = chain(&poison),
                        size, "message to the dead-letter queue"
                    );
                });
                span
            }
        };
        dead_letter(&delivery).instrument(span).await
    }

    /// Tries until the order is committed, can never be, or the message is no longer ours.
    async fn record(
        &self,
        delivery: Delivery,
        identified: IdentifiedOrder,
        mut shutdown: Shutdown,
    ) -> Result<(), ConsumeError> {
        let mut backoff = Backoff::new();
        loop {
            match self.ledger.record(&identified).await {
                Ok(recorded) => {
                    delivery.ack(BasicAckOptions::default()).await?;
                    match recorded {
                        Recorded::Now => info!("order recorded"),
                        Recorded::Before => info!("order was recorded before"),
                    }
                    return Ok(());
                }
                Err(refused @ LedgerError::Refused(_)) => {
                    error!(error = chain(&refused), "message to the dead-letter queue");
                    return dead_letter(&delivery).await;
                }
                Err(failure) => warn!(error = chain(&failure), "order not recorded yet"),
            }
            tokio::select! {
                () = backoff.wait() => {}
                () = shutdown.requested() => return Ok(()),
            }
            if !delivery.acker.usable() {
                return Ok(());
            }
        }
    }
}

/// Rejected without requeueing, the broker moves the message by the queue's dead-letter exchange.
async fn dead_letter(delivery: &Delivery) -> Result<(), ConsumeError> {
    delivery
        .reject(BasicRejectOptions { requeue: false })
        .await?;
    Ok(())
}
