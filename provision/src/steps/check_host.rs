//! Is this machine fit to be the node that the configuration describes? Changes nothing.

use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;
use jiff::Timestamp;
use orch_contract::{ExitCode, Role};
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::Context;
use crate::host::cgroups::missing_controllers;
use crate::host::interfaces;
use crate::host::listeners::{Listener, parse_listeners};
use crate::k3s::paths;
use crate::k3s::release::Architecture;
use crate::k3s::units::{JOIN_UNIT, unit_name};
use crate::system::{CommandError, FileError, Invocation};

/// K3s, its images and a little room to run.
const REQUIRED_FREE_BYTES: u64 = 2 << 30;
/// For clients and for the other members.
const ETCD_PORTS: [u16; 2] = [2379, 2380];
const KUBELET_PORT: u16 = 10250;
/// A clock before this day was never set; certificates would be from the future.
const EARLIEST_PLAUSIBLE_SECOND: i64 = 1_735_689_600;

/// What later steps need to know of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostFacts {
    /// The interface with the node's address.
    pub(crate) interface: String,
    pub(crate) architecture: Architecture,
}

/// Why this machine cannot be the node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckHostError {
    #[error("orch-provision must run as root; use sudo")]
    NotRoot,
    #[error("K3s is not released for this machine's architecture ({0})")]
    Architecture(&'static str),
    #[error("cannot ask `ip` for this machine's addresses; install iproute2")]
    Addresses(#[source] CommandError),
    #[error("cannot read what `ip -json address show` printed")]
    AddressFormat(#[source] serde_json::Error),
    #[error(
        "node.address {address} is on no interface of this machine; it has: {}", present.join(", ")
    )]
    AddressMissing {
        address: IpAddr,
        present: Vec<String>,
    },
    #[error(
        "the kernel runs without the cgroup controllers {}; boot it with cgroup_enable=memory cgroup_memory=1 or enable them",
        missing.join(", ")
    )]
    Cgroups { missing: Vec<&'static str> },
    #[error(
        "{} MiB are free at {}, K3s needs {} MiB; make room there", free >> 20, paths::DATA, REQUIRED_FREE_BYTES >> 20
    )]
    Disk { free: u64 },
    #[error("the clock says {0}, which cannot be; set it, for instance by installing chrony")]
    Clock(Timestamp),
    #[error("cannot ask `ss` who listens; install iproute2")]
    Listeners(#[source] CommandError),
    #[error("port {port} is taken by {owner}; {remedy}")]
    PortTaken {
        port: u16,
        owner: String,
        remedy: &'static str,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for CheckHostError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Host
    }
}

pub(crate) struct CheckHost<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) is_root: bool,
    pub(crate) now: Timestamp,
}

impl CheckHost<'_> {
    async fn inspect(&self, report: &StepReport<'_>) -> Result<HostFacts, CheckHostError> {
        if !self.is_root {
            return Err(CheckHostError::NotRoot);
        }
        let architecture =
            Architecture::current().ok_or(CheckHostError::Architecture(std::env::consts::ARCH))?;
        if self.now.as_second() < EARLIEST_PLAUSIBLE_SECOND {
            return Err(CheckHostError::Clock(self.now));
        }
        let interface = self.interface().await?;
        self.check_cgroups()?;
        self.check_disk()?;
        self.check_ports().await?;
        self.warn_of_swap(report)?;
        Ok(HostFacts {
            interface,
            architecture,
        })
    }

    async fn interface(&self) -> Result<String, CheckHostError> {
        let invocation = Invocation::new("ip", ["-json", "address", "show"]);
        let commands = self.context.system.commands;
        let shown = commands
            .run_ok(&invocation)
            .await
            .map_err(CheckHostError::Addresses)?
            .text();
        let address = self.context.config.node.address;
        let found =
            interfaces::interface_of(&shown, address).map_err(CheckHostError::AddressFormat)?;
        match found {
            Some(interface) => Ok(interface),
            None => Err(CheckHostError::AddressMissing {
                address,
                present: interfaces::addresses(&shown).map_err(CheckHostError::AddressFormat)?,
            }),
        }
    }

    fn check_cgroups(&self) -> Result<(), CheckHostError> {
        let files = self.context.system.files;
        let v2 = files.read_text(Path::new("/sys/fs/cgroup/cgroup.controllers"))?;
        let v1 = files
            .read_text(Path::new("/proc/cgroups"))?
            .unwrap_or_default();
        let missing = missing_controllers(v2.as_deref(), &v1);
        if missing.is_empty() {
            Ok(())
        } else {
            Err(CheckHostError::Cgroups { missing })
        }
    }

    fn check_disk(&self) -> Result<(), CheckHostError> {
        let free = self
            .context
            .system
            .files
            .space(Path::new(paths::DATA))?
            .free;
        if free < REQUIRED_FREE_BYTES {
            return Err(CheckHostError::Disk { free });
        }
        Ok(())
    }

    async fn check_ports(&self) -> Result<(), CheckHostError> {
        let config = self.context.config;
        let mut wanted = vec![(KUBELET_PORT, "stop it: the kubelet needs this port")];
        if config.node.role == Role::Server {
            let own = config.own_server();
            wanted.push((own.api_port, "stop it, or change this server's api_port"));
            wanted.push((own.join_port, "stop it, or change this server's join_port"));
            if config.uses_etcd() {
                wanted.extend(ETCD_PORTS.map(|port| (port, "stop it: etcd needs this port")));
            }
        }
        let invocation = Invocation::new("ss", ["-H", "-l", "-t", "-n", "-p"]);
        let shown = self
            .context
            .system
            .commands
            .run_ok(&invocation)
            .await
            .map_err(CheckHostError::Listeners)?
            .text();
        for listener in parse_listeners(&shown) {
            let Some((port, remedy)) = wanted.iter().find(|(port, _)| *port == listener.port)
            else {
                continue;
            };
            if !self.is_ours(&listener)? {
                let owner = match listener.owner {
                    Some((name, process)) => format!("{name} (process {process})"),
                    None => "a program that cannot be seen from here".to_owned(),
                };
                return Err(CheckHostError::PortTaken {
                    port: *port,
                    owner,
                    remedy,
                });
            }
        }
        Ok(())
    }

    /// Whether a listener belongs to K3s's unit or to the join service's, by its control group.
    fn is_ours(&self, listener: &Listener) -> Result<bool, FileError> {
        let Some((_, process)) = &listener.owner else {
            return Ok(false);
        };
        let path = format!("/proc/{process}/cgroup");
        let cgroup = self
            .context
            .system
            .files
            .read_text(Path::new(&path))?
            .unwrap_or_default();
        let role = self.context.config.node.role;
        Ok([unit_name(role), JOIN_UNIT]
            .iter()
            .any(|unit| cgroup.contains(&format!("/{unit}"))))
    }

    /// K3s tells its kubelet to accept swap, so it is a remark and not an error.
    fn warn_of_swap(&self, report: &StepReport<'_>) -> Result<(), FileError> {
        let swaps = self
            .context
            .system
            .files
            .read_text(Path::new("/proc/swaps"))?
            .unwrap_or_default();
        if swaps.lines().count() > 1 {
            report.info("swap is on: pods are not slowed by it only as long as memory suffices");
        }
        Ok(())
    }
}

