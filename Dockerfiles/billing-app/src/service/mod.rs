//! What the three services have in common: settings, logs, HTTP plumbing, health, shutdown.
//!
//! Each build context must stand alone, so this folder is kept byte for byte the same in the three
//! services; `ci/services-test` fails when the copies differ.

pub(crate) mod api_error;
pub(crate) mod backoff;
pub(crate) mod health;
pub(crate) mod http_settings;
pub(crate) mod middleware;
pub(crate) mod request_id;
pub(crate) mod server;
pub(crate) mod settings;
pub(crate) mod shutdown;
pub(crate) mod telemetry;
