//! Machines: what the host gets ready for them, and Vagrant, which makes them.
//!
//! Boundary: knows node names, addresses and folders, nothing of images or Kubernetes. What differs
//! between providers on the Vagrant side is in the Vagrantfile; what the docker provider needs of
//! the engine is in [`docker`].

pub mod docker;
mod node_folder;
mod prepare;
mod ssh_key;
mod vagrant;

use std::path::PathBuf;

use crate::process::RunError;

pub use prepare::{
    Prepared, PreparedFile, PreparedNode, Request, WantedNode, prepare, provisioner, renew_keys,
    sketch,
};
pub use vagrant::{MachineEvent, MachineState, Vagrant, existing_provider};

/// The label that every container, network and volume of a cluster carries.
pub const CLUSTER_LABEL: &str = "dev.orch.cluster";
/// The label that a node's container carries, with the node's name.
pub const NODE_LABEL: &str = "dev.orch.node";

/// The label with the folder of the project that made the node.
pub const PROJECT_LABEL: &str = "dev.orch.project";

/// Who makes the machines: one of Vagrant's providers, or nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Virtualbox,
    Libvirt,
    Docker,
    /// The nodes are hosts that exist already.
    Ssh,
}

impl Provider {
    /// Those of Vagrant's.
    pub const VAGRANT: [Self; 3] = [Self::Virtualbox, Self::Libvirt, Self::Docker];

    /// Its name in orch.yaml, which is Vagrant's own for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Virtualbox => "virtualbox",
            Self::Libvirt => "libvirt",
            Self::Docker => "docker",
            Self::Ssh => "ssh",
        }
    }

    /// The first provider that this host can run, virtual machines before containers. libvirt counts only with Vagrant's
    /// plugin for it.
    pub fn detect(vagrant_libvirt: bool) -> Self {
        use crate::process::find_program;
        if find_program("VBoxManage").is_some() {
            Self::Virtualbox
        } else if find_program("virsh").is_some()
            && std::path::Path::new("/dev/kvm").exists()
            && vagrant_libvirt
        {
            Self::Libvirt
        } else {
            Self::Docker
        }
    }
}

impl std::str::FromStr for Provider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::VAGRANT
            .into_iter()
            .find(|provider| provider.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not virtualbox, libvirt or docker"))
    }
}

/// Why there are no machines.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("cannot {operation}")]
    Io {
        operation: String,
        source: std::io::Error,
    },
    #[error("the keys of the join service cannot be made")]
    Keys { source: orch_ssh::keys::KeyError },
    #[error("the configuration of node {node} is not usable")]
    NodeConfig {
        node: String,
        source: orch_contract::ConfigError,
    },
    #[error("the servers of the cluster cannot be listed: {problem}")]
    Servers { problem: &'static str },
    #[error("{name:?} is no node name")]
    NodeName {
        name: String,
        source: orch_contract::NameError,
    },
    #[error("{binary} is missing; build it with `cargo build --package orch-provision`")]
    NoProvisioner { binary: PathBuf },
    #[error("cannot hash {path}")]
    Hash {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("Docker could not {operation}")]
    Docker { operation: String, source: RunError },
    #[error(
        "a cluster named {cluster} already belongs to {project}; give this one another name (and other ports and another subnet) in orch.yaml, or destroy the other one"
    )]
    OtherProject { cluster: String, project: String },
    #[error(
        "{what} was made with {made}, orch.yaml says {wanted}; put that back, or run `orch destroy` first"
    )]
    MadeOtherwise {
        what: String,
        made: String,
        wanted: String,
    },
    #[error("vagrant could not {operation}{causes}")]
    Vagrant {
        operation: &'static str,
        /// What the nodes themselves reported, each on a line of its own.
        causes: String,
        source: RunError,
    },
}

fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> MachineError {
    let operation = operation.into();
    move |source| MachineError::Io { operation, source }
}
