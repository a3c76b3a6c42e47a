//! `orch-provision`: turns the machine it runs on into a node of a K3s cluster.

mod applied;
mod cli;
mod commands;
mod desired;
mod difference;
mod evidence;
mod facts;
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
    let command = match cli::Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return output::exit_usage(&error),
    };
    let outcome = match command {
        cli::Command::Up(arguments) => commands::up::run(arguments).await,
        cli::Command::Plan(arguments) => commands::up::run(arguments.into()).await,
        cli::Command::Facts => commands::facts::run()
            .await
            .map(|()| orch_contract::ExitCode::Success),
        cli::Command::Serve(arguments) => commands::serve::run(arguments)
            .await
            .map(|()| orch_contract::ExitCode::Success),
        cli::Command::Reset(arguments) => commands::reset::run(arguments).await,
    };
    output::exit(outcome)
}
