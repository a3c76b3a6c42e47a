//! Nodes over SSH: brings each of them what `orch-provision` needs, runs it there, all at once.
//!
//! Boundary: knows hosts, files and the events of `orch-provision`; nothing of orch.yaml, of Vagrant or of Kubernetes. What a
//! node would have changed is worked out on the node by the same program that changes it, so that `plan` and `up` cannot
//! disagree; only what travels there is compared here.

mod deliver;
mod facts;
mod fleet;
mod node;
mod report;
mod session;
pub mod snapshot;

use std::path::PathBuf;

use orch_contract::{EventLine, Role};
use zeroize::Zeroizing;

use crate::remote::{RemoteError, Wanted};

pub use deliver::Parcel;
pub use facts::{FactsReport, facts, kubeconfig};
pub use fleet::{plan, renew_keys, reset, up};
pub use report::{NodeReport, PlannedStep, chain};

/// One node: how it is reached, and the folder with its configuration and its credentials.
#[derive(Debug, Clone)]
pub struct Host {
    pub name: String,
    pub role: Role,
    /// Goes to `/etc/orch`.
    pub folder: PathBuf,
    pub wanted: Wanted,
}

/// A file that every node gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFile {
    pub path: PathBuf,
    /// 64 hex digits.
    pub sha256: String,
}

/// What every node gets.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub provisioner: SharedFile,
    /// Empty where the nodes have them already, by a mount.
    pub artifacts: Vec<SharedFile>,
}

/// How the nodes are worked on.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes at the same time.
    pub parallel: usize,
    /// No server of this cluster has been up before, as far as this computer knows.
    pub is_new_cluster: bool,
    /// For hosts whose sudo asks for one.
    pub sudo_password: Option<crate::remote::SudoPassword>,
}

/// What happens on the nodes.
#[derive(Debug, Clone)]
pub enum NodeEvent {
    /// One line for people.
    Said { node: String, text: String },
    /// The node's own event.
    Line(Box<EventLine>),
}

/// Receives what happens on the nodes.
pub trait Watcher: Send + Sync {
    fn watch(&self, event: NodeEvent);
}

/// Why a node is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("node {node}: cannot read {}", path.display())]
    Local {
        node: String,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("node {node}: {step}: {reason}{}", below(causes))]
    Step {
        node: String,
        step: String,
        reason: String,
        /// Causes and evidence, outermost first.
        causes: Vec<String>,
    },
    #[error("node {node}: orch-provision {how}{}", below(said))]
    Ended {
        node: String,
        how: String,
        /// What it wrote to its standard error last.
        said: Vec<String>,
    },
    #[error("node {node}: no server of the cluster came up, see {servers}")]
    NoServer { node: String, servers: String },
    #[error("node {node}: what it answered cannot be understood: {problem}")]
    Answer { node: String, problem: String },
}

fn below(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n      {line}")).collect()
}

/// Bytes that may be secret.
pub type Secret = Zeroizing<Vec<u8>>;
