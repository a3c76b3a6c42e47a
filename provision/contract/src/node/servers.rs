//! The servers of a cluster: at least one, the first of which initialises it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::DEFAULT_API_PORT;
use crate::{DEFAULT_JOIN_PORT, NodeName};

/// A server that nodes join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub name: NodeName,
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
        format!("https://{}", SocketAddr::new(self.address, self.api_port))
    }
}

/// All servers, in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Server>", into = "Vec<Server>")]
pub struct Servers {
    /// Initialises the cluster, and shares the nodes' directory.
    pub first: Server,
    /// Join it.
    pub others: Vec<Server>,
}

impl Servers {
    pub fn iter(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl TryFrom<Vec<Server>> for Servers {
    type Error = &'static str;

    fn try_from(all: Vec<Server>) -> Result<Self, Self::Error> {
        let mut all = all.into_iter();
        let first = all.next().ok_or("a cluster has at least one server")?;
        Ok(Self {
            first,
            others: all.collect(),
        })
    }
}

impl From<Servers> for Vec<Server> {
    fn from(servers: Servers) -> Self {
        std::iter::once(servers.first)
            .chain(servers.others)
            .collect()
    }
}

const fn default_api_port() -> u16 {
    DEFAULT_API_PORT
}

const fn default_join_port() -> u16 {
    DEFAULT_JOIN_PORT
}
