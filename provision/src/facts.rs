//! What this machine is and how K3s is on it. Looks only, works without rights, and tells nothing secret.
//!
//! Whatever cannot be seen is left out rather than an error: facts are for looking at machines that are not well.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use orch_contract::{
    AddressFacts, CgroupFacts, ClockFacts, DEFAULT_API_PORT, DEFAULT_JOIN_PORT, DiskFacts,
    FileFacts, K3sFacts, MachineFacts, NODE_FACTS_SCHEMA, NetworkFacts, NodeConfig, NodeFacts,
    NodeIdentity, ProvisionerFacts, Role, UnitFacts, node_paths,
};

use crate::applied::Applied;
use crate::host::cgroups::controllers;
use crate::host::interfaces::{default_interface, own_addresses};
use crate::host::listeners::listening_ports;
use crate::k3s::paths;
use crate::k3s::units::{JOIN_UNIT, environment_path, unit_name, unit_path};
use crate::system::{Files, Invocation, System};

/// Where data goes.
const DISKS: [&str; 3] = [paths::DATA, "/var/lib/kubelet", node_paths::VOLUMES];
/// Made by systemd-timesyncd, the second one once it has heard from a server.
const TIMESYNC: [&str; 2] = [
    "/run/systemd/timesync",
    "/run/systemd/timesync/synchronized",
];

/// Gathers the facts of this machine.
pub(crate) async fn gather(system: &System<'_>) -> NodeFacts {
    let files = system.files;
    let config =
        text(files, node_paths::NODE_CONFIG).and_then(|text| NodeConfig::from_json(&text).ok());
    // The programs run while the large files are read.
    let (addresses, version_line, unit, (k3s, provisioner)) = tokio::join!(
        biased;
        output(system, "ip", &["-json", "address", "show"]),
        output(system, paths::BINARY, &["--version"]),
        unit(system, config.as_ref()),
        async { (sha256(files, paths::BINARY), sha256(files, "/proc/self/exe")) },
    );
    NodeFacts {
        schema: NODE_FACTS_SCHEMA,
        node: config.as_ref().map(|config| NodeIdentity {
            cluster: config.cluster.name.clone(),
            name: config.node.name.clone(),
            role: config.node.role,
        }),
        provisioner: ProvisionerFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: provisioner,
        },
        machine: machine(files),
        clock: ClockFacts {
            utc: Timestamp::now(),
            is_synchronised: is_synchronised(files),
        },
        disks: disks(files, config.as_ref()),
        network: NetworkFacts {
            addresses: addresses
                .and_then(|shown| own_addresses(&shown).ok())
                .map(named),
            default_interface: text(files, "/proc/net/route")
                .and_then(|routes| default_interface(&routes)),
        },
        k3s: K3sFacts {
            version_line: version_line.and_then(|shown| shown.lines().next().map(str::to_owned)),
            sha256: k3s,
            unit,
        },
        applied: Applied::load(files)
            .ok()
            .map(|applied| applied.services().clone()),
        files: configuration_files(files),
        has_node_password: files.exists(Path::new(paths::NODE_PASSWORD)).ok(),
        has_token_file: files.exists(Path::new(paths::JOIN_TOKEN)).ok(),
        listening: listening(files, config.as_ref()),
    }
}

fn text(files: &dyn Files, path: &str) -> Option<String> {
    files.read_text(Path::new(path)).ok().flatten()
}

fn word(files: &dyn Files, path: &str) -> Option<String> {
    text(files, path).map(|text| text.trim().to_owned())
}

fn sha256(files: &dyn Files, path: &str) -> Option<String> {
    files.sha256(Path::new(path)).ok().flatten()
}

async fn output(system: &System<'_>, program: &str, arguments: &[&str]) -> Option<String> {
    let invocation = Invocation::new(program, arguments.iter().copied());
    let finished = system.commands.run_ok(&invocation).await.ok()?;
    Some(finished.text().to_string())
}

