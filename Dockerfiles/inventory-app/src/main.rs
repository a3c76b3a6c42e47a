//! Keeps the movies: CRUD over HTTP in PostgreSQL.

mod config;
mod database;
mod inventory;
mod json_body;
mod movie;
mod routes;
mod service;
mod store;

use std::process::ExitCode;

use crate::service::telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    telemetry::exit_code(inventory::run().await)
}
