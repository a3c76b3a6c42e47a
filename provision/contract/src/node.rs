//! The configuration of one node: written by the host, read by `orch-provision`.
//!
//! Reading is strict: an unknown key, a wrong type or a value that cannot work is an error that
//! names the key, before anything on the node is touched.

mod servers;
mod validate;

pub use servers::{Server, Servers};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{NodeName, Secret, node_paths};

/// Version of [`NodeConfig`].
pub const NODE_CONFIG_SCHEMA: u32 = 2;
/// Port of K3s's API server and supervisor.
pub const DEFAULT_API_PORT: u16 = 6443;
/// Where K3s publishes its releases; `<base>/<version>/<asset>` is an asset.
pub const DEFAULT_RELEASE_URL: &str = "https://github.com/k3s-io/k3s/releases/download";

/// Why a configuration is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct ConfigError {
    /// Dotted path, such as `k3s.disable[0]`; `.` is the document itself.
    pub key: String,
    /// What is wrong; for JSON errors with line and column.
    pub problem: String,
}

/// Everything a node must know. All paths are absolute paths on the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// [`NODE_CONFIG_SCHEMA`].
    pub schema: u32,
    pub cluster: Cluster,
    pub node: Node,
    pub servers: Servers,
    pub k3s: K3s,
    #[serde(default)]
    pub artifacts: Artifacts,
    #[serde(default)]
    pub registries: Registries,
    #[serde(default)]
    pub storage: Storage,
    #[serde(default)]
    pub join: Join,
    #[serde(default)]
    pub timeouts: Timeouts,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub name: String,
}

/// What a node is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs the control plane, and pods.
    Server,
    /// Runs pods.
    Agent,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::Server => "server",
            Role::Agent => "agent",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: NodeName,
    pub role: Role,
    /// The address that the other nodes reach this one on; never a NAT one. An interface of the
    /// node must have it: K3s's node-ip and flannel-iface are derived from it.
    pub address: IpAddr,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `key=value:Effect` or `key:Effect`, as kubectl writes them.
    #[serde(default)]
    pub taints: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct K3s {
    /// A release such as `v1.34.2+k3s1`.
    pub version: String,
    /// One server keeps its state in embedded etcd instead of SQLite; several always do.
    #[serde(default)]
    pub etcd: bool,
    /// Further keys of K3s's config.yaml, without leading dashes. Keys that have a field of their
    /// own here are refused.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// Accept keys in `config` that this provisioner does not know (a newer K3s).
    #[serde(default)]
    pub allow_unknown_config: bool,
    /// Further names and addresses in the API server's certificate. Server only.
    #[serde(default)]
    pub tls_sans: Vec<String>,
    /// Packaged components to leave out (`traefik`, `servicelb`, ...). Server only.
    #[serde(default)]
    pub disable: Vec<String>,
    /// `name=value`, without leading dashes.
    #[serde(default)]
    pub kubelet_args: Vec<String>,
    /// Environment of the K3s service, such as HTTPS_PROXY. Never a token: K3s reads that from a
    /// file.
    #[serde(default)]
    pub environment: BTreeMap<String, Secret>,
}

/// Where the K3s binary and its air-gap images come from, in this order: `binary`, then
/// `directories`, then the node's cache, then `release_url`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Artifacts {
    /// Directories that may hold release assets under their release names (`k3s`,
    /// `sha256sum-amd64.txt`, `k3s-airgap-images-amd64.tar.zst`).
    pub directories: Vec<PathBuf>,
    /// An explicit K3s binary.
    pub binary: Option<PathBuf>,
    /// Base of the release download, https only; null forbids downloading.
    pub release_url: Option<String>,
    /// SHA-256 locks, asset name -> 64 hex digits. They win over any checksum file.
    pub sha256: BTreeMap<String, String>,
    /// Archives of images besides K3s's own, file name -> SHA-256 in 64 hex digits. They lie in `directories` and go to where
    /// K3s imports images from.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, String>,
}

impl Default for Artifacts {
    fn default() -> Self {
        Self {
            directories: vec![node_paths::ARTIFACTS.into()],
            binary: None,
            release_url: Some(DEFAULT_RELEASE_URL.to_owned()),
            sha256: BTreeMap::new(),
            images: BTreeMap::new(),
        }
    }
}

/// What goes into K3s's registries.yaml.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    /// Registry host (or `*`) -> where it is mirrored.
    pub mirrors: BTreeMap<String, Mirror>,
    /// Registry or endpoint host -> how to talk to it.
    pub configs: BTreeMap<String, RegistryConfig>,
}

