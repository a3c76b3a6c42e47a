//! The settings of the HTTP side, the same in every service.

use std::net::SocketAddr;
use std::time::Duration;

use super::settings::{Environment, SettingsError};

/// Where to listen and how much to accept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpSettings {
    pub(crate) listen: SocketAddr,
    /// For a whole request, body included.
    pub(crate) request_timeout: Duration,
    pub(crate) body_limit_bytes: usize,
    /// How long requests and messages in flight may take after SIGTERM.
    pub(crate) shutdown_grace: Duration,
}

impl HttpSettings {
    pub(crate) fn read(
        environment: &Environment,
        default_port: u16,
    ) -> Result<Self, SettingsError> {
        Ok(Self {
            listen: environment.parsed(
                "LISTEN_ADDR",
                SocketAddr::from(([0, 0, 0, 0], default_port)),
            )?,
            request_timeout: environment.seconds("REQUEST_TIMEOUT_SECONDS", 10)?,
            body_limit_bytes: environment.within("BODY_LIMIT_BYTES", 64 * 1024, 1..=16 << 20)?,
            shutdown_grace: environment.seconds("SHUTDOWN_GRACE_SECONDS", 20)?,
        })
    }
}
