//! What Vagrant's docker provider needs of the engine: a network with fixed addresses, volumes, and
//! a clean table when an earlier run was killed.
//!
//! Everything carries [`CLUSTER_LABEL`]; nothing without it is ever touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{CLUSTER_LABEL, MachineError, NODE_LABEL, PROJECT_LABEL};
use crate::process::{Program, RunError};

/// The engine's things of one cluster of one project.
#[derive(Debug, Clone)]
pub struct ClusterResources {
    cluster: String,
    project: PathBuf,
}

impl ClusterResources {
    /// `project` is the folder that the cluster belongs to.
    pub fn new(cluster: &str, project: &Path) -> Self {
        Self {
            cluster: cluster.to_owned(),
            project: project.to_owned(),
        }
    }

    /// Fails where a cluster of this name belongs to another project whose folder still exists.
    pub async fn check_owner(&self) -> Result<(), MachineError> {
        let format = format!("{{{{.Label \"{PROJECT_LABEL}\"}}}}");
        for kind in ["container", "volume", "network"] {
            let all: &[&str] = if kind == "container" { &["--all"] } else { &[] };
            let owners = self
                .list(kind, &[all, &["--format", &format]].concat())
                .await?;
            let foreign = owners.iter().find(|owner| {
                !owner.is_empty() && Path::new(owner) != self.project && Path::new(owner).exists()
            });
            if let Some(owner) = foreign {
                return Err(MachineError::OtherProject {
                    cluster: self.cluster.clone(),
                    project: owner.clone(),
                });
            }
        }
        Ok(())
    }

    /// The network's name, and the prefix of every volume's.
    pub fn network(&self) -> String {
        format!("orch-{}", self.cluster)
    }

    /// The tag that the Vagrantfile asks for.
    pub fn node_image(&self) -> String {
        format!("orch-node:{}", self.cluster)
    }

    fn label(&self) -> String {
        format!("{CLUSTER_LABEL}={}", self.cluster)
    }

    fn project_label(&self) -> String {
        format!("{PROJECT_LABEL}={}", self.project.display())
    }

    /// Makes network and volumes for these nodes unless they are there.
    pub async fn ensure(
        &self,
        subnet: &str,
        gateway: &str,
        nodes: &[&str],
    ) -> Result<(), MachineError> {
        let network = self.network();
        if self
            .list("network", &["--format", "{{.Name}}"])
            .await?
            .is_empty()
        {
            docker(["network", "create", "--label", &self.label(), "--label", &self.project_label(), "--subnet", subnet, "--gateway", gateway, &network])
                .run()
                .await
                .map_err(failed(format!("make the network {network} ({subnet}); another network may use the subnet: see `docker network ls`, or give network.subnet another value in orch.yaml")))?;
        }
        let present = self.list("volume", &["--format", "{{.Name}}"]).await?;
        let per_node = nodes.iter().flat_map(|node| {
            [
                format!("{network}-{node}-rancher"),
                format!("{network}-{node}-kubelet"),
            ]
        });
        for volume in std::iter::once(format!("{network}-volumes")).chain(per_node) {
            if !present.contains(&volume) {
                docker(["volume", "create"])
                    .args(["--label", &self.label(), "--label", &self.project_label()])
                    .args([&volume])
                    .run()
                    .await
                    .map_err(failed(format!("make the volume {volume}")))?;
            }
        }
        Ok(())
    }

