//! Structured logs: one JSON object per line on standard output.

use std::error::Error;
use std::process::ExitCode;

use tracing::level_filters::LevelFilter;
use tracing::{error, info};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::settings::{Environment, SettingsError};

/// Libraries that print message bodies, statements or the broker login at finer levels: whatever
/// `LOG_LEVEL` says, they stay at errors.
const QUIET: [&str; 4] = ["amq_protocol", "async_rs", "lapin", "sqlx"];

/// Reads `LOG_LEVEL` (error, warn, info, debug, trace). Logs are on even when that is not valid, so
/// that the error can be logged.
pub(crate) fn start(environment: &Environment) -> Result<(), SettingsError> {
    let setting = environment.parsed("LOG_LEVEL", LevelFilter::INFO);
    let level = setting.as_ref().map_or(LevelFilter::INFO, |level| *level);
    let targets = Targets::new()
        .with_default(level)
        .with_targets(QUIET.map(|target| (target, level.min(LevelFilter::ERROR))));
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false);
    tracing_subscriber::registry()
        .with(targets)
        .with(lines)
        .init();
    setting.map(drop)
}

/// The last line of the log, and what the process tells whoever started it.
pub(crate) fn exit_code<E: Error + 'static>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => {
            info!("stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(error = chain(&error), "cannot run");
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes on one line, for a log field.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
