//! `orch-provision`: parse, run, report, exit.

mod cli;

use clap::Parser;

fn main() {
    cli::Cli::parse();
}
