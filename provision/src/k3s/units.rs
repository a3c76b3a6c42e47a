//! systemd units: K3s's as its official installer writes them, and the join service's.

use std::collections::BTreeMap;
use std::path::Path;

use orch_contract::{Role, Secret, node_paths};

use super::paths;

pub(crate) const JOIN_UNIT: &str = "orch-join.service";

/// The unit that K3s's installer uses for a role.
pub(crate) const fn unit_name(role: Role) -> &'static str {
    match role {
        Role::Server => "k3s.service",
        Role::Agent => "k3s-agent.service",
    }
}

pub(crate) fn unit_path(unit: &str) -> String {
    format!("{}/{unit}", paths::UNIT_DIRECTORY)
}

/// The environment file beside the unit, 0600.
pub(crate) fn environment_path(role: Role) -> String {
    format!("{}.env", unit_path(unit_name(role)))
}

/// K3s's unit. Everything K3s is told is in config.yaml, so the command has no options: a unit is
/// world-readable.
pub(crate) fn k3s_unit(role: Role) -> String {
    let name = unit_name(role).trim_end_matches(".service");
    format!(
        "\
# Written by orch-provision, after K3s's own installer.
[Unit]
Description=Lightweight Kubernetes
Documentation=https://k3s.io
Wants=network-online.target
After=network-online.target

[Install]
WantedBy=multi-user.target

[Service]
Type=notify
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-{environment}
KillMode=process
Delegate=yes
User=root
# Having non-zero Limit*s causes performance problems due to accounting overhead
# in the kernel. systemd and containerd both recommend cgroups for local accounting.
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s
ExecStartPre=-/sbin/modprobe br_netfilter
ExecStartPre=-/sbin/modprobe overlay
ExecStart={binary} {command}
",
        environment = format_args!("{}/{name}.service.env", paths::UNIT_DIRECTORY),
        binary = paths::BINARY,
        command = role.as_str(),
    )
}

/// The environment file: one quoted assignment a line, as systemd reads it.
pub(crate) fn environment_file(environment: &BTreeMap<String, Secret>) -> String {
    let mut text = "# Written by orch-provision.\n".to_owned();
    for (name, value) in environment {
        let value = value.expose().replace('\\', "\\\\").replace('"', "\\\"");
        text.push_str(&format!("{name}=\"{value}\"\n"));
    }
    text
}

/// The join service's unit. It runs as root because K3s's administrator credentials, which minting
/// a token takes, belong to root; everything else a root service could do is taken away.
pub(crate) fn join_unit(config: &Path) -> String {
    format!(
        "\
# Written by orch-provision.
[Unit]
Description=orch join service: grants nodes of this cluster a K3s token over SSH
Wants=network-online.target
After=network-online.target

[Install]
WantedBy=multi-user.target

[Service]
Type=exec
ExecStart={provisioner} serve --config {config}
Restart=always
RestartSec=2s
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
# K3s's command line takes a lock in its data directory before it runs.
ReadWritePaths=-{data}
ProtectHome=yes
PrivateTmp=yes
# Netlink tells which addresses this machine has.
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LimitCORE=0
TasksMax=256
MemoryMax=768M
",
        provisioner = node_paths::PROVISIONER,
        config = config.display(),
        data = paths::DATA,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_never_mentions_a_token() {
        for role in [Role::Server, Role::Agent] {
            let unit = k3s_unit(role);
            assert!(!unit.to_lowercase().contains("token"), "{unit}");
            assert!(unit.contains(&format!("ExecStart=/usr/local/bin/k3s {role}\n")));
            assert!(unit.contains(&format!("EnvironmentFile=-{}\n", environment_path(role))));
        }
    }

    #[test]
    fn values_are_quoted_for_systemd() {
        let environment = BTreeMap::from([("HTTPS_PROXY".to_owned(), Secret::new(r#"a "b\c"#))]);
        assert!(environment_file(&environment).ends_with("HTTPS_PROXY=\"a \\\"b\\\\c\"\n"));
    }
}
