//! One folder a node: its configuration and its credentials, as they are uploaded to `/etc/orch`.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use orch_contract::{ClusterKeys, NodeConfig, NodeName, Role};

use super::{MachineError, io};

/// Writes the folder; files that the node no longer needs are removed.
pub(super) fn write(
    directory: &Path,
    config: &NodeConfig,
    keys: &ClusterKeys,
) -> Result<(), MachineError> {
    config
        .validate()
        .map_err(|source| MachineError::NodeConfig {
            node: config.node.name.to_string(),
            source,
        })?;
    let mut wanted = write_keys(
        directory,
        &config.node.name,
        config.node.role,
        !config.servers.others.is_empty(),
        keys,
    )?;
    wanted.push("node.json");
    let json = serde_json::to_vec_pretty(config).map_err(|error| MachineError::Io {
        operation: format!("write the configuration of {}", config.node.name),
        source: error.into(),
    })?;
    replace(&directory.join("node.json"), &json)?;
    let entries =
        std::fs::read_dir(directory).map_err(io(format!("list {}", directory.display())))?;
    for entry in entries.filter_map(Result::ok) {
        if !wanted.iter().any(|name| entry.file_name() == *name) {
            std::fs::remove_file(entry.path())
                .map_err(io(format!("remove {}", entry.path().display())))?;
        }
    }
    Ok(())
}

/// Writes the node's keys only, and says what the files are called.
pub(super) fn write_keys(
    directory: &Path,
    name: &NodeName,
    role: Role,
    several_servers: bool,
    keys: &ClusterKeys,
) -> Result<Vec<&'static str>, MachineError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io(format!("make {}", directory.display())))?;
    let mut credentials = Vec::new();
    if role == Role::Server {
        credentials.push((keys.host_key(), "join_host_key"));
        credentials.push((keys.authorized_keys(), "authorized_keys"));
    }
    // An only server has nobody to join.
    if role == Role::Agent || several_servers {
        credentials.push((keys.client_key(name), "join_client_key"));
        credentials.push((keys.known_host(), "join_known_host"));
    }
    for (from, name) in &credentials {
        let bytes = std::fs::read(from).map_err(io(format!("read {}", from.display())))?;
        replace(&directory.join(name), &bytes)?;
    }
    Ok(credentials.into_iter().map(|(_, name)| name).collect())
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), MachineError> {
    crate::files::keep_private(path, bytes).map_err(io(format!("write {}", path.display())))
}
