//! The rules of a configuration that its types cannot express.

use std::net::IpAddr;
use std::path::{Component, Path};

use super::{ConfigError, NODE_CONFIG_SCHEMA, NodeConfig, Role, StorageKind};

impl NodeConfig {
    /// Checks what types cannot say. The host calls it before uploading.
    pub fn validate(&self) -> Result<(), ConfigError> {
        schema(self.schema)?;
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
        reachable("node.address", self.node.address)?;
        for (index, server) in self.servers.iter().enumerate() {
            let key = |field: &str| format!("servers[{index}].{field}");
            reachable(&key("address"), server.address)?;
            let mut earlier = self.servers.iter().take(index);
            let twin =
                earlier.find(|other| other.name == server.name || other.address == server.address);
            require(twin.is_none(), &key("name"), || {
                format!(
                    "{} has its name or address from another server",
                    server.name
                )
            })?;
            require(
                server.api_port != server.join_port,
                &key("join_port"),
                || format!("{} is the API server's port", server.join_port),
            )?;
            for (field, port) in [
                ("api_port", server.api_port),
                ("join_port", server.join_port),
            ] {
                require(port != 0, &key(field), || "0 is not a port".to_owned())?;
            }
        }
        let name = &self.node.name;
        let mut servers = self.servers.iter();
        match self.node.role {
            Role::Server => require(
                servers.any(|server| server.name == *name && server.address == self.node.address),
                "servers",
                || {
                    format!(
                        "{name} is a server and not among them with its address {}",
                        self.node.address
                    )
                },
            ),
            Role::Agent => require(
                servers.all(|server| server.name != *name && server.address != self.node.address),
                "node.address",
                || format!("{name} is an agent and has a server's name or address"),
            ),
        }
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
        if self.uses_etcd() {
            for key in ["datastore-endpoint", "disable-etcd"] {
                require(
                    !self.k3s.config.contains_key(key),
                    &format!("k3s.config.{key}"),
                    || {
                        "the servers of this cluster keep their state in embedded etcd; take it out"
                            .to_owned()
                    },
                )?;
            }
        }
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
        let is_sum = |sum: &str| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        for (asset, sum) in &self.artifacts.sha256 {
            require(is_sum(sum), &format!("artifacts.sha256.{asset}"), || {
                format!("{sum:?} is not 64 hexadecimal digits")
            })?;
        }
        for (archive, sum) in &self.artifacts.images {
            let key = format!("artifacts.images.{archive}");
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            // K3s's own archive has its place in `sha256`, and K3s passes over what is hidden or no archive.
            let is_archive = archive.bytes().all(is_plain)
                && archive.ends_with(".tar")
                && !archive.starts_with('.')
                && !archive.starts_with("k3s-airgap-images");
            require(is_archive, &key, || {
                format!("{archive:?} is no file name of an archive (*.tar)")
            })?;
            require(is_sum(sum), &key, || {
                format!("{sum:?} is not 64 hexadecimal digits")
            })?;
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
                && parts.all(|part| matches!(part, Component::Normal(_)));
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
                || !self.is_first_server()
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

/// Whether this side knows the schema.
pub(super) fn schema(schema: u32) -> Result<(), ConfigError> {
    require(schema == NODE_CONFIG_SCHEMA, "schema", || {
        format!(
            "{schema} is not {NODE_CONFIG_SCHEMA}; upload the orch-provision that belongs to this orch"
        )
    })
}

fn reachable(key: &str, address: IpAddr) -> Result<(), ConfigError> {
    require(
        !(address.is_loopback() || address.is_unspecified() || address.is_multicast()),
        key,
        || format!("{address} is not an address that other nodes can reach"),
    )
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
