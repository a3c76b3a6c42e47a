//! What Vagrant's docker provider needs of the engine: a network with fixed addresses, volumes, and
//! a clean table when an earlier run was killed.
//!
//! Everything carries [`CLUSTER_LABEL`]; nothing without it is ever touched.

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
            for kind in ["rancher", "kubelet"] {
                let volume = format!("{}-{node}-{kind}", self.network());
                docker(["volume", "rm", "--force", &volume])
                    .run()
                    .await
                    .map_err(failed(format!("remove the volume {volume}")))?;
            }
            removed.push(node.to_owned());
        }
        Ok(removed)
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

fn docker<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Program {
    Program::new("docker").args(arguments)
}

fn failed(operation: impl Into<String>) -> impl FnOnce(RunError) -> MachineError {
    let operation = operation.into();
    move |source| MachineError::Docker { operation, source }
}
