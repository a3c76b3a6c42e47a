//! Where the files are: a cluster's keys on the host, and orch's own files on a node.

use std::path::{Path, PathBuf};

use crate::NodeName;

/// The join keys of one cluster on the host, usually `.orch/keys`.
///
/// Private keys are OpenSSH ed25519 files of mode 0600. `orch_ssh::keys::ensure_cluster_keys`
/// creates what is missing; what is there is replaced by a rotation only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys {
    directory: PathBuf,
}

impl ClusterKeys {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The join service's private key; uploaded to every server as [`node_paths::JOIN_HOST_KEY`].
    pub fn host_key(&self) -> PathBuf {
        self.directory.join("join_host_key")
    }

    /// The public key of the join service.
    pub fn host_public_key(&self) -> PathBuf {
        self.directory.join("join_host_key.pub")
    }

    /// The join service's public key, and while it gets a new one both; uploaded to every node that joins as
    /// [`node_paths::JOIN_KNOWN_HOST`].
    pub fn known_host(&self) -> PathBuf {
        self.directory.join("join_known_host")
    }

    /// How far a rotation of keys is; absent when none is under way.
    pub fn rotation(&self) -> PathBuf {
        self.directory.join("rotation.json")
    }

    /// The host's own key, with which it asks for facts; it never leaves the host.
    pub fn operator_key(&self) -> PathBuf {
        self.directory.join("operator_key")
    }

    /// Every node's public key, its comment being the node's name and role, and the operator's; uploaded to the servers as
    /// [`node_paths::JOIN_AUTHORIZED_KEYS`].
    pub fn authorized_keys(&self) -> PathBuf {
        self.directory.join("authorized_keys")
    }

    /// A node's private key; uploaded to it as [`node_paths::JOIN_CLIENT_KEY`].
    pub fn client_key(&self, node: &NodeName) -> PathBuf {
        self.directory
            .join("nodes")
            .join(node.as_str())
            .join("join_client_key")
    }

    pub fn client_public_key(&self, node: &NodeName) -> PathBuf {
        self.directory
            .join("nodes")
            .join(node.as_str())
            .join("join_client_key.pub")
    }
}

/// Absolute paths on a node. K3s's own are in K3s's documentation; these are orch's.
pub mod node_paths {
    /// The provisioner itself, where its systemd unit finds it.
    pub const PROVISIONER: &str = "/usr/local/bin/orch-provision";
    /// 0700; everything below it is uploaded by the host.
    pub const CONFIG_DIRECTORY: &str = "/etc/orch";
    /// The `NodeConfig`, 0600 because registry passwords may be in it.
    pub const NODE_CONFIG: &str = "/etc/orch/node.json";
    /// Server only, 0600.
    pub const JOIN_HOST_KEY: &str = "/etc/orch/join_host_key";
    /// Server only.
    pub const JOIN_AUTHORIZED_KEYS: &str = "/etc/orch/authorized_keys";
    /// Not on an only server, 0600.
    pub const JOIN_CLIENT_KEY: &str = "/etc/orch/join_client_key";
    /// Not on an only server: the join service's public keys in OpenSSH's one-line format.
    pub const JOIN_KNOWN_HOST: &str = "/etc/orch/join_known_host";
    /// What the provisioner keeps for itself; 0700.
    pub const STATE_DIRECTORY: &str = "/var/lib/orch";
    /// Hashes of what the running K3s was started with.
    pub const APPLIED: &str = "/var/lib/orch/applied.json";
    /// Where artifacts are uploaded to, searched by default.
    pub const ARTIFACTS: &str = "/var/lib/orch/artifacts";
    /// What was downloaded on the node.
    pub const CACHE: &str = "/var/lib/orch/cache";
    /// The directory that every node shares.
    pub const VOLUMES: &str = "/var/lib/orch/volumes";
    /// What the server exports over NFS: where the data of [`VOLUMES`] really lies.
    pub const EXPORTED: &str = "/var/lib/orch/exported";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_directory_of_its_own() {
        let keys = ClusterKeys::new(".orch/keys");
        assert_eq!(
            keys.client_key(&"agent".parse().unwrap()),
            Path::new(".orch/keys/nodes/agent/join_client_key")
        );
    }
}
