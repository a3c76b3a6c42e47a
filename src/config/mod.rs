//! `orch.yaml`: what the user asks for, parsed once into types.
//!
//! Boundary: reads one file and knows nothing of machines, images or Kubernetes. Every error names
//! file, line and column, because this is the file that people edit by hand. The Vagrantfile reads
//! the same file; what it takes from it is checked here first.

pub mod images;
pub mod ssh;
mod validate;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

/// The default file name, beside the Vagrantfile.
pub const FILE_NAME: &str = "orch.yaml";

/// The whole of `orch.yaml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster's name: part of every container, network, volume and state folder that orch makes.
    pub name: Spanned<String>,
    #[serde(default)]
    pub provider: Provider,
    /// Only where orch makes the machines.
    pub network: Option<Network>,
    /// How the nodes are reached, where they are hosts that exist already.
    #[serde(default = "unspoken")]
    pub ssh: Spanned<ssh::Defaults>,
    pub nodes: Vec<Node>,
    #[serde(default)]
    pub ports: Ports,
    #[serde(default)]
    pub k3s: K3s,
    #[serde(default)]
    pub registry: Registry,
    #[serde(default = "default_dockerfiles")]
    pub dockerfiles: PathBuf,
    #[serde(default)]
    pub stacks: Vec<Stack>,
    #[serde(default)]
    pub storage: Storage,
    #[serde(default)]
    pub images: images::Images,
}

/// Who makes the machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// VirtualBox, libvirt or docker: the first one this host can run.
    #[default]
    Auto,
    Virtualbox,
    Libvirt,
    Docker,
    /// Nobody: the nodes are hosts that exist already and are reached over SSH.
    Ssh,
}

/// The network that the nodes share.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub subnet: Spanned<Ipv4Net>,
}

/// One machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: Spanned<String>,
    pub role: Role,
    /// The address that the other nodes reach it on; it survives stop and start.
    pub address: Spanned<IpAddr>,
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// MiB.
    #[serde(default = "default_memory")]
    pub memory: u32,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub taints: Vec<String>,
    /// How this host is reached; only with `provider: ssh`.
    pub ssh: Option<Spanned<ssh::Host>>,
}

/// K3s's two roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Server,
    Agent,
}

impl From<Role> for orch_contract::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Server => Self::Server,
            Role::Agent => Self::Agent,
        }
    }
}

/// TCP ports on the host, all on 127.0.0.1.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// The Kubernetes API.
    pub api: u16,
    /// The registry that stands in for Docker Hub.
    pub registry: u16,
    /// Host ports that lead to a NodePort of the cluster.
    pub forward: Vec<Forward>,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            api: 6443,
            registry: 5000,
            forward: Vec::new(),
        }
    }
}

/// A host port that leads to a NodePort.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    pub host: u16,
    pub node: u16,
}

/// Which K3s, and where it comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct K3s {
    pub version: Spanned<String>,
    pub source: K3sSource,
    /// A folder with K3s's release assets, for `source: directory`.
    pub directory: Option<PathBuf>,
    /// Base of the release URLs, without the version.
    pub release_url: String,
    /// The name or address under which this computer reaches the API server of SSH hosts. Left out: the server's address.
    pub endpoint: Option<Spanned<String>>,
    /// One server keeps its state in embedded etcd, too, which can be snapshotted and grow.
    pub etcd: bool,
    /// Further keys of K3s's config.yaml, for every node.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Accept keys in `config` that orch does not know (a newer K3s).
    pub allow_unknown_config: bool,
    /// `name=value`, for every node.
    pub kubelet_args: Vec<String>,
    /// Packaged components to leave out.
    pub disable: Vec<String>,
    /// Further names and addresses in the API server's certificate.
    pub tls_sans: Vec<String>,
    /// Environment of the K3s service, such as HTTPS_PROXY. `$NAME` stands for this computer's variable.
    pub environment: BTreeMap<String, String>,
}

/// The release base of the project itself.
pub const K3S_RELEASES: &str = "https://github.com/k3s-io/k3s/releases/download";
/// The version that this orch was tested with.
pub const K3S_VERSION: &str = "v1.34.2+k3s1";