/// K3s's unit: the configured role's, or else the one that is installed.
async fn unit(system: &System<'_>, config: Option<&NodeConfig>) -> Option<UnitFacts> {
    let role = match config {
        Some(config) => config.node.role,
        None => [Role::Server, Role::Agent].into_iter().find(|role| {
            let path = unit_path(unit_name(*role));
            system.files.exists(Path::new(&path)).unwrap_or_default()
        })?,
    };
    let name = unit_name(role);
    let state = system.services.state(name).await.ok()?;
    Some(UnitFacts {
        name: name.to_owned(),
        is_enabled: state.is_enabled(),
        since: state.since.filter(|_| state.active == "active"),
        active: state.active,
        sub: state.sub,
        restarts: state.restarts,
    })
}

fn machine(files: &dyn Files) -> MachineFacts {
    let memory = text(files, "/proc/meminfo").unwrap_or_default();
    MachineFacts {
        os: text(files, "/etc/os-release").and_then(|text| pretty_name(&text)),
        kernel: word(files, "/proc/sys/kernel/osrelease"),
        architecture: std::env::consts::ARCH.to_owned(),
        boot_id: word(files, "/proc/sys/kernel/random/boot_id"),
        cpus: word(files, "/sys/devices/system/cpu/online").and_then(|list| count_cpus(&list)),
        memory_bytes: memory_field(&memory, "MemTotal:"),
        memory_available_bytes: memory_field(&memory, "MemAvailable:"),
        cgroup: cgroup(files),
    }
}

fn cgroup(files: &dyn Files) -> Option<CgroupFacts> {
    let v2 = text(files, "/sys/fs/cgroup/cgroup.controllers");
    let v1 = text(files, "/proc/cgroups");
    if v2.is_none() && v1.is_none() {
        return None;
    }
    let (version, controllers) = controllers(v2.as_deref(), &v1.unwrap_or_default());
    Some(CgroupFacts {
        version,
        controllers,
    })
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned())
}

/// A line of /proc/meminfo, which counts in KiB and calls them kB.
fn memory_field(memory: &str, name: &str) -> Option<u64> {
    let value = memory.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// A list of ranges such as `0-3,8`.
fn count_cpus(list: &str) -> Option<u32> {
    list.split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .try_fold(0u32, |sum, count| sum.checked_add(count?))
}

/// What systemd-timesyncd says; other programs that set clocks leave nothing to read.
pub(crate) fn is_synchronised(files: &dyn Files) -> Option<bool> {
    let exists = |path: &str| files.exists(Path::new(path)).ok();
    exists(TIMESYNC[0])?.then(|| exists(TIMESYNC[1])).flatten()
}

fn disks(files: &dyn Files, config: Option<&NodeConfig>) -> Vec<DiskFacts> {
    let configured = config.map(|config| config.storage.path.clone());
    let mut paths: Vec<_> = DISKS.iter().map(Into::into).chain(configured).collect();
    paths.dedup();
    let seen = paths.into_iter().filter_map(|path| {
        let space = files.space(&path).ok()?;
        Some(DiskFacts {
            path,
            free_bytes: space.free,
            total_bytes: space.total,
        })
    });
    seen.collect()
}

fn named(addresses: Vec<(String, std::net::IpAddr)>) -> Vec<AddressFacts> {
    let facts = addresses
        .into_iter()
        .map(|(interface, address)| AddressFacts { interface, address });
    facts.collect()
}

fn configuration_files(files: &dyn Files) -> BTreeMap<String, FileFacts> {
    let mut candidates: Vec<String> = [
        node_paths::NODE_CONFIG,
        node_paths::JOIN_AUTHORIZED_KEYS,
        node_paths::JOIN_KNOWN_HOST,
        paths::CONFIG,
        paths::REGISTRIES,
    ]
    .map(str::to_owned)
    .into();
    for role in [Role::Server, Role::Agent] {
        candidates.push(unit_path(unit_name(role)));
        candidates.push(environment_path(role));
    }
    candidates.push(unit_path(JOIN_UNIT));
    candidates
        .into_iter()
        .filter_map(|path| {
            let mode = files.mode(Path::new(&path)).ok()??;
            let facts = FileFacts {
                sha256: sha256(files, &path),
                mode: format!("{mode:04o}"),
            };
            Some((path, facts))
        })
        .collect()
}

fn listening(files: &dyn Files, config: Option<&NodeConfig>) -> Option<BTreeMap<u16, bool>> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| text(files, path));
    let ports: Vec<u16> = tables
        .iter()
        .flatten()
        .flat_map(|table| listening_ports(table))
        .collect();
    let wanted = match config {
        Some(config) => [config.own_server().api_port, config.own_server().join_port],
        None => [DEFAULT_API_PORT, DEFAULT_JOIN_PORT],
    };
    let found = wanted.map(|port| (port, ports.contains(&port)));
    tables[0].is_some().then(|| found.into())
}

