//! Takes orders from RabbitMQ and records each one exactly once in PostgreSQL.

mod billing;
mod broker;
mod config;
mod consumer;
mod database;
mod delivery;
mod ledger;
mod order;
mod service;

use std::process::ExitCode;

use crate::service::telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    telemetry::exit_code(billing::run().await)
}