impl Default for K3s {
    fn default() -> Self {
        Self {
            version: nowhere(K3S_VERSION.into()),
            source: K3sSource::Auto,
            directory: None,
            release_url: K3S_RELEASES.into(),
            endpoint: None,
            etcd: false,
            config: serde_json::Map::new(),
            allow_unknown_config: false,
            kubelet_args: Vec::new(),
            // The gateway's NodePort is the way in; volumes come from the shared directory.
            disable: ["traefik", "servicelb", "local-storage"]
                .map(str::to_owned)
                .to_vec(),
            tls_sans: Vec::new(),
            environment: BTreeMap::new(),
        }
    }
}

/// Where K3s comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum K3sSource {
    /// The cache, then the release; the stand-in when the release host cannot be reached.
    #[default]
    Auto,
    /// The release or an error.
    Release,
    /// The folder named in `directory` or an error.
    Directory,
    /// The stand-in, even where the release can be reached.
    Standin,
}

/// Where the images go.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// The Docker Hub namespace; `DOCKER_HUB_USERNAME` when it is not given, `orch` without either.
    pub namespace: Option<String>,
    /// Where SSH hosts reach the registry that stands in for Docker Hub, such as `http://10.0.0.2:5000`.
    pub mirror: Option<String>,
}

/// A folder of manifests that belong together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    pub name: String,
    pub manifests: PathBuf,
    pub namespace: String,
}

/// Where the volumes live.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// An existing StorageClass instead of the directory that orch shares between the nodes.
    pub class: Option<String>,
    /// How SSH hosts come by the shared directory.
    pub share: Option<Share>,
}

/// How the nodes share `/var/lib/orch/volumes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Share {
    /// The server exports it over NFS 4.2 and the agents mount it.
    Nfs,
    /// It is mounted on every host already.
    Mounted,
    /// There is none: no stack has volumes.
    None,
}

/// A value that stands in no file.
fn nowhere<T>(value: T) -> Spanned<T> {
    let unknown = serde_saphyr::Location::UNKNOWN;
    Spanned::new(value, unknown, unknown)
}

fn unspoken<T: Default>() -> Spanned<T> {
    nowhere(T::default())
}

fn default_dockerfiles() -> PathBuf {
    PathBuf::from("Dockerfiles")
}

fn default_cpus() -> u32 {
    2
}

fn default_memory() -> u32 {
    2048
}

/// Why `orch.yaml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}; name another file with --file")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}:{line}:{column}: {message}")]
    Invalid {
        path: PathBuf,
        line: u64,
        column: u64,
        message: String,
    },
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// Parses and checks; `path` is for the errors only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self =
            serde_saphyr::from_str(text).map_err(|error| parse_error(path, &error))?;
        validate::check(&config).map_err(|problem| invalid(path, problem))?;
        Ok(config)
    }

    /// The server that makes the cluster, the first in the file.
    pub fn server(&self) -> Option<&Node> {
        self.servers().next()
    }

    /// All servers, in the file's order.
    pub fn servers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role == Role::Server)
    }

    /// Whether the servers keep their state in embedded etcd: several can do nothing else.
    pub fn uses_etcd(&self) -> bool {
        self.k3s.etcd || self.servers().count() > 1
    }

    /// The first usable address of the subnet: the host's own end of the network.
    pub fn gateway(&self) -> Option<Ipv4Addr> {
        self.subnet()?.hosts().next()
    }

    /// Where the registry that stands in for Docker Hub lives inside the network: the last usable
    /// address, which [`validate`] keeps free of nodes.
    pub fn registry_address(&self) -> Option<Ipv4Addr> {
        self.subnet()?.hosts().last()
    }

    /// The network that orch makes for its machines.
    pub fn subnet(&self) -> Option<Ipv4Net> {
        Some(self.network.as_ref()?.subnet.value)
    }
}

fn parse_error(path: &Path, error: &serde_saphyr::Error) -> ConfigError {
    let location = error.location();
    ConfigError::Invalid {
        path: path.to_owned(),
        line: location.map_or(1, |l| l.line()),
        column: location.map_or(1, |l| l.column()),
        message: short_message(error),
    }
}

fn invalid(path: &Path, problem: validate::Problem) -> ConfigError {
    ConfigError::Invalid {
        path: path.to_owned(),
        line: problem.line,
        column: problem.column,
        message: problem.message,
    }
}

/// The parser's message without its source excerpt and location, which [`ConfigError`] gives itself.
fn short_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let line = match (line.starts_with("line "), line.split_once(": ")) {
        (true, Some((_, rest))) => rest,
        _ => line,
    };
    line.rsplit_once(" at line ")
        .map_or(line, |(message, _)| message)
        .to_owned()
}

#[cfg(test)]
mod tests;