    /// Fails where network or nodes exist and were made otherwise than wanted: an engine cannot change these afterwards.
    pub async fn check_made_as(
        &self,
        subnet: &str,
        nodes: &[WantedContainer],
    ) -> Result<(), MachineError> {
        let differs = |what: String, made: String, wanted: String| MachineError::MadeOtherwise {
            what,
            made,
            wanted,
        };
        let network = self.network();
        for name in self.list("network", &["--format", "{{.Name}}"]).await? {
            let format = "{{range .IPAM.Config}}{{.Subnet}}{{end}}";
            let made = inspect(&["network", "inspect", "--format", format, &name]).await?;
            if made != subnet {
                let what = "the cluster's network (network.subnet)".to_owned();
                return Err(differs(what, made, subnet.to_owned()));
            }
        }
        for line in self.node_containers().await? {
            let (id, name) = line.split_once(' ').unwrap_or((&line, ""));
            let Some(wanted) = nodes.iter().find(|wanted| wanted.name == name) else {
                continue;
            };
            let text = inspect(&["container", "inspect", "--format", "{{json .}}", id]).await?;
            let made = made(&text, &network);
            if made.address != wanted.address {
                let what = format!("node {name} (its address)");
                return Err(differs(what, made.address, wanted.address.clone()));
            }
            if made.ports != wanted.ports {
                let what = format!("node {name} (ports.api and ports.forward)");
                return Err(differs(what, shown(&made.ports), shown(&wanted.ports)));
            }
        }
        Ok(())
    }

    /// Removes node containers that Vagrant does not know: a run that was killed between `docker
    /// run` and Vagrant's note of it. Their node state goes with them, the cluster's data stays.
    /// Another project's cluster of the same name is an error.
    pub async fn remove_strays(&self, known: &[String]) -> Result<Vec<String>, MachineError> {
        self.check_owner().await?;
        let mut removed = Vec::new();
        for line in self.node_containers().await? {
            let (id, node) = line.split_once(' ').unwrap_or((&line, ""));
            if known.iter().any(|known| known == id) {
                continue;
            }
            docker(["rm", "--force", "--volumes", id])
                .run()
                .await
                .map_err(failed(format!("remove the stray container of {node}")))?;
            self.remove_node_state(node).await?;
            removed.push(node.to_owned());
        }
        Ok(removed)
    }

    /// Removes what a node kept for itself; its container must be gone.
    pub async fn remove_node_state(&self, node: &str) -> Result<(), MachineError> {
        for kind in ["rancher", "kubelet"] {
            let volume = format!("{}-{node}-{kind}", self.network());
            docker(["volume", "rm", "--force", &volume])
                .run()
                .await
                .map_err(failed(format!("remove the volume {volume}")))?;
        }
        Ok(())
    }

    /// `<id> <node>` of every node container, running or not.
    async fn node_containers(&self) -> Result<Vec<String>, MachineError> {
        let format = format!("{{{{.ID}}}} {{{{.Label \"{NODE_LABEL}\"}}}}");
        let arguments = [
            "--all",
            "--no-trunc",
            "--filter",
            &format!("label={NODE_LABEL}"),
            "--format",
            &format,
        ];
        self.list("container", &arguments).await
    }

    /// Whether any node's container runs.
    pub async fn has_running_nodes(&self) -> Result<bool, MachineError> {
        let label = format!("label={NODE_LABEL}");
        let arguments = ["--filter", &label, "--format", "{{.ID}}"];
        Ok(!self.list("container", &arguments).await?.is_empty())
    }

    /// Whether any node's container is left.
    pub async fn has_nodes(&self) -> Result<bool, MachineError> {
        Ok(!self.node_containers().await?.is_empty())
    }

    /// Ends the nodes at once: what is about to be destroyed need not shut down in order.
    pub async fn kill_nodes(&self) -> Result<(), MachineError> {
        let running = self
            .list(
                "container",
                &[
                    "--filter",
                    &format!("label={NODE_LABEL}"),
                    "--format",
                    "{{.ID}}",
                ],
            )
            .await?;
        if running.is_empty() {
            return Ok(());
        }
        docker(["kill"])
            .args(&running)
            .run()
            .await
            .map_err(failed("end the nodes' containers"))
    }

