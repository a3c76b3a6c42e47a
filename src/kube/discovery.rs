//! Which REST resource a kind is, asked once per group and version.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResourceList;
use kube::core::ApiResource;
use tokio::sync::Mutex;

/// A kind's resource.
pub(super) struct Resource {
    pub(super) api: ApiResource,
    pub(super) namespaced: bool,
}

/// The cluster's API resources, fetched as they are needed.
pub(super) struct Discovery {
    client: kube::Client,
    known: Mutex<HashMap<String, Arc<APIResourceList>>>,
}

impl Discovery {
    pub(super) fn new(client: kube::Client) -> Self {
        Self {
            client,
            known: Mutex::new(HashMap::new()),
        }
    }

    /// `None` when the cluster does not serve the kind. That answer is not kept: a
    /// CustomResourceDefinition may be about to be established.
    pub(super) async fn resource(
        &self,
        api_version: &str,
        kind: &str,
    ) -> kube::Result<Option<Resource>> {
        let mut known = self.known.lock().await;
        if let Some(resource) = known
            .get(api_version)
            .and_then(|list| find(list, api_version, kind))
        {
            return Ok(Some(resource));
        }
        let list = match self.fetch(api_version).await {
            Ok(list) => Arc::new(list),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(error),
        };
        let found = find(&list, api_version, kind);
        known.insert(api_version.to_owned(), list);
        Ok(found)
    }

    async fn fetch(&self, api_version: &str) -> kube::Result<APIResourceList> {
        if api_version.contains('/') {
            self.client.list_api_group_resources(api_version).await
        } else {
            self.client.list_core_api_resources(api_version).await
        }
    }
}

fn find(list: &APIResourceList, api_version: &str, kind: &str) -> Option<Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = list
        .resources
        .iter()
        .find(|resource| resource.kind == kind && !resource.name.contains('/'))?;
    Some(Resource {
        api: ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: resource.name.clone(),
        },
        namespaced: resource.namespaced,
    })
}
