//! Where images go: what manifests call it, and which host is talked to.

use std::sync::Arc;

use super::ImageError;
use super::event::Reporter;
use super::registry::credentials::{self, Credential};
use super::registry::http::{Endpoint, HttpRegistry};
use super::registry::limit::Limited;
use super::registry::meter::Meter;
use super::registry::retry::{Policy, Retrying};
use super::registry::stand_in::StandIn;
use super::registry::{Registry, RegistryError};

/// Docker Hub's name in references.
pub const DOCKER_HUB: &str = "docker.io";
/// Whose images the local registry holds when nobody says.
const LOCAL_NAMESPACE: &str = "orch";
/// Requests to a registry at any time.
pub(super) const CONCURRENT_REQUESTS: usize = 16;

/// A namespace at a registry and the way there.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The registry's name in manifests.
    pub registry: String,
    /// The namespace in it.
    pub namespace: String,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Who we are there.
    pub credential: Option<Credential>,
    /// The local registry that takes Docker Hub's place.
    pub stand_in: Option<StandIn>,
}

impl Destination {
    /// Docker Hub (or `registry`) with credentials; without any, `stand_in` takes Docker Hub's place.
    pub fn choose(
        registry: &str,
        namespace: Option<&str>,
        plain_http: bool,
        stand_in: StandIn,
    ) -> Result<Self, ImageError> {
        let credential = credentials::find_for_destination(registry)?;
        Self::with(credential, registry, namespace, plain_http, stand_in)
    }

    /// The same for a run that only wants to know what images are called there: nobody is asked who we are.
    pub fn unasked(
        registry: &str,
        namespace: Option<&str>,
        plain_http: bool,
        stand_in: StandIn,
    ) -> Result<Self, ImageError> {
        Self::with(None, registry, namespace, plain_http, stand_in)
    }

    fn with(
        credential: Option<Credential>,
        registry: &str,
        namespace: Option<&str>,
        plain_http: bool,
        stand_in: StandIn,
    ) -> Result<Self, ImageError> {
        let hub = registry == DOCKER_HUB;
        let stand_in = (hub && credential.is_none()).then_some(stand_in);
        let endpoint = match &stand_in {
            Some(stand_in) => Endpoint::of(&stand_in.host(), true)?,
            None => Endpoint::of(registry, plain_http)?,
        };
        let user = credential
            .as_ref()
            .and_then(Credential::username)
            .filter(|_| hub);
        // A registry of this machine knows no owners.
        let local = (stand_in.is_some() || endpoint.is_loopback()).then_some(LOCAL_NAMESPACE);
        let namespace = namespace
            .or(user)
            .or(local)
            .ok_or_else(|| ImageError::Namespace {
                registry: registry.to_owned(),
            })?;
        Ok(Self {
            registry: registry.to_owned(),
            namespace: namespace.to_owned(),
            endpoint,
            credential,
            stand_in,
        })
    }

    /// Path of a component's repository at the registry.
    pub fn path(&self, component: &str) -> String {
        format!("{}/{component}", self.namespace)
    }

    /// A component's repository as manifests call it.
    pub fn repository(&self, component: &str) -> String {
        format!("{}/{}/{component}", self.registry, self.namespace)
    }

    /// What the engine can pull the image at.
    pub fn pullable(&self, component: &str, digest: &str) -> String {
        match &self.stand_in {
            Some(stand_in) => format!("{}/{}@{digest}", stand_in.host(), self.path(component)),
            None => format!("{}@{digest}", self.repository(component)),
        }
    }

    /// A plain client.
    pub fn client(
        &self,
        components: &[String],
        meter: &Arc<Meter>,
    ) -> Result<HttpRegistry, RegistryError> {
        let repositories: Vec<String> = components
            .iter()
            .map(|component| self.path(component))
            .collect();
        HttpRegistry::new(
            self.endpoint.clone(),
            self.credential.clone(),
            repositories,
            Arc::clone(meter),
        )
    }

    /// A client that is patient and modest.
    pub fn registry(
        &self,
        components: &[String],
        meter: &Arc<Meter>,
        policy: Policy,
        reporter: &Arc<dyn Reporter>,
    ) -> Result<Arc<dyn Registry>, RegistryError> {
        let limited = Limited::new(self.client(components, meter)?, CONCURRENT_REQUESTS);
        Ok(Arc::new(Retrying::new(
            limited,
            policy,
            Arc::clone(reporter),
        )))
    }
}
