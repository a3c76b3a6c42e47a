//! A machine of fakes, and configurations, for the steps' tests.

pub(crate) mod cut;
pub(crate) mod grants;
pub(crate) mod node;

use orch_contract::NodeConfig;

use crate::steps::Context;
use crate::system::{
    DownloadError, FakeCommands, FakeEndpoints, FakeServices, MemoryFiles, System,
};

/// Fakes of everything that a step can touch.
#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) files: MemoryFiles,
    pub(crate) commands: FakeCommands,
    pub(crate) services: FakeServices,
    pub(crate) endpoints: FakeEndpoints,
    offline: Offline,
}

impl Machine {
    /// A machine that can be either node of the test configurations.
    pub(crate) fn fit() -> Self {
        let machine = Self::default();
        machine.commands.answer(
            "ip -json",
            0,
            r#"[{"ifname":"lo","addr_info":[{"local":"127.0.0.1"}]},
                {"ifname":"eth0","addr_info":[{"local":"10.0.2.15"}]},
                {"ifname":"eth1","addr_info":[{"local":"192.168.56.10"},{"local":"192.168.56.11"}]}]"#,
        );
        machine.commands.answer("ss ", 0, "");
        machine.files.put(
            "/sys/fs/cgroup/cgroup.controllers",
            "cpu memory pids\n",
            0o444,
        );
        machine
    }

    pub(crate) fn system(&self) -> System<'_> {
        System {
            files: &self.files,
            commands: &self.commands,
            services: &self.services,
            download: &self.offline,
            endpoints: &self.endpoints,
        }
    }

    pub(crate) fn context<'a>(&'a self, config: &'a NodeConfig) -> Context<'a> {
        Context {
            system: self.system(),
            config,
        }
    }
}

/// A machine without a network.
#[derive(Default)]
struct Offline;

#[async_trait::async_trait]
impl crate::system::Download for Offline {
    async fn fetch(
        &self,
        url: &str,
        _to: &std::path::Path,
        _timeout: std::time::Duration,
        _report: &orch_runner::StepReport<'_>,
    ) -> Result<(), DownloadError> {
        Err(DownloadError::Status {
            url: url.to_owned(),
            status: 503,
        })
    }
}

pub(crate) fn server_config() -> NodeConfig {
    parse(
        r#"{"schema":2,"cluster":{"name":"test"},
            "node":{"name":"master","role":"server","address":"192.168.56.10"},
            "servers":[{"name":"master","address":"192.168.56.10"}],"k3s":{"version":"v1.34.2+k3s1"}}"#,
    )
}

/// Of one of the three servers `s0`, `s1` and `s2`.
pub(crate) fn servers_config(index: usize) -> NodeConfig {
    parse(&format!(
        r#"{{"schema":2,"cluster":{{"name":"test"}},
            "node":{{"name":"s{index}","role":"server","address":"192.168.56.1{index}"}},
            "servers":[{{"name":"s0","address":"192.168.56.10"}},{{"name":"s1","address":"192.168.56.11"}},
                       {{"name":"s2","address":"192.168.56.12"}}],"k3s":{{"version":"v1.34.2+k3s1"}}}}"#
    ))
}

pub(crate) fn agent_config() -> NodeConfig {
    parse(
        r#"{"schema":2,"cluster":{"name":"test"},
            "node":{"name":"agent","role":"agent","address":"192.168.56.11"},
            "servers":[{"name":"master","address":"192.168.56.10"}],"k3s":{"version":"v1.34.2+k3s1"}}"#,
    )
}

fn parse(text: &str) -> NodeConfig {
    NodeConfig::from_json(text).unwrap()
}
