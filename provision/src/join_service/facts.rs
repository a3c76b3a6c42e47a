//! This machine's facts for the operator.

use async_trait::async_trait;
use orch_contract::MAX_FACTS_BYTES;
use orch_ssh::server::FactsSource;
use tokio::sync::Mutex;

use crate::facts::gather;
use crate::system::{Disk, Https, Processes, Sockets, System, Systemd};

/// Gathers them anew each time, one after the other: each time costs a few processes and the digest of
/// a large file.
#[derive(Default)]
pub(crate) struct ThisMachine {
    turn: Mutex<()>,
}

#[async_trait]
impl FactsSource for ThisMachine {
    async fn facts(&self) -> Result<Vec<u8>, String> {
        let _turn = self.turn.lock().await;
        let commands = Processes;
        let services = Systemd::new(&commands);
        let system = System {
            files: &Disk,
            commands: &commands,
            services: &services,
            download: &Https,
            endpoints: &Sockets,
        };
        let facts = gather(&system).await;
        let json = serde_json::to_vec(&facts).map_err(|error| error.to_string())?;
        if json.len() > MAX_FACTS_BYTES {
            return Err(format!(
                "its facts are {} bytes, too many to be sent",
                json.len()
            ));
        }
        Ok(json)
    }
}
