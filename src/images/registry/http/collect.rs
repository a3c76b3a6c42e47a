//! The requests that only garbage collection makes: listing tags, deleting manifests.

use reqwest::Method;
use serde::Deserialize;

use super::page::{LIMITS, List};
use super::{HttpRegistry, error_message};
use crate::images::registry::RegistryError;

/// Tags asked for at a time. Registries may give fewer.
const PAGE: usize = 1000;

#[derive(Deserialize)]
struct TagList {
    /// Registries answer `null` for a repository whose tags were all deleted.
    tags: Option<Vec<String>>,
}

impl HttpRegistry {
    pub(super) async fn tags(
        &self,
        repository: &str,
    ) -> Result<Option<Vec<String>>, RegistryError> {
        let mut url = self.url(repository, "tags/list")?;
        url.query_pairs_mut().append_pair("n", &PAGE.to_string());
        let list = List {
            operation: &format!("listing the tags of {repository}"),
            repository,
            url,
            accept: "application/json",
            absent: &[404],
            optional: false,
        };
        let Some(pages) = self.pages::<TagList>(list, LIMITS).await? else {
            return Ok(None);
        };
        let tags = pages.into_iter().filter_map(|page| page.tags);
        // A page may begin with the tag that the one before ended with.
        let mut tags: Vec<String> = tags.flatten().collect();
        tags.sort();
        tags.dedup();
        Ok(Some(tags))
    }

    pub(super) async fn delete(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<bool, RegistryError> {
        let operation = format!("deleting {repository}@{digest}");
        let url = self.url(repository, &format!("manifests/{digest}"))?;
        {
            // All at once: one token more, however many repositories there are.
            let mut state = self.state.lock().await;
            for name in self.pushed_repositories() {
                state.want(format!("repository:{name}:delete"));
            }
            state.want(format!("repository:{repository}:delete"));
        }
        let response = self
            .send(&operation, repository, || {
                Ok(self.change(Method::DELETE, &url))
            })
            .await?;
        match response.status().as_u16() {
            404 => Ok(false),
            405 | 501 => Err(self.no_delete(operation, response).await),
            400 if self.is_docker_hub() => Err(self.no_delete(operation, response).await),
            _ => self
                .expect(&operation, response, &[200, 202, 204])
                .await
                .map(|_| true),
        }
    }

    fn pushed_repositories(&self) -> impl Iterator<Item = &str> {
        self.push_scopes
            .iter()
            .filter_map(|scope| scope.split(':').nth(1))
    }

    fn is_docker_hub(&self) -> bool {
        self.endpoint
            .url
            .host_str()
            .is_some_and(|host| host.ends_with("docker.io"))
    }

    async fn no_delete(&self, operation: String, response: reqwest::Response) -> RegistryError {
        let status = response.status().as_u16();
        let advice = if self.is_docker_hub() {
            "delete the tags at https://hub.docker.com, in the repository's page Tags".to_owned()
        } else {
            "allow it there (the CNCF registry: `storage.delete.enabled: true`), or delete in the registry's own interface"
                .to_owned()
        };
        RegistryError::NoDelete {
            operation: format!("{operation} at {}", self.endpoint.host()),
            reason: format!("{status} {}", error_message(response).await)
                .trim_end()
                .to_owned(),
            advice,
        }
    }
}
