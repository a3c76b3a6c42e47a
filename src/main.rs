//! Only so that the image pipeline can be run before the real `main` is merged.
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Images(orch::cli::images::ImagesArgs),
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    let Command::Images(arguments) = Cli::parse().command;
    let reporter = std::sync::Arc::new(orch::images::event::PlainReporter::new(std::io::stderr()));
    let settings = orch::commands::images::ImageSettings {
        stand_in_port: std::env::var("ORCH_TEST_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(5000),
        cluster: std::env::var("ORCH_TEST_CLUSTER").unwrap_or_else(|_| "images-dev".to_owned()),
        ..Default::default()
    };
    match orch::commands::images::run(arguments, settings, reporter, &mut std::io::stdout()).await {
        Ok(exit) => exit.into(),
        Err(error) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("error: {error:#}");
            }
            orch::exit::of(&error).into()
        }
    }
}
