//! `orch cluster`: types and help.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use orch_contract::NodeName;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orch cluster plan                     what would change on each node, and why; exit code 2 when something would
  orch cluster up                       make it so; a node that was added to orch.yaml joins
  orch cluster up --prune               and nodes that orch.yaml no longer has are drained, deleted and reset
  orch cluster remove agent2            the same for one node
  orch cluster snapshot save            etcd's state, on a server; -o FILE also here
  orch cluster upgrade                  after k3s.version changed: one node after the other, servers first
  orch cluster kubeconfig --merge       the cluster in ~/.kube/config
  orch cluster facts --output json      what each node is and runs")]
pub struct ClusterArgs {
    #[command(subcommand)]
    pub command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Say what would change on each node, and why; change nothing
    Plan(Selection),
    /// Make every node what orch.yaml says; what is as it should be is left alone
    Up(UpArgs),
    /// Another K3s on every node, a few at a time: drain, upgrade, wait, uncordon
    Upgrade(UpgradeArgs),
    /// Drain nodes, take them out of the cluster, and remove K3s from them
    Remove(RemoveArgs),
    /// The cluster's kubeconfig: its path, or its entries merged into your own
    Kubeconfig(KubeconfigArgs),
    /// What each node is and runs
    Facts(Selection),
    /// The keys with which nodes join
    #[command(subcommand)]
    Keys(KeysCommand),
    /// etcd's snapshots: make one, see which there are, go back to one
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Have K3s make a snapshot, on the first server that can be asked
    Save(SnapshotSaveArgs),
    /// The snapshots that servers have
    List(SnapshotListArgs),
    /// Go back to a snapshot: what the cluster took in since then is lost
    Restore(SnapshotRestoreArgs),
}

#[derive(Debug, Args)]
pub struct SnapshotSaveArgs {
    /// What its name begins with; K3s adds the node and the time
    #[arg(default_value = "on-demand", value_parser = snapshot_name)]
    pub name: String,
    /// Fetch it into this file, mode 0600; it holds every Secret of the cluster
    #[arg(short, long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    #[command(flatten)]
    pub access: Access,
}

#[derive(Debug, Args)]
pub struct SnapshotListArgs {
    #[command(flatten)]
    pub access: Access,
}

#[derive(Debug, Args)]
pub struct SnapshotRestoreArgs {
    /// A snapshot's name, or a file of this computer
    #[arg(value_name = "FILE|NAME")]
    pub snapshot: String,
    /// Do it: the cluster's state is replaced
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub access: Access,
}

/// It becomes part of a file's name on the server.
fn snapshot_name(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty()
        && text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(is_plain)
    {
        return Ok(text.to_owned());
    }
    Err(
        "use letters, digits, '-', '_' and '.', at most 100, and begin with a letter or a digit"
            .to_owned(),
    )
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// New keys for the join service and every node; joining works all the while
    Rotate(RotateArgs),
}

/// Which nodes, and how they are reached.
#[derive(Debug, Clone, Default, Args)]
pub struct Selection {
    /// Only these nodes; all of orch.yaml without
    pub nodes: Vec<String>,
    #[command(flatten)]
    pub access: Access,
}

/// How nodes are reached.
#[derive(Debug, Clone, Default, Args)]
pub struct Access {
    /// Nodes that are worked on at the same time
    #[arg(long)]
    pub parallel: Option<u16>,
    /// A file with the password that sudo asks for on the nodes; without it, the one that ORCH_SUDO_PASSWORD_FILE names
    #[arg(long)]
    pub sudo_password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub selection: Selection,
    /// Remove nodes that orch.yaml no longer has: drain, delete, reset
    #[arg(long)]
    pub prune: bool,
    /// Print the plan and change nothing (`orch cluster plan`)
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub drain: DrainArgs,
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Only these nodes' keys, and not the join service's
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Say whose keys would be rotated, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub access: Access,
}

#[derive(Debug, Args)]
pub struct UpgradeArgs {
    #[command(flatten)]
    pub selection: Selection,
    /// Agents that may be away at the same time; servers always go one by one
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_unavailable: u16,
    /// Say who would be upgraded in which order, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub drain: DrainArgs,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The nodes to remove
    #[arg(required = true)]
    pub nodes: Vec<NodeName>,
    #[command(flatten)]
    pub access: Access,
    /// Say what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub drain: DrainArgs,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct DrainArgs {
    /// Seconds that a node's pods may take to move
    #[arg(long, default_value_t = 300)]
    pub drain_timeout: u64,
    /// Also where pods are lost that no controller makes again, and where a node cannot be reached any more
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// Merge the cluster into a kubeconfig, keeping all else in it
    #[arg(long)]
    pub merge: bool,
    /// Which kubeconfig; without it the one that kubectl writes to ($KUBECONFIG, ~/.kube/config)
    #[arg(long, requires = "merge")]
    pub into: Option<PathBuf>,
    /// The name of the cluster, its context and its user there; the cluster's own without
    #[arg(long, requires = "merge")]
    pub name: Option<String>,
    /// Make it the current context
    #[arg(long, requires = "merge")]
    pub current: bool,
    /// Replace another cluster that has the name
    #[arg(long, requires = "merge")]
    pub force: bool,
}