impl Registries {
    pub fn is_empty(&self) -> bool {
        self.mirrors.is_empty() && self.configs.is_empty()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// URLs, tried in order.
    pub endpoints: Vec<String>,
    /// Regular expression on the repository -> replacement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewrites: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegistryAuth>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RegistryTls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryAuth {
    pub username: String,
    pub password: Secret,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryTls {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// The directory that every node shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    pub kind: StorageKind,
    /// Where it is on every node.
    pub path: PathBuf,
    /// NFS, server only: the networks or addresses that may mount it.
    pub clients: Vec<IpNet>,
    /// Server only: what must exist below `path`, and whose it is.
    pub directories: Vec<VolumeDirectory>,
}

/// A directory below the shared one, for one PersistentVolume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDirectory {
    /// Relative to [`Storage::path`].
    pub path: PathBuf,
    pub uid: u32,
    pub gid: u32,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            kind: StorageKind::None,
            path: node_paths::VOLUMES.into(),
            clients: Vec::new(),
            directories: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageKind {
    /// Whoever made the machine mounted it there; the provisioner verifies that.
    Bind,
    /// The server exports its directory over NFS 4.2, the agents mount it hard and synchronously.
    Nfs,
    /// Storage is not orch's: a StorageClass, or none.
    None,
}

/// The join service's key files on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Join {
    /// Server: the join service's private key, the same on all servers.
    pub host_key: PathBuf,
    /// Server: the nodes' public keys, each with the node's name and role as its comment.
    pub authorized_keys: PathBuf,
    /// This node's private key; not on an only server.
    pub client_key: PathBuf,
    /// The join service's public key, where the private one of this node is.
    pub known_host: PathBuf,
    /// How long a token that is not used lives, in seconds: as long as a start of K3s may take, so that
    /// no start that would succeed finds its token expired. A used one is revoked at once.
    pub token_ttl_seconds: u64,
}

impl Default for Join {
    fn default() -> Self {
        Self {
            host_key: node_paths::JOIN_HOST_KEY.into(),
            authorized_keys: node_paths::JOIN_AUTHORIZED_KEYS.into(),
            client_key: node_paths::JOIN_CLIENT_KEY.into(),
            known_host: node_paths::JOIN_KNOWN_HOST.into(),
            token_ttl_seconds: 300,
        }
    }
}

impl Join {
    pub const fn token_ttl(&self) -> Duration {
        Duration::from_secs(self.token_ttl_seconds)
    }
}

/// Limits of the waits, in seconds. K3s hangs on most mistakes instead of failing, so every wait
/// has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// One download.
    pub download_seconds: u64,
    /// From the first dial of the join service to a token in hand: covers a server that is still
    /// starting.
    pub join_seconds: u64,
    /// `systemctl start` of K3s.
    pub start_seconds: u64,
    /// From a started K3s to a Ready node with a pod network.
    pub ready_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            download_seconds: 600,
            join_seconds: 600,
            start_seconds: 300,
            ready_seconds: 300,
        }
    }
}

/// The one key that every schema has.
#[derive(Deserialize)]
struct Versioned {
    schema: u32,
}

impl NodeConfig {
    /// Whether the servers keep their state in embedded etcd.
    pub fn uses_etcd(&self) -> bool {
        self.k3s.etcd || !self.servers.others.is_empty()
    }

    /// Whether this node initialises the cluster and shares the nodes' directory.
    pub fn is_first_server(&self) -> bool {
        self.servers.first.name == self.node.name
    }

    /// This server; the first one on an agent.
    pub fn own_server(&self) -> &Server {
        let mut servers = self.servers.iter();
        let own = servers.find(|server| server.name == self.node.name);
        own.unwrap_or(&self.servers.first)
    }

    /// The servers that this node may join, in their order.
    pub fn other_servers(&self) -> impl Iterator<Item = &Server> {
        let servers = self.servers.iter();
        servers.filter(|server| server.name != self.node.name)
    }

    /// Reads and checks a configuration.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        // Another schema has other keys: those are not what is wrong with it.
        if let Ok(Versioned { schema }) = serde_json::from_str(text) {
            validate::schema(schema)?;
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let config: Self =
            serde_path_to_error::deserialize(&mut deserializer).map_err(|error| ConfigError {
                key: error.path().to_string(),
                problem: error.into_inner().to_string(),
            })?;
        deserializer.end().map_err(|error| ConfigError {
            key: ".".to_owned(),
            problem: error.to_string(),
        })?;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
