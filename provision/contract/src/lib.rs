//! What the host and a node say to each other: configuration in, events out, and the join protocol.
//!
//! Types, limits and paths only. Nothing here opens a file or a socket, so that the host CLI, the
//! provisioner and the tests can all depend on it without inheriting one another's dependencies.

mod change;
mod event;
mod evidence;
mod exit;
mod facts;
mod join;
mod layout;
mod name;
mod node;
mod secret;

pub use change::{Action, Change, Subject};
pub use event::{Event, EventLine, LogLevel, Outcome, Unit};
pub use evidence::Evidence;
pub use exit::ExitCode;
pub use facts::{
    AddressFacts, CgroupFacts, ClockFacts, DiskFacts, FileFacts, K3sFacts, MachineFacts,
    NODE_FACTS_SCHEMA, NetworkFacts, NodeFacts, NodeIdentity, ProvisionerFacts, UnitFacts,
};
pub use join::{
    DEFAULT_JOIN_PORT, FACTS_COMMAND, JOIN_COMMAND, JOIN_SCHEMA, JOIN_USER, JoinGrant, JoinRefusal,
    JoinRequest, JoinResponse, JoinToken, MAX_FACTS_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES,
    MAX_TOKEN_BYTES, RefusalReason, WireError, is_token_id,
};
pub use layout::{ClusterKeys, node_paths};
pub use name::{NameError, NodeName};
pub use node::{
    Artifacts, Cluster, ConfigError, DEFAULT_API_PORT, DEFAULT_RELEASE_URL, Join, K3s, Mirror,
    NODE_CONFIG_SCHEMA, Node, NodeConfig, Registries, RegistryAuth, RegistryConfig, RegistryTls,
    Role, Server, Servers, Storage, StorageKind, Timeouts, VolumeDirectory,
};
pub use secret::Secret;
