//! The HTTP entry of the movies stack: forwards `/api/movies` to inventory-app and puts
//! `/api/billing` orders into RabbitMQ.

mod broker;
mod config;
mod gateway;
mod inventory;
mod json_body;
mod order;
mod orders;
mod publisher;
mod service;

use std::process::ExitCode;

use crate::service::telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    telemetry::exit_code(gateway::run().await)
}
