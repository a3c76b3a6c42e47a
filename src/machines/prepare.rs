//! Everything that must be on this host before a machine is made: keys, artifacts, one folder a node.
//!
//! The result is what the Vagrantfile's provisioner reads. Running it again changes nothing that is
//! already right, so `vagrant up` may call it every time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use orch_contract::{
    Artifacts, Cluster, ClusterKeys, DEFAULT_API_PORT, DEFAULT_JOIN_PORT, Join, K3s, Mirror,
    NODE_CONFIG_SCHEMA, Node, NodeConfig, NodeName, Registries, Role, Server, Servers, Storage,
    StorageKind, Timeouts, VolumeDirectory,
};
use orch_ssh::keys::Roster;
use serde::Serialize;

use super::{MachineError, Provider, io, node_folder, ssh_key};

/// A node as it is wanted.
#[derive(Debug, Clone)]
pub struct WantedNode {
    pub name: String,
    pub role: Role,
    pub address: IpAddr,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<String>,
}

/// What is wanted of the machines.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub cluster: &'a str,
    pub provider: Provider,
    pub nodes: Vec<WantedNode>,
    pub k3s: K3s,
    /// Verified release assets on this host, and their sums.
    pub artifacts: Vec<(PathBuf, String)>,
    /// `name of the asset -> sha256`, what the nodes hold a binary against.
    pub sha256: BTreeMap<String, String>,
    /// Which of the artifacts are archives of images besides K3s's own, by name, and their sums.
    pub images: BTreeMap<String, String>,
    /// Whether nodes may get from the release what they are not given.
    pub download: bool,
    /// Where the nodes find what docker.io would give them.
    pub mirror: Option<String>,
    pub volumes: Vec<VolumeDirectory>,
    /// How the nodes share the directory of the volumes.
    pub storage: StorageKind,
    /// Who may mount that directory from the server.
    pub storage_clients: Vec<ipnet::IpNet>,
    /// The cluster's state folder.
    pub state: &'a Path,
    /// The provisioner's binary.
    pub provisioner: PathBuf,
}

/// A file to upload, with what it must hash to.
#[derive(Debug, Clone, Serialize)]
pub struct PreparedFile {
    pub path: PathBuf,
    pub sha256: String,
}

/// A node's folder.
#[derive(Debug, Clone, Serialize)]
pub struct PreparedNode {
    pub directory: PathBuf,
}

/// What the Vagrantfile's provisioner uploads.
#[derive(Debug, Clone, Serialize)]
pub struct Prepared {
    pub provisioner: PreparedFile,
    pub artifacts: Vec<PreparedFile>,
    /// The provider mounts the artifacts, so they need no upload.
    pub artifacts_mounted: bool,
    pub nodes: BTreeMap<String, PreparedNode>,
}

/// Prepares everything under the state folder.
pub async fn prepare(request: &Request<'_>) -> Result<Prepared, MachineError> {
    let provisioner = provisioner(&request.provisioner)?;
    make_private(request.state)?;
    if request.provider != Provider::Ssh {
        ssh_key::ensure(&request.state.join("ssh")).await?;
    }
    let keys = request.state.join("keys");
    let nodes = node_folders(request, &request.state.join("nodes"), &keys)?;
    Ok(Prepared {
        provisioner,
        artifacts: collect_artifacts(request)?,
        artifacts_mounted: request.provider == Provider::Docker,
        nodes,
    })
}

/// What [`prepare`] would make, made below `folder` instead: the cluster's state stays as it is.
pub fn sketch(request: &Request<'_>, folder: &Path) -> Result<Prepared, MachineError> {
    let kept = request.state.join("keys");
    let keys = if kept.exists() {
        // Keys of nodes that are new are made beside copies of those that are not.
        copy_folder(&kept, &folder.join("keys"))?
    } else {
        folder.join("keys")
    };
    let artifacts = request.artifacts.iter().map(|(path, sha256)| PreparedFile {
        path: path.clone(),
        sha256: sha256.clone(),
    });
    Ok(Prepared {
        provisioner: provisioner(&request.provisioner)?,
        artifacts: artifacts.collect(),
        artifacts_mounted: request.provider == Provider::Docker,
        nodes: node_folders(request, &folder.join("nodes"), &keys)?,
    })
}

/// The provisioner's binary with its sum.
pub fn provisioner(binary: &Path) -> Result<PreparedFile, MachineError> {
    if !binary.exists() {
        return Err(MachineError::NoProvisioner {
            binary: binary.to_owned(),
        });
    }
    Ok(PreparedFile {
        sha256: sha256_of(binary)?,
        path: binary.to_owned(),
    })
}