    /// Removes every container, volume and network of the cluster, and its image tag. Another
    /// project's cluster of the same name is an error.
    pub async fn remove_all(&self) -> Result<(), MachineError> {
        self.check_owner().await?;
        let containers = self
            .list("container", &["--all", "--format", "{{.ID}}"])
            .await?;
        if !containers.is_empty() {
            docker(["rm", "--force", "--volumes"])
                .args(&containers)
                .run()
                .await
                .map_err(failed("remove the cluster's containers"))?;
        }
        for kind in ["volume", "network"] {
            let names = self.list(kind, &["--format", "{{.Name}}"]).await?;
            if !names.is_empty() {
                docker([kind, "rm"])
                    .args(&names)
                    .run()
                    .await
                    .map_err(failed(format!("remove the cluster's {kind}s")))?;
            }
        }
        if docker(["image", "inspect", &self.node_image()])
            .succeeds()
            .await
        {
            docker(["image", "rm", "--no-prune", &self.node_image()])
                .run()
                .await
                .map_err(failed(format!("remove the tag {}", self.node_image())))?;
        }
        Ok(())
    }

    async fn list(&self, kind: &str, more: &[&str]) -> Result<Vec<String>, MachineError> {
        let filter = format!("label={}", self.label());
        let text = docker([kind, "ls", "--filter", &filter])
            .args(more)
            .output()
            .await
            .map_err(failed(format!("list the cluster's {kind}s")))?;
        Ok(text.lines().map(|line| line.trim().to_owned()).collect())
    }
}

/// What a node's container must have been made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedContainer {
    pub name: String,
    pub address: String,
    /// Ports on the host's 127.0.0.1 by port of the node.
    pub ports: BTreeMap<u16, u16>,
}

/// Vagrant's own way into a machine; it chooses the port on the host itself.
const SSH_PORT: u16 = 22;

/// How a container was made, out of what the engine says of it.
fn made(text: &str, network: &str) -> WantedContainer {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let address = &value["NetworkSettings"]["Networks"][network]["IPAMConfig"]["IPv4Address"];
    let bindings = value["HostConfig"]["PortBindings"].as_object();
    let ports = bindings.into_iter().flatten().filter_map(|(port, hosts)| {
        let port = port.strip_suffix("/tcp")?.parse().ok()?;
        let host = hosts[0]["HostPort"].as_str()?.parse().ok()?;
        (port != SSH_PORT).then_some((port, host))
    });
    WantedContainer {
        name: value["Name"].as_str().unwrap_or_default().to_owned(),
        address: address.as_str().unwrap_or_default().to_owned(),
        ports: ports.collect(),
    }
}

fn shown(ports: &BTreeMap<u16, u16>) -> String {
    let pairs: Vec<_> = ports
        .iter()
        .map(|(node, host)| format!("{host} -> {node}"))
        .collect();
    pairs.join(", ")
}

async fn inspect(arguments: &[&str]) -> Result<String, MachineError> {
    let text = docker(arguments.iter().copied())
        .output()
        .await
        .map_err(failed("say how the cluster was made"))?;
    Ok(text.trim().to_owned())
}

fn docker<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new("docker").args(arguments)
}

fn failed(operation: impl Into<String>) -> impl FnOnce(RunError) -> MachineError {
    let operation = operation.into();
    move |source| MachineError::Docker { operation, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_making_is_read_from_the_engines_answer() {
        let text = r#"{"Name":"/orch-x-master",
            "HostConfig":{"PortBindings":{
                "22/tcp":[{"HostIp":"127.0.0.1","HostPort":"2222"}],
                "30000/tcp":[{"HostIp":"127.0.0.1","HostPort":"3000"}]}},
            "NetworkSettings":{"Networks":{"orch-x":{"IPAMConfig":{"IPv4Address":"192.168.56.10"}}}}}"#;
        let made = made(text, "orch-x");
        assert_eq!(made.address, "192.168.56.10");
        assert_eq!(made.ports, BTreeMap::from([(30000, 3000)]));
        assert_eq!(shown(&made.ports), "3000 -> 30000");
    }
}
