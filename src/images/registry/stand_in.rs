//! The registry that stands in for Docker Hub when there are no credentials: a container on this host, for one cluster.

use std::net::IpAddr;
use std::time::Duration;

use super::RegistryError;
use super::http::HttpRegistry;
use crate::images::engine::{Engine, EngineError};

/// Port that the registry listens on in its container.
const INNER_PORT: u16 = 5000;
/// The header field in which it says whose it is.
const CLUSTER_HEADER: &str = "X-Orch-Cluster";
/// Where the registry keeps its data in its container.
const DATA: &str = "/var/lib/registry";
/// Its configuration there.
const CONFIGURATION: &str = "/etc/docker/registry/config.yml";
/// How often a starting registry is asked whether it is there yet.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often before it counts as broken.
const ATTEMPTS: u32 = 200;
/// How long a registry on this host may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1000);

/// Which registry container.
#[derive(Debug, Clone)]
pub struct StandIn {
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Port on 127.0.0.1.
    pub port: u16,
}

impl StandIn {
    /// The container's and its volume's name.
    pub fn name(&self) -> String {
        format!("orch-registry-{}", self.cluster)
    }

    /// Host and port that this machine reaches it at.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Does it answer already? Whatever else answers at its port is an error: images would go to somebody else's registry.
    pub async fn is_running(&self, client: &HttpRegistry) -> Result<bool, RegistryError> {
        let Some(headers) = client.probe(PROBE_TIMEOUT).await else {
            return Ok(false);
        };
        let cluster = headers
            .get(CLUSTER_HEADER)
            .and_then(|value| value.to_str().ok());
        if cluster == Some(self.cluster.as_str()) {
            return Ok(true);
        }
        let owner = cluster.map_or_else(
            || "another registry".to_owned(),
            |cluster| format!("the registry of cluster {cluster}"),
        );
        Err(RegistryError::StandIn {
            reason: format!(
                "port {} is taken by {owner}: choose another `ports.registry`, or stop that registry",
                self.port
            ),
        })
    }