/// Brings the keys in the folders of these nodes, all of a cluster, to where a rotation or a node's removal has left them.
pub fn renew_keys<'a>(
    state: &Path,
    nodes: impl Iterator<Item = (&'a str, Role)>,
) -> Result<(), MachineError> {
    let nodes = nodes
        .map(|(name, role)| Ok((node_name(name)?, role)))
        .collect::<Result<Vec<_>, MachineError>>()?;
    let names: Vec<NodeName> = nodes.iter().map(|(name, _)| name.clone()).collect();
    let keys = ClusterKeys::new(state.join("keys"));
    let servers = nodes.iter().filter(|(_, role)| *role == Role::Server);
    let servers: Vec<NodeName> = servers.map(|(name, _)| name.clone()).collect();
    let roster = Roster {
        nodes: &names,
        servers: &servers,
    };
    orch_ssh::keys::ensure_cluster_keys(&keys, roster)
        .map_err(|source| MachineError::Keys { source })?;
    for (name, role) in &nodes {
        let directory = state.join("nodes").join(name.as_str());
        node_folder::write_keys(&directory, name, *role, servers.len() > 1, &keys)?;
    }
    Ok(())
}

fn node_folders(
    request: &Request<'_>,
    folder: &Path,
    keys: &Path,
) -> Result<BTreeMap<String, PreparedNode>, MachineError> {
    let names = request
        .nodes
        .iter()
        .map(|node| node_name(&node.name))
        .collect::<Result<Vec<_>, _>>()?;
    let keys = ClusterKeys::new(keys);
    let servers = servers(request, &names)?;
    let server_names: Vec<_> = servers.iter().map(|server| server.name.clone()).collect();
    let roster = Roster {
        nodes: &names,
        servers: &server_names,
    };
    orch_ssh::keys::ensure_cluster_keys(&keys, roster)
        .map_err(|source| MachineError::Keys { source })?;
    let mut nodes = BTreeMap::new();
    for (wanted, name) in request.nodes.iter().zip(&names) {
        let directory = folder.join(&wanted.name);
        node_folder::write(
            &directory,
            &node_config(request, wanted, name.clone(), servers.clone()),
            &keys,
        )?;
        nodes.insert(wanted.name.clone(), PreparedNode { directory });
    }
    Ok(nodes)
}

/// Copies a folder with all in it, modes included.
fn copy_folder(from: &Path, to: &Path) -> Result<PathBuf, MachineError> {
    make_private(to)?;
    let copying = |path: &Path| io(format!("copy {}", path.display()));
    for entry in std::fs::read_dir(from).map_err(copying(from))? {
        let path = entry.map_err(copying(from))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            std::fs::copy(&path, target).map_err(copying(&path))?;
        }
    }
    Ok(to.to_owned())
}

fn node_name(name: &str) -> Result<NodeName, MachineError> {
    name.parse().map_err(|source| MachineError::NodeName {
        name: name.to_owned(),
        source,
    })
}

/// Those with the role, in the order in which they are described: the first makes the cluster.
fn servers(request: &Request<'_>, names: &[NodeName]) -> Result<Servers, MachineError> {
    let described = request.nodes.iter().zip(names);
    let servers = described.filter(|(wanted, _)| wanted.role == Role::Server);
    let all: Vec<_> = servers
        .map(|(wanted, name)| Server {
            name: name.clone(),
            address: wanted.address,
            api_port: DEFAULT_API_PORT,
            join_port: DEFAULT_JOIN_PORT,
        })
        .collect();
    Servers::try_from(all).map_err(|problem| MachineError::Servers { problem })
}

