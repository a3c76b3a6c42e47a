//! The configuration of one node: written by the host, read by `orch-provision`.
//!
//! Reading is strict: an unknown key, a wrong type or a value that cannot work is an error that
//! names the key, before anything on the node is touched.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{DEFAULT_JOIN_PORT, NodeName, Secret, node_paths};

/// Version of [`NodeConfig`].
pub const NODE_CONFIG_SCHEMA: u32 = 1;
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
    pub server: Server,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// The server that agents join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub address: IpAddr,
    #[serde(default = "default_api_port")]
    pub api_port: u16,
    /// Port of the join service.
    #[serde(default = "default_join_port")]
    pub join_port: u16,
}

impl Server {
    /// K3s's supervisor URL, with IPv6 addresses in brackets.
    pub fn url(&self) -> String {
        format!(
            "https://{}",
            std::net::SocketAddr::new(self.address, self.api_port)
        )
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct K3s {
    /// A release such as `v1.34.2+k3s1`.
    pub version: String,
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
}

impl Default for Artifacts {
    fn default() -> Self {
        Self {
            directories: vec![node_paths::ARTIFACTS.into()],
            binary: None,
            release_url: Some(DEFAULT_RELEASE_URL.to_owned()),
            sha256: BTreeMap::new(),
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
    /// Server: the join service's private key.
    pub host_key: PathBuf,
    /// Server: the nodes' public keys, each with the node's name as its comment.
    pub authorized_keys: PathBuf,
    /// Agent: this node's private key.
    pub client_key: PathBuf,
    /// Agent: the server's public key.
    pub known_host: PathBuf,
    /// How long a token lives, in seconds.
    pub token_ttl_seconds: u64,
}

impl Default for Join {
    fn default() -> Self {
        Self {
            host_key: node_paths::JOIN_HOST_KEY.into(),
            authorized_keys: node_paths::JOIN_AUTHORIZED_KEYS.into(),
            client_key: node_paths::JOIN_CLIENT_KEY.into(),
            known_host: node_paths::JOIN_KNOWN_HOST.into(),
            token_ttl_seconds: 600,
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

const fn default_api_port() -> u16 {
    DEFAULT_API_PORT
}

const fn default_join_port() -> u16 {
    DEFAULT_JOIN_PORT
}

impl NodeConfig {
    /// Reads and checks a configuration.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
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

    /// Checks what types cannot say. The host calls it before uploading.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require(self.schema == NODE_CONFIG_SCHEMA, "schema", || {
            format!(
                "{} is not {NODE_CONFIG_SCHEMA}; upload the orch-provision that belongs to this orch",
                self.schema
            )
        })?;
        require(!self.cluster.name.is_empty(), "cluster.name", || {
            "must not be empty".to_owned()
        })?;
        self.validate_addresses()?;
        for (index, taint) in self.node.taints.iter().enumerate() {
            let effect = taint.rsplit_once(':').map(|(_, effect)| effect);
            require(
                matches!(
                    effect,
                    Some("NoSchedule" | "PreferNoSchedule" | "NoExecute")
                ),
                &format!("node.taints[{index}]"),
                || {
                    format!(
                        "{taint:?} is not key=value:Effect or key:Effect with NoSchedule, PreferNoSchedule or NoExecute"
                    )
                },
            )?;
        }
        self.validate_k3s()?;
        self.validate_artifacts()?;
        self.validate_paths()?;
        for (key, seconds) in [
            ("join.token_ttl_seconds", self.join.token_ttl_seconds),
            ("timeouts.download_seconds", self.timeouts.download_seconds),
            ("timeouts.join_seconds", self.timeouts.join_seconds),
            ("timeouts.start_seconds", self.timeouts.start_seconds),
            ("timeouts.ready_seconds", self.timeouts.ready_seconds),
        ] {
            require((1..=86_400).contains(&seconds), key, || {
                format!("{seconds} is not between 1 and 86400 seconds")
            })?;
        }
        Ok(())
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        for (key, address) in [
            ("node.address", self.node.address),
            ("server.address", self.server.address),
        ] {
            require(
                !(address.is_loopback() || address.is_unspecified() || address.is_multicast()),
                key,
                || format!("{address} is not an address that other nodes can reach"),
            )?;
        }
        match self.node.role {
            Role::Server => require(
                self.node.address == self.server.address,
                "server.address",
                || {
                    format!(
                        "{} is not node.address ({}): on the server both are the same; further servers are added with K3s's own --server",
                        self.server.address, self.node.address
                    )
                },
            ),
            Role::Agent => require(
                self.node.address != self.server.address,
                "node.address",
                || format!("{} is the server's address", self.node.address),
            ),
        }?;
        require(
            self.server.api_port != self.server.join_port,
            "server.join_port",
            || format!("{} is the API server's port", self.server.join_port),
        )?;
        for (key, port) in [
            ("server.api_port", self.server.api_port),
            ("server.join_port", self.server.join_port),
        ] {
            require(port != 0, key, || "0 is not a port".to_owned())?;
        }
        Ok(())
    }

    fn validate_k3s(&self) -> Result<(), ConfigError> {
        let version = &self.k3s.version;
        require(
            version.strip_prefix('v').is_some_and(|rest| {
                rest.bytes().next().is_some_and(|b| b.is_ascii_digit())
                    && rest
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b".+-".contains(&b))
            }),
            "k3s.version",
            || format!("{version:?} is not a release such as v1.34.2+k3s1"),
        )?;
        for (index, argument) in self.k3s.kubelet_args.iter().enumerate() {
            require(
                !argument.starts_with('-') && argument.contains('='),
                &format!("k3s.kubelet_args[{index}]"),
                || format!("{argument:?} is not name=value without leading dashes"),
            )?;
        }
        for (name, value) in &self.k3s.environment {
            let key = format!("k3s.environment.{name}");
            require(
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'),
                &key,
                || "is not the name of an environment variable".to_owned(),
            )?;
            require(!name.to_ascii_uppercase().contains("TOKEN"), &key, || {
                "tokens do not go through the environment: agents get theirs by joining".to_owned()
            })?;
            require(!value.expose().chars().any(char::is_control), &key, || {
                "the value has control characters".to_owned()
            })?;
        }
        Ok(())
    }

    fn validate_artifacts(&self) -> Result<(), ConfigError> {
        if let Some(url) = &self.artifacts.release_url {
            require(url.starts_with("https://"), "artifacts.release_url", || {
                format!("{url:?} is not an https URL")
            })?;
        }
        for (asset, sum) in &self.artifacts.sha256 {
            require(
                sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()),
                &format!("artifacts.sha256.{asset}"),
                || format!("{sum:?} is not 64 hexadecimal digits"),
            )?;
        }
        Ok(())
    }

    fn validate_paths(&self) -> Result<(), ConfigError> {
        let absolute = |key: &str, path: &Path| {
            require(path.is_absolute(), key, || {
                format!("{} is not an absolute path", path.display())
            })
        };
        for (index, path) in self.artifacts.directories.iter().enumerate() {
            absolute(&format!("artifacts.directories[{index}]"), path)?;
        }
        if let Some(path) = &self.artifacts.binary {
            absolute("artifacts.binary", path)?;
        }
        absolute("storage.path", &self.storage.path)?;
        for (index, directory) in self.storage.directories.iter().enumerate() {
            let mut parts = directory.path.components();
            let inside = parts.clone().next().is_some()
                && parts.all(|part| matches!(part, std::path::Component::Normal(_)));
            require(
                inside,
                &format!("storage.directories[{index}].path"),
                || {
                    format!(
                        "{} does not stay below storage.path",
                        directory.path.display()
                    )
                },
            )?;
        }
        require(
            self.storage.kind != StorageKind::Nfs
                || self.node.role == Role::Agent
                || !self.storage.clients.is_empty(),
            "storage.clients",
            || {
                "name the agents' network, such as 192.168.56.0/24: an NFS export without limits is open to everybody".to_owned()
            },
        )?;
        absolute("join.host_key", &self.join.host_key)?;
        absolute("join.authorized_keys", &self.join.authorized_keys)?;
        absolute("join.client_key", &self.join.client_key)?;
        absolute("join.known_host", &self.join.known_host)
    }
}

fn require(holds: bool, key: &str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError {
            key: key.to_owned(),
            problem: problem(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minimal() -> Value {
        json!({
            "schema": 1,
            "cluster": {"name": "orch"},
            "node": {"name": "agent", "role": "agent", "address": "192.168.56.11"},
            "server": {"address": "192.168.56.10"},
            "k3s": {"version": "v1.34.2+k3s1"},
        })
    }

    fn error_of(change: impl FnOnce(&mut Value)) -> String {
        let mut value = minimal();
        change(&mut value);
        NodeConfig::from_json(&value.to_string())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_minimal_configuration_has_defaults_for_the_rest() {
        let config = NodeConfig::from_json(&minimal().to_string()).unwrap();
        assert_eq!(config.server.url(), "https://192.168.56.10:6443");
        assert_eq!(config.server.join_port, 6222);
        assert_eq!(
            config.artifacts.release_url.as_deref(),
            Some(DEFAULT_RELEASE_URL)
        );
        assert_eq!(config.storage.kind, StorageKind::None);
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(NodeConfig::from_json(&again).unwrap(), config);
    }

    #[test]
    fn an_error_names_the_key() {
        for (change, expected) in [
            (json!({"k3s": {"version": 3}}), "k3s.version: "),
            (json!({"node": {"nmae": "x"}}), "node.nmae: "),
            (
                json!({"node": {"name": "A", "role": "agent", "address": "10.0.0.1"}}),
                "node.name: ",
            ),
            (
                json!({"timeouts": {"start_seconds": 0}}),
                "timeouts.start_seconds: ",
            ),
            (json!({"surplus": true}), "surplus: "),
            (
                json!({"artifacts": {"release_url": "http://x"}}),
                "artifacts.release_url: ",
            ),
            (
                json!({"artifacts": {"sha256": {"k3s": "abc"}}}),
                "artifacts.sha256.k3s: ",
            ),
            (json!({"storage": {"path": "x"}}), "storage.path: "),
            (
                json!({"storage": {"directories": [{"path": "../x", "uid": 1, "gid": 1}]}}),
                "storage.directories[0].path: ",
            ),
        ] {
            let message = error_of(|value| {
                for (key, new) in change.as_object().unwrap() {
                    value[key] = new.clone();
                }
            });
            assert!(message.starts_with(expected), "{message} / {expected}");
        }
    }

    #[test]
    fn an_agent_may_not_have_the_servers_address() {
        let message = error_of(|value| value["node"]["address"] = json!("192.168.56.10"));
        assert!(message.starts_with("node.address: "), "{message}");
    }

    #[test]
    fn a_loopback_address_is_no_node_address() {
        let message = error_of(|value| value["node"]["address"] = json!("127.0.0.1"));
        assert!(message.contains("127.0.0.1"), "{message}");
    }

    #[test]
    fn a_registry_password_is_not_in_debug_output() {
        let mut value = minimal();
        value["registries"] =
            json!({"configs": {"docker.io": {"auth": {"username": "u", "password": "hunter2"}}}});
        let config = NodeConfig::from_json(&value.to_string()).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn trailing_text_is_refused() {
        assert!(NodeConfig::from_json(&format!("{} x", minimal())).is_err());
    }
}