    /// Starts a container that exists. False when there is none.
    pub async fn restart(
        &self,
        engine: &Engine,
        client: &HttpRegistry,
    ) -> Result<bool, RegistryError> {
        match engine.run(&["container", "start", &self.name()]).await {
            Ok(_) => self.wait(engine, client).await.map(|()| true),
            Err(EngineError::Failed { output, .. })
                if output.to_ascii_lowercase().contains("no such container") =>
            {
                Ok(false)
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Makes and starts the container from `image`: no capabilities, read-only but for its data, reachable from this host alone.
    pub async fn create(
        &self,
        engine: &Engine,
        image: &str,
        client: &HttpRegistry,
    ) -> Result<(), RegistryError> {
        let name = self.name();
        let label = format!("dev.orch.cluster={}", self.cluster);
        let publish = format!("127.0.0.1:{}:{INNER_PORT}", self.port);
        let volume = format!("{name}:{DATA}");
        let headers = format!(
            "REGISTRY_HTTP_HEADERS={{X-Content-Type-Options: [nosniff], {CLUSTER_HEADER}: [\"{}\"]}}",
            self.cluster
        );
        // Made first, because only then does it carry the label that `destroy` looks for.
        let made = engine
            .run(&["volume", "create", "--label", &label, &name])
            .await;
        made.map_err(|error| self.failed(&error))?;
        let arguments = [
            "run",
            "--detach",
            "--name",
            &name,
            "--label",
            &label,
            "--restart",
            "unless-stopped",
            "--env",
            &headers,
            "--read-only",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--publish",
            &publish,
            "--volume",
            &volume,
            image,
        ];
        if let Err(error) = engine.run(&arguments).await {
            // A port in use leaves a container behind that was never started.
            let _ = engine.run(&["rm", "--force", &name]).await;
            return Err(self.failed(&error));
        }
        self.wait(engine, client).await
    }

    /// Gives it an address in the machines' network, so that they reach it under the same name wherever the host is.
    pub async fn attach(
        &self,
        engine: &Engine,
        network: &str,
        address: IpAddr,
    ) -> Result<(), RegistryError> {
        let address = address.to_string();
        match engine
            .run(&[
                "network",
                "connect",
                "--ip",
                &address,
                network,
                &self.name(),
            ])
            .await
        {
            Err(EngineError::Failed { output, .. })
                if output.contains("already exists in network") =>
            {
                Ok(())
            }
            other => other.map(|_| ()).map_err(|error| self.failed(&error)),
        }
    }

    /// Gives it an address that machines reach but this container cannot have: the host's end of their network. A second
    /// container serves the same data there, read-only; pushes stay on loopback.
    pub async fn serve_on(&self, engine: &Engine, address: IpAddr) -> Result<(), RegistryError> {
        let name = format!("{}-nodes", self.name());
        let inspect = [
            "container",
            "inspect",
            "--format",
            "{{.State.Running}}",
            &name,
        ];
        if engine
            .run(&inspect)
            .await
            .is_ok_and(|running| running.trim() == "true")
        {
            return Ok(());
        }
        // One that stopped may have been made for another address.
        let _ = engine.run(&["rm", "--force", &name]).await;
        let image = engine
            .run(&[
                "container",
                "inspect",
                "--format",
                "{{.Image}}",
                &self.name(),
            ])
            .await
            .map_err(|error| self.failed(&error))?;
        let label = format!("dev.orch.cluster={}", self.cluster);
        let publish = format!("{address}:{}:{INNER_PORT}", self.port);
        let volume = format!("{}:{DATA}:ro", self.name());
        let arguments = [
            "run",
            "--detach",
            "--name",
            &name,
            "--label",
            &label,
            "--read-only",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--publish",
            &publish,
            "--volume",
            &volume,
            image.trim(),
        ];
        engine
            .run(&arguments)
            .await
            .map(|_| ())
            .map_err(|error| self.failed(&error))
    }

    /// Frees the space of what was deleted. The registry is stopped meanwhile: a blob that came between marking and sweeping would
    /// be taken for garbage. A push that this interrupts sends what is missing again.
    pub async fn collect_garbage(
        &self,
        engine: &Engine,
        client: &HttpRegistry,
    ) -> Result<(), RegistryError> {
        let name = self.name();
        let inspect = ["container", "inspect", "--format", "{{.Image}}", &name];
        let image = engine
            .run(&inspect)
            .await
            .map_err(|error| self.failed(&error))?;
        let volume = format!("{name}:{DATA}");
        let collect = [
            "run",
            "--rm",
            "--network",
            "none",
            "--read-only",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--volume",
            &volume,
            image.trim(),
            "garbage-collect",
            CONFIGURATION,
        ];
        engine
            .run(&["container", "stop", "--time", "10", &name])
            .await
            .map_err(|error| self.failed(&error))?;
        let collected = engine.run(&collect).await;
        // Whatever came of it, the cluster needs its registry back.
        let started = engine.run(&["container", "start", &name]).await;
        collected.map_err(|error| self.failed(&error))?;
        started.map_err(|error| self.failed(&error))?;
        self.wait(engine, client).await
    }

    async fn wait(&self, engine: &Engine, client: &HttpRegistry) -> Result<(), RegistryError> {
        for _ in 0..ATTEMPTS {
            if self.is_running(client).await? {
                return Ok(());
            }
            tokio::time::sleep(INTERVAL).await;
        }
        let logs = engine
            .run(&["logs", "--tail", "5", &self.name()])
            .await
            .unwrap_or_default();
        let reason = format!(
            "{} was started and does not answer at {}: {logs}",
            self.name(),
            self.host()
        );
        Err(RegistryError::StandIn { reason })
    }

    fn failed(&self, error: &EngineError) -> RegistryError {
        let mut reason = error.to_string();
        if reason.contains("port is already allocated") || reason.contains("address already in use")
        {
            reason = format!(
                "port {} is taken by another program: choose another `ports.registry`",
                self.port
            );
        }
        RegistryError::StandIn { reason }
    }
}