#[async_trait]
impl Step for CheckHost<'_> {
    type Output = HostFacts;

    fn name(&self) -> &'static str {
        "check_host"
    }

    fn title(&self) -> String {
        format!(
            "Check this machine for a K3s {}",
            self.context.config.node.role
        )
    }

    async fn check(&self, report: &StepReport<'_>) -> Result<Check<HostFacts>, StepFailure> {
        Ok(Check::Satisfied(self.inspect(report).await?))
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<HostFacts, StepFailure> {
        Ok(self.inspect(report).await?)
    }

    fn planned(&self) -> HostFacts {
        HostFacts {
            interface: String::new(),
            architecture: Architecture::Amd64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Machine, agent_config, server_config};

    async fn inspect(machine: &Machine, server: bool) -> Result<HostFacts, CheckHostError> {
        let config = if server {
            server_config()
        } else {
            agent_config()
        };
        let recorder = orch_runner::Recorder::default();
        CheckHost {
            context: machine.context(&config),
            is_root: true,
            now: Timestamp::from_second(1_800_000_000).unwrap(),
        }
        .inspect(&StepReport::new(&recorder, "check_host"))
        .await
    }

    #[tokio::test]
    async fn the_interface_is_derived_from_the_address() {
        let facts = inspect(&Machine::fit(), true).await.unwrap();
        assert_eq!(facts.interface, "eth1");
    }

    #[tokio::test]
    async fn an_address_that_is_not_here_names_those_that_are() {
        let machine = Machine::fit();
        machine.commands.answer(
            "ip -json",
            0,
            r#"[{"ifname":"eth0","addr_info":[{"local":"10.0.2.15"}]}]"#,
        );
        let error = inspect(&machine, true).await.unwrap_err().to_string();
        assert!(
            error.contains("192.168.56.10") && error.contains("10.0.2.15 (eth0)"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_taken_port_names_its_owner() {
        let machine = Machine::fit();
        machine.commands.answer(
            "ss ",
            0,
            "LISTEN 0 1 *:6443 *:* users:((\"haproxy\",pid=7,fd=3))\n",
        );
        machine.files.put(
            "/proc/7/cgroup",
            "0::/system.slice/haproxy.service\n",
            0o444,
        );
        let error = inspect(&machine, true).await.unwrap_err().to_string();
        assert!(
            error.contains("6443") && error.contains("haproxy (process 7)"),
            "{error}"
        );
        // An agent does not need that port.
        inspect(&machine, false).await.unwrap();
    }

    #[tokio::test]
    async fn a_port_of_our_own_units_is_no_obstacle() {
        let machine = Machine::fit();
        machine.commands.answer(
            "ss ",
            0,
            "LISTEN 0 1 *:6443 *:* users:((\"k3s-server\",pid=7,fd=3))\n",
        );
        machine.files.put(
            "/proc/7/cgroup",
            "1:name=systemd:/system.slice/k3s.service\n",
            0o444,
        );
        inspect(&machine, true).await.unwrap();
    }

    #[tokio::test]
    async fn a_kernel_without_the_memory_controller_is_refused() {
        let machine = Machine::fit();
        machine
            .files
            .put("/sys/fs/cgroup/cgroup.controllers", "cpu pids", 0o444);
        assert!(matches!(
            inspect(&machine, true).await,
            Err(CheckHostError::Cgroups { .. })
        ));
    }
}
