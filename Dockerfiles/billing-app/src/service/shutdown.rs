//! Turns SIGTERM and SIGINT into one flag that every part of the service can wait for.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// Told once, remembered for ever; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Starts to listen for signals.
    pub(crate) fn on_signal() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("shutting down");
            sender.send_replace(true);
        });
        Ok(Self(receiver))
    }

    /// Completes when the process has been asked to stop.
    pub(crate) async fn requested(&mut self) {
        // An error means that the sender is gone, which happens only after it has sent.
        let _ = self.0.wait_for(|requested| *requested).await;
    }
}
