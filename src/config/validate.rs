//! What the types of `orch.yaml` cannot say: names that must be unique, addresses that must lie in
//! the network, ports that must not meet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_saphyr::Location;

use super::{Config, K3sSource, Node, Provider};

/// A problem and the place in the file to point at.
pub(super) struct Problem {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) message: String,
}

pub(super) fn at(location: Location, message: impl Into<String>) -> Problem {
    Problem {
        line: location.line().max(1),
        column: location.column().max(1),
        message: message.into(),
    }
}

/// RFC 1123 label, which Kubernetes asks of a node's name and Docker of a container's.
fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty()
        && name.len() <= 63
        && name.chars().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// A name or an address as a URL has it between scheme and port.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| is_dns_label(&label.to_ascii_lowercase());
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(is_label))
}

pub(super) fn check(config: &Config) -> Result<(), Problem> {
    if !is_dns_label(&config.name.value) {
        return Err(at(
            config.name.referenced,
            format!(
                "the cluster name {:?} must be a DNS label: a-z, 0-9 and '-', at most 63 characters",
                config.name.value
            ),
        ));
    }
    check_nodes(config)?;
    check_ports(config)?;
    super::images::check(&config.images)?;
    if config.k3s.source == K3sSource::Directory && config.k3s.directory.is_none() {
        return Err(at(
            config.k3s.version.referenced,
            "k3s.source is `directory`, so k3s.directory must name the folder with the release assets",
        ));
    }
    if let Some(endpoint) = config.k3s.endpoint.as_ref()
        && !is_host(&endpoint.value)
    {
        return Err(at(
            endpoint.referenced,
            format!(
                "k3s.endpoint {:?} is neither a name nor an address; leave out `https://` and the port",
                endpoint.value
            ),
        ));
    }
    let version = &config.k3s.version.value;
    if !version.starts_with('v') || !version.contains("+k3s") {
        return Err(at(
            config.k3s.version.referenced,
            format!("k3s.version {version:?} is not a K3s release such as v1.34.2+k3s1"),
        ));
    }
    Ok(())
}

fn check_nodes(config: &Config) -> Result<(), Problem> {
    check_provider(config)?;
    let mut names = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for node in &config.nodes {
        let name = &node.name.value;
        if !is_dns_label(name) {
            return Err(at(
                node.name.referenced,
                format!(
                    "the node name {name:?} must be a DNS label: a-z, 0-9 and '-', at most 63 characters"
                ),
            ));
        }
        if names.insert(name.clone(), ()).is_some() {
            return Err(at(
                node.name.referenced,
                format!("two nodes are named {name:?}; give each its own name"),
            ));
        }
        check_address(config, node)?;
        if let Some(other) = addresses.insert(node.address.value, name.clone()) {
            return Err(at(
                node.address.referenced,
                format!(
                    "{other} and {name} have the same address {}",
                    node.address.value
                ),
            ));
        }
        if node.cpus == 0 || node.memory < 512 {
            return Err(at(
                node.name.referenced,
                format!("{name} needs at least 1 cpu and 512 MiB of memory"),
            ));
        }
    }
    check_servers(config)
}

/// etcd takes a majority of its servers for every write.
fn check_servers(config: &Config) -> Result<(), Problem> {
    let servers: Vec<_> = config.servers().collect();
    let Some(last) = servers.last() else {
        return Err(at(
            config.name.referenced,
            "no node has role: server; the cluster needs one",
        ));
    };
    let count = servers.len();
    if count.is_multiple_of(2) {
        let (fewer, more) = (count - 1, count + 1);
        let why = if count == 2 {
            "the loss of either would stop the cluster: etcd needs a majority, which of 2 is both"
                .to_owned()
        } else {
            format!(
                "they bear the loss of no more servers than {fewer} would: etcd needs a majority, which of {count} is {}",
                count / 2 + 1
            )
        };
        return Err(at(
            last.name.referenced,
            format!(
                "{count} nodes have role: server, and {why}; make {} an agent, which leaves {fewer}, or add a server, which makes it {more}",
                last.name.value
            ),
        ));
    }
    if config.uses_etcd()
        && let Some(key) = ["datastore-endpoint", "disable-etcd"]
            .into_iter()
            .find(|key| config.k3s.config.contains_key(*key))
    {
        return Err(at(
            last.name.referenced,
            format!(
                "k3s.config.{key}: the servers of this cluster keep their state in embedded etcd; take it out"
            ),
        ));
    }
    Ok(())
}

