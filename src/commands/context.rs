//! What every command starts from: the description, the folders, the writer.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use orch_contract::DEFAULT_API_PORT;

use crate::config::{self, Config};
use crate::machines::docker::ClusterResources;
use crate::machines::{Provider, Vagrant};
use crate::project::Project;
use crate::ui::Ui;

/// One run's surroundings.
pub struct Context {
    pub config: Config,
    pub project: Project,
    pub ui: Ui,
}

impl Context {
    pub fn load(file: &Path, ui: &Ui) -> anyhow::Result<Self> {
        let config = Config::load(file)?;
        let project = Project::new(file, &config.name.value)?;
        Ok(Self {
            config,
            project,
            ui: ui.clone(),
        })
    }

    pub fn cluster(&self) -> &str {
        &self.config.name.value
    }

    /// The provider of the machines that exist; before there are any, the one that `orch.yaml` names, or that this host
    /// can run.
    pub fn provider(&self) -> Provider {
        crate::machines::existing_provider(&self.project.vagrant_state())
            .or_else(|| self.wanted_provider())
            .unwrap_or_else(|| Provider::detect(crate::host::has_vagrant_libvirt()))
    }

    /// The provider that `orch.yaml` names; `None` for `auto`.
    pub const fn wanted_provider(&self) -> Option<Provider> {
        match self.config.provider {
            config::Provider::Auto => None,
            config::Provider::Virtualbox => Some(Provider::Virtualbox),
            config::Provider::Libvirt => Some(Provider::Libvirt),
            config::Provider::Docker => Some(Provider::Docker),
            config::Provider::Ssh => Some(Provider::Ssh),
        }
    }

    pub fn vagrant(&self) -> Vagrant {
        Vagrant {
            root: self.project.root().to_owned(),
            file: self.project.file().to_owned(),
            state: self.project.vagrant_state(),
            provider: self.provider(),
        }
    }

    pub fn resources(&self) -> ClusterResources {
        ClusterResources::new(self.cluster(), self.project.root())
    }

    /// A path from `orch.yaml`, seen from the project's root.
    pub fn path(&self, relative: &Path) -> PathBuf {
        self.project.root().join(relative)
    }

    /// Where this host reaches the API server of a server. Of the machines that orch makes, the first has a port on this host.
    pub fn api_url(&self, server: &str) -> String {
        let named = self.config.servers().find(|node| node.name.value == server);
        let first = self.config.server().map(|node| &node.name.value);
        let address = || named.map_or_else(String::new, |node| in_url(node.address.value));
        let (host, port) = match (self.provider(), &self.config.k3s.endpoint) {
            (Provider::Ssh, Some(endpoint)) => {
                let host = &endpoint.value;
                let address = host.parse().map(in_url);
                (address.unwrap_or_else(|_| host.clone()), DEFAULT_API_PORT)
            }
            (Provider::Ssh, None) => (address(), DEFAULT_API_PORT),
            _ if first.is_none_or(|first| first == server) => {
                ("127.0.0.1".to_owned(), self.config.ports.api)
            }
            _ => (address(), DEFAULT_API_PORT),
        };
        format!("https://{host}:{port}")
    }

    /// The namespace that the kubeconfig's context gets.
    pub fn namespace(&self) -> &str {
        self.config
            .stacks
            .first()
            .map_or("default", |stack| &stack.namespace)
    }
}

/// An address as URLs write it.
fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