#[cfg(test)]
mod tests {
    use orch_contract::Role;

    use super::*;
    use crate::testing::Machine;
    use crate::testing::node::Node;

    #[tokio::test]
    async fn a_provisioned_agent_tells_all_and_nothing_secret() {
        let node = Node::provisioned(Role::Agent).await;
        let files = &node.machine.files;
        let config = serde_json::to_string(&node.config).unwrap();
        files.put(node_paths::NODE_CONFIG, &config, 0o600);
        files.put(paths::JOIN_TOKEN, "hunter2", 0o600);
        files.put(paths::NODE_PASSWORD, "hunter3", 0o600);
        files.put("/proc/self/exe", "program", 0o755);
        files.put(
            "/etc/os-release",
            "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n",
            0o644,
        );
        files.put(
            "/proc/meminfo",
            "MemTotal:        2048 kB\nMemAvailable:    1024 kB\n",
            0o444,
        );
        files.put("/sys/devices/system/cpu/online", "0-1,3\n", 0o444);
        files.put(
            "/proc/net/tcp",
            "0: 00000000:192B 00000000:0000 0A 0\n",
            0o444,
        );
        files.put("/run/systemd/timesync/synchronized", "", 0o644);
        let facts = gather(&node.system()).await;
        let identity = facts.node.clone().unwrap();
        assert_eq!(
            (identity.name.as_str(), identity.role),
            ("agent", Role::Agent)
        );
        assert_eq!(facts.machine.os.as_deref(), Some("Debian GNU/Linux 12"));
        assert_eq!(facts.machine.cpus, Some(3));
        assert_eq!(facts.machine.memory_bytes, Some(2 << 20));
        assert_eq!(facts.machine.cgroup.clone().unwrap().version, 2);
        assert_eq!(facts.clock.is_synchronised, Some(true));
        assert_eq!(
            facts.k3s.version_line.as_deref(),
            Some("k3s version v1.34.2+k3s1")
        );
        let unit = facts.k3s.unit.clone().unwrap();
        assert_eq!(
            (unit.name.as_str(), unit.active.as_str()),
            ("k3s-agent.service", "active")
        );
        assert_eq!(facts.has_token_file, Some(true));
        assert_eq!(facts.has_node_password, Some(true));
        assert_eq!(
            facts.listening,
            Some(BTreeMap::from([(6443, true), (6222, false)]))
        );
        assert_eq!(facts.files[paths::CONFIG].mode, "0600");
        let applied = facts.applied.clone().unwrap();
        assert_eq!(
            applied["k3s-agent.service"][paths::BINARY],
            facts.k3s.sha256.clone().unwrap()
        );
        let addresses: Vec<String> = facts
            .network
            .addresses
            .iter()
            .flatten()
            .map(|known| known.interface.clone())
            .collect();
        assert_eq!(addresses, ["eth0", "eth1", "eth1"]);
        let text = serde_json::to_string(&facts).unwrap();
        assert!(!text.contains("hunter"), "{text}");
    }

    #[tokio::test]
    async fn a_machine_that_tells_nothing_has_facts_too() {
        let facts = gather(&Machine::default().system()).await;
        assert_eq!(facts.node, None);
        assert_eq!(facts.k3s.unit, None);
        assert_eq!(facts.machine.cgroup, None);
        assert_eq!(facts.listening, None);
        assert_eq!(facts.has_token_file, Some(false));
    }

    #[test]
    fn lists_of_processors_are_counted_or_refused() {
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        assert_eq!(count_cpus("3-0"), None);
        assert_eq!(count_cpus(""), None);
    }
}
