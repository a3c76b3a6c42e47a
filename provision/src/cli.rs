//! The command line of `orch-provision`: parsing only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use orch_contract::{Role, node_paths};

/// Turns this machine into a node of a K3s cluster.
#[derive(Debug, Parser)]
#[command(name = "orch-provision", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring the node up; what is already as it should be is left alone
    Up(UpArgs),
    /// Say what `up` would change and why, and change nothing: exit code 0 is nothing, 2 is something
    Plan(PlanArgs),
    /// Print what this machine is and how K3s is on it, as one JSON document (`NodeFacts` of the contract)
    Facts,
    /// Run the join service in the foreground (its systemd unit does)
    Serve(ServeArgs),
    /// Stop and remove what K3s and orch installed on this machine
    Reset(ResetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// What this machine becomes; must be what the configuration says
    #[arg(long, value_enum)]
    pub(crate) role: RoleArg,
    /// The node's configuration
    #[arg(long, default_value = node_paths::NODE_CONFIG)]
    pub(crate) config: PathBuf,
    /// How events are written to standard output
    #[arg(long, value_enum, default_value_t = Output::Plain)]
    pub(crate) output: Output,
    /// The same as `plan`
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// No server of this cluster has been up before: the first one makes it also where others cannot be reached
    #[arg(long)]
    pub(crate) new_cluster: bool,
    #[arg(skip)]
    pub(crate) staged: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// What this machine becomes; must be what the configuration says
    #[arg(long, value_enum)]
    pub(crate) role: RoleArg,
    /// The node's configuration
    #[arg(long, default_value = node_paths::NODE_CONFIG)]
    pub(crate) config: PathBuf,
    /// How events are written to standard output
    #[arg(long, value_enum, default_value_t = Output::Plain)]
    pub(crate) output: Output,
    /// A folder with what /etc/orch is going to hold; it is not looked at then
    #[arg(long)]
    pub(crate) staged: Option<PathBuf>,
}

impl From<PlanArgs> for UpArgs {
    fn from(plan: PlanArgs) -> Self {
        Self {
            role: plan.role,
            config: plan.config,
            output: plan.output,
            dry_run: true,
            new_cluster: false,
            staged: plan.staged,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The node's configuration
    #[arg(long, default_value = node_paths::NODE_CONFIG)]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// How events are written to standard output
    #[arg(long, value_enum, default_value_t = Output::Plain)]
    pub(crate) output: Output,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    Server,
    Agent,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Server => Role::Server,
            RoleArg::Agent => Role::Agent,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people
    Plain,
    /// One JSON object per line (`EventLine` of the contract)
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn up_needs_a_role() {
        assert!(Cli::try_parse_from(["orch-provision", "up"]).is_err());
        let cli = Cli::try_parse_from(["orch-provision", "up", "--role", "agent"]).unwrap();
        let Command::Up(up) = cli.command else {
            unreachable!("`up` parses as Up")
        };
        assert_eq!(up.config, PathBuf::from("/etc/orch/node.json"));
    }
}
