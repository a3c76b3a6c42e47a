//! Parse, run, say how it ended.

use std::process::ExitCode;

use clap::Parser as _;
use orch::{cli::Cli, commands, exit, ui::Ui};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error).into(),
    };
    let ui = Ui::new(cli.output);
    match commands::run(cli, &ui).await {
        Ok(exit) => exit.into(),
        Err(error) => {
            ui.error(&error);
            exit::of(&error).into()
        }
    }
}