fn node_config(
    request: &Request<'_>,
    wanted: &WantedNode,
    name: NodeName,
    servers: Servers,
) -> NodeConfig {
    let is_server = wanted.role == Role::Server;
    let is_first = servers.first.name == name;
    let server_only = |list: &[String]| {
        if is_server { list.to_vec() } else { Vec::new() }
    };
    NodeConfig {
        schema: NODE_CONFIG_SCHEMA,
        cluster: Cluster {
            name: request.cluster.to_owned(),
        },
        node: Node {
            name,
            role: wanted.role,
            address: wanted.address,
            labels: wanted.labels.clone(),
            taints: wanted.taints.clone(),
        },
        servers,
        k3s: K3s {
            tls_sans: server_only(&request.k3s.tls_sans),
            disable: server_only(&request.k3s.disable),
            kubelet_args: kubelet_args(request.provider)
                .into_iter()
                .chain(request.k3s.kubelet_args.iter().cloned())
                .collect(),
            ..request.k3s.clone()
        },
        artifacts: Artifacts {
            sha256: request.sha256.clone(),
            images: request.images.clone(),
            release_url: Artifacts::default()
                .release_url
                .filter(|_| request.download),
            ..Artifacts::default()
        },
        registries: Registries {
            mirrors: request
                .mirror
                .iter()
                .map(|endpoint| {
                    let mirror = Mirror {
                        endpoints: vec![endpoint.clone()],
                        rewrites: BTreeMap::new(),
                    };
                    ("docker.io".to_owned(), mirror)
                })
                .collect(),
            configs: BTreeMap::new(),
        },
        storage: Storage {
            kind: request.storage,
            clients: if is_first {
                request.storage_clients.clone()
            } else {
                Vec::new()
            },
            directories: if is_first {
                request.volumes.clone()
            } else {
                Vec::new()
            },
            ..Storage::default()
        },
        join: Join::default(),
        timeouts: Timeouts::default(),
    }
}

/// A container's disk is the host's: how full that is says nothing of the node, and a kubelet that
/// deletes images because the host's other files fill it takes away the very ones that pods need.
fn kubelet_args(provider: Provider) -> Vec<String> {
    match provider {
        Provider::Docker => vec![
            "image-gc-high-threshold=100".to_owned(),
            "eviction-hard=memory.available<100Mi,nodefs.available<1%,imagefs.available<1%"
                .to_owned(),
        ],
        Provider::Virtualbox | Provider::Libvirt | Provider::Ssh => Vec::new(),
    }
}

fn make_private(directory: &Path) -> Result<(), MachineError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io(format!("make {}", directory.display())))
}

/// Puts the assets into the state folder, by hard link where cache and state share a file system:
/// the docker provider mounts that folder, and a mount must not move when the cache does.
fn collect_artifacts(request: &Request<'_>) -> Result<Vec<PreparedFile>, MachineError> {
    let directory = request.state.join("artifacts");
    std::fs::create_dir_all(&directory).map_err(io(format!("make {}", directory.display())))?;
    let mut prepared = Vec::new();
    for (source, sha256) in &request.artifacts {
        let name = source.file_name().unwrap_or_default();
        let target = directory.join(name);
        if !same_file(source, &target) {
            let partial = directory.join(".partial");
            let placing = || format!("place {}", target.display());
            if partial.exists() {
                std::fs::remove_file(&partial).map_err(io(placing()))?;
            }
            std::fs::hard_link(source, &partial)
                .or_else(|_| std::fs::copy(source, &partial).map(|_| ()))
                .and_then(|()| std::fs::rename(&partial, &target))
                .map_err(io(placing()))?;
        }
        prepared.push(PreparedFile {
            path: target,
            sha256: sha256.clone(),
        });
    }
    Ok(prepared)
}

/// The same inode, or a copy that kept size and is not older.
fn same_file(source: &Path, target: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (std::fs::metadata(source), std::fs::metadata(target)) {
        (Ok(a), Ok(b)) => {
            (a.dev(), a.ino()) == (b.dev(), b.ino())
                || (a.len() == b.len() && b.mtime() >= a.mtime() && a.dev() != b.dev())
        }
        _ => false,
    }
}

fn sha256_of(path: &Path) -> Result<String, MachineError> {
    crate::files::sha256_of(path).map_err(|source| MachineError::Hash {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_nodes_key_leaves_the_servers_list_and_the_others_keep_theirs() {
        let state = tempfile::tempdir().unwrap();
        let server = ("one", Role::Server);
        let (two, three) = (("two", Role::Agent), ("three", Role::Agent));
        let read = |path: &str| std::fs::read_to_string(state.path().join(path)).unwrap();
        renew_keys(state.path(), [server, two, three].into_iter()).unwrap();
        let before = read("nodes/one/authorized_keys");
        let key = read("nodes/two/join_client_key");
        assert!(
            before.contains(" two\n") && before.contains(" three\n"),
            "{before}"
        );
        std::fs::write(state.path().join("nodes/one/node.json"), "{}").unwrap();
        renew_keys(state.path(), [server, two].into_iter()).unwrap();
        let after = read("nodes/one/authorized_keys");
        assert!(
            after.contains(" two\n") && !after.contains(" three\n"),
            "{after}"
        );
        assert_eq!(read("nodes/two/join_client_key"), key);
        assert_eq!(read("nodes/one/node.json"), "{}");
    }
}
