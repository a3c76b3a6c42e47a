//! The command line: types and help, no behaviour.

pub mod apply;
pub mod attest;
pub mod bundle;
pub mod cluster;
pub mod images;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::ui::Output;

/// Turns empty machines into a K3s cluster, and Dockerfiles into pinned, running images.
#[derive(Debug, Parser)]
#[command(
    name = "orch",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  orch create                     everything: machines, images, manifests
  orch create --dry-run           what it would do
  orch status                     nodes, rollouts, endpoints, digests
  orch images push --pin          build, push and pin what changed
  orch bundle create              all of it in one file, for a place without a network
  orch kubectl -- get pods -A     kubectl for this cluster, where none is installed
  orch -f other.yaml create       a second cluster beside the first

Exit codes:
  0 done   1 unforeseen   2 cluster plan: changes   3 bad input   4 this host   5 machines
  6 build  7 registry     8 apply   10-13 images check
  14 images reproduce     64 usage   130 interrupted

orch reads NO_COLOR, ORCH_CACHE, ORCH_BUILDER, ORCH_CA_FILE, SSL_CERT_FILE, DOCKER_CONFIG, ORCH_REGISTRY_USERNAME,
DOCKER_HUB_USERNAME and the usual proxy variables."
)]
pub struct Cli {
    /// The cluster's description
    #[arg(short, long, global = true, default_value = crate::config::FILE_NAME, env = "ORCH_FILE")]
    pub file: PathBuf,
    /// How progress and results are written
    #[arg(long, global = true, value_enum, default_value_t)]
    pub output: Output,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the machines and the cluster, build, push and pin the images, apply the manifests
    Create(CreateArgs),
    /// Start the machines again and wait until everything on them is ready
    Start,
    /// Stop the machines; every byte of data stays
    Stop,
    /// Remove the machines and everything that belongs to them
    Destroy(DestroyArgs),
    /// The cluster's nodes: plan, bring up, remove, kubeconfig
    Cluster(Box<cluster::ClusterArgs>),
    /// Build, name by content, push and pin images
    Images(Box<images::ImagesArgs>),
    /// One file with all that a cluster is made from, for places without a network
    Bundle(Box<bundle::BundleArgs>),
    /// Apply the stacks' manifests and wait until everything runs
    Apply(apply::ApplyArguments),
    /// Nodes, rollouts, endpoints and digests as they are now
    Status,
    /// Say what this host lacks; --fix installs and starts it
    Doctor(DoctorArgs),
    /// What Vagrant's provisioner asks of this host
    #[command(subcommand)]
    Machines(MachinesCommand),
    /// The cluster's kubeconfig
    #[command(subcommand)]
    Kubeconfig(KubeconfigCommand),
    /// Run kubectl against this cluster
    Kubectl(KubectlArgs),
    /// Check orch.yaml
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds that the rollouts may take together
    #[arg(long, default_value_t = 600)]
    pub timeout: u64,
}

#[derive(Debug, Args)]
pub struct DestroyArgs {
    /// SSH hosts: also where one cannot be freed of K3s any more; what is known of it is forgotten
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Install what is missing and start what is stopped
    #[arg(long)]
    pub fix: bool,
}

#[derive(Debug, Subcommand)]
pub enum MachinesCommand {
    /// Make keys, artifacts and one folder a node ready, and print where they are (JSON)
    Prepare {
        /// Vagrant's provider
        #[arg(long)]
        provider: crate::machines::Provider,
    },
    /// Remove network, volumes and registry once no machine is left
    Clean,
}

#[derive(Debug, Subcommand)]
pub enum KubeconfigCommand {
    /// Read K3s's own kubeconfig on stdin and write the project's (0600)
    Import {
        /// The server that it is of; the first one without
        #[arg(long)]
        server: Option<String>,
    },
    /// Print the path of the project's kubeconfig
    Path,
}

#[derive(Debug, Args)]
pub struct KubectlArgs {
    /// Arguments for kubectl
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read the file; an error names line and column
    Check,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// clap finds out only when the option is read, and panics.
    #[test]
    fn no_option_of_a_command_takes_the_place_of_a_general_one() {
        fn look(command: &clap::Command, general: &[clap::Id]) {
            for own in command.get_arguments() {
                let name = command.get_name();
                assert!(!general.contains(own.get_id()), "{name}: {}", own.get_id());
            }
            for below in command.get_subcommands() {
                look(below, general);
            }
        }
        let command = Cli::command();
        let general: Vec<clap::Id> = command
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .map(|argument| argument.get_id().clone())
            .collect();
        assert_eq!(general.len(), 2);
        for below in command.get_subcommands() {
            look(below, &general);
        }
        command.debug_assert();
    }
}