/// Machines that orch makes have a network; hosts that exist already have a way in.
fn check_provider(config: &Config) -> Result<(), Problem> {
    let is_ssh = config.provider == Provider::Ssh;
    match &config.network {
        Some(network) if is_ssh => {
            return Err(at(
                network.subnet.referenced,
                "provider is `ssh`: the hosts have a network of their own; take `network` out",
            ));
        }
        Some(network) if network.subnet.value.prefix_len() > 29 => {
            return Err(at(
                network.subnet.referenced,
                format!(
                    "the subnet {} is too small: it needs room for the nodes, the host and a registry (/29 or larger)",
                    network.subnet.value
                ),
            ));
        }
        None if !is_ssh => {
            return Err(at(
                config.name.referenced,
                "network.subnet is missing; give the machines a network such as 192.168.56.0/24, or say `provider: ssh` for hosts that exist already",
            ));
        }
        Some(_) | None => {}
    }
    if let Some(problem) = config.ssh.value.problem() {
        return Err(at(config.ssh.referenced, problem));
    }
    for node in &config.nodes {
        if let Some(ssh) = &node.ssh {
            if !is_ssh {
                return Err(at(
                    ssh.referenced,
                    format!(
                        "{}: `ssh` is for hosts that exist already; say `provider: ssh`, or take it out",
                        node.name.value
                    ),
                ));
            }
            if let Some(problem) = ssh.value.problem() {
                return Err(at(
                    ssh.referenced,
                    format!("{}: {problem}", node.name.value),
                ));
            }
        }
    }
    Ok(())
}

fn check_address(config: &Config, node: &Node) -> Result<(), Problem> {
    let name = &node.name.value;
    let address = node.address.value;
    let wrong = |problem: String| Err(at(node.address.referenced, problem));
    let Some(subnet) = config.subnet() else {
        return if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
            wrong(format!(
                "the address {address} of {name} is none that the other nodes could reach it on"
            ))
        } else {
            Ok(())
        };
    };
    let IpAddr::V4(v4) = address else {
        return wrong(format!(
            "the address {address} of {name} is outside network.subnet {subnet}"
        ));
    };
    let reserved = [
        Some(subnet.network()),
        Some(subnet.broadcast()),
        config.gateway(),
        config.registry_address(),
    ];
    if !subnet.contains(&v4) {
        return wrong(format!(
            "the address {address} of {name} is outside network.subnet {subnet}"
        ));
    }
    if reserved.contains(&Some(v4)) {
        return wrong(format!(
            "the address {address} of {name} is reserved in {subnet} (network, host, registry or broadcast)"
        ));
    }
    Ok(())
}

fn check_ports(config: &Config) -> Result<(), Problem> {
    let mut seen = BTreeMap::new();
    let fixed = [
        ("ports.api", config.ports.api),
        ("ports.registry", config.ports.registry),
    ];
    let forwards = config
        .ports
        .forward
        .iter()
        .map(|f| ("ports.forward", f.host));
    for (what, port) in fixed.into_iter().chain(forwards) {
        if port == 0 {
            return Err(at(
                config.name.referenced,
                format!("{what}: 0 is not a port"),
            ));
        }
        if let Some(other) = seen.insert(port, what) {
            return Err(at(
                config.name.referenced,
                format!("{other} and {what} both use host port {port}"),
            ));
        }
    }
    for forward in &config.ports.forward {
        if !(30000..=32767).contains(&forward.node) {
            return Err(at(
                config.name.referenced,
                format!(
                    "ports.forward: {} is outside Kubernetes' NodePort range 30000-32767",
                    forward.node
                ),
            ));
        }
    }
    Ok(())
}
