//! What a node is, as `orch-provision facts` prints it: one JSON document, nothing in it secret.
//!
//! What could not be seen, for want of rights or because there is none, is null. A reader ignores keys that it does not
//! know; [`NODE_FACTS_SCHEMA`] changes when one that it may rely on means something else.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{NodeName, Role};

/// Version of [`NodeFacts`].
pub const NODE_FACTS_SCHEMA: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// [`NODE_FACTS_SCHEMA`].
    pub schema: u32,
    /// What the configuration makes of this machine.
    pub node: Option<NodeIdentity>,
    pub provisioner: ProvisionerFacts,
    pub machine: MachineFacts,
    pub clock: ClockFacts,
    /// Of the directories that data goes to, or of the nearest ones above.
    pub disks: Vec<DiskFacts>,
    pub network: NetworkFacts,
    pub k3s: K3sFacts,
    /// What the running services were started with: unit, input, SHA-256.
    pub applied: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// The files that decide how K3s runs, those that there are.
    pub files: BTreeMap<String, FileFacts>,
    /// Whether K3s has given this machine a password by which the server knows it again.
    pub has_node_password: Option<bool>,
    /// Whether an agent's token file is there.
    pub has_token_file: Option<bool>,
    /// The API server's port and the join service's: whether somebody listens there.
    pub listening: Option<BTreeMap<u16, bool>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    pub cluster: String,
    pub name: NodeName,
    pub role: Role,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionerFacts {
    pub version: String,
    pub sha256: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// `PRETTY_NAME` of os-release.
    pub os: Option<String>,
    pub kernel: Option<String>,
    /// As Rust names it: `x86_64`, `aarch64`.
    pub architecture: String,
    /// Another one after each boot.
    pub boot_id: Option<String>,
    pub cpus: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    pub cgroup: Option<CgroupFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFacts {
    /// 1 or 2.
    pub version: u8,
    /// Those that are enabled.
    pub controllers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockFacts {
    /// When the facts were gathered, by the node's own clock.
    pub utc: Timestamp,
    /// Null where whoever sets the clock does not say.
    pub is_synchronised: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    pub path: PathBuf,
    pub free_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFacts {
    /// Without the loopback interface and those of the pod network.
    pub addresses: Option<Vec<AddressFacts>>,
    /// The interface that the default route leaves by.
    pub default_interface: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFacts {
    pub interface: String,
    pub address: IpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct K3sFacts {
    /// What `k3s --version` prints first; a stand-in says here that it is one.
    pub version_line: Option<String>,
    pub sha256: Option<String>,
    pub unit: Option<UnitFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFacts {
    pub name: String,
    /// systemd's word: `active`, `activating`, `failed`.
    pub active: String,
    /// systemd's word: `running`, `auto-restart`, `dead`.
    pub sub: String,
    pub is_enabled: bool,
    /// How often systemd restarted it by itself since it was started.
    pub restarts: u32,
    /// Since when it has been active.
    pub since: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Null where it may not be read.
    pub sha256: Option<String>,
    /// Permission bits, such as `0600`.
    pub mode: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_machine_that_tells_nothing_are_read_back() {
        let text = r#"{"schema":1,"node":null,"provisioner":{"version":"0.1.0","sha256":null},
            "machine":{"os":null,"kernel":null,"architecture":"x86_64","boot_id":null,"cpus":null,
                "memory_bytes":null,"memory_available_bytes":null,"cgroup":null},
            "clock":{"utc":"1970-01-01T00:00:00Z","is_synchronised":null},"disks":[],
            "network":{"addresses":null,"default_interface":null},
            "k3s":{"version_line":null,"sha256":null,"unit":null},
            "applied":null,"files":{},"has_node_password":null,"has_token_file":null,
            "listening":{"6443":true},"a_key_of_a_newer_provisioner":1}"#;
        let facts: NodeFacts = serde_json::from_str(text).unwrap();
        assert_eq!(facts.listening, Some(BTreeMap::from([(6443, true)])));
        let again = serde_json::to_string(&facts).unwrap();
        assert_eq!(serde_json::from_str::<NodeFacts>(&again).unwrap(), facts);
    }
}
