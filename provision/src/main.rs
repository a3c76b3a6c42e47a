//! `orch-provision`: turns the machine it runs on into a node of a K3s cluster.

mod applied;
mod cli;
mod commands;
mod desired;
mod host;
mod join_service;
mod k3s;
mod output;
mod redact;
mod remove;
mod steps;
mod system;
#[cfg(test)]
mod testing;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match cli::Cli::parse().command {
        cli::Command::Up(arguments) => commands::up::run(arguments).await,
        cli::Command::Serve(arguments) => commands::serve::run(arguments).await,
        cli::Command::Reset(arguments) => commands::reset::run(arguments).await,
    };
    output::exit(outcome)
}
