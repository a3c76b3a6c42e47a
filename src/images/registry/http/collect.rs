//! The requests that only garbage collection makes: listing tags, deleting manifests.

use reqwest::Method;
use serde::Deserialize;

use super::{HttpRegistry, error_message, page, read_limited};
use crate::images::registry::RegistryError;

/// Tags asked for at a time. Registries may give fewer.
const PAGE: usize = 1000;
/// The largest page of tags that is read, in bytes: a thousand tags of the longest kind are an eighth of it.
const PAGE_LIMIT: usize = 1024 * 1024;
/// Pages after which a registry is taken to go in circles.
const MOST_PAGES: usize = 10_000;

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
        let operation = format!("listing the tags of {repository}");
        let protocol = |reason: &str| RegistryError::Protocol {
            operation: operation.clone(),
            reason: reason.to_owned(),
        };
        let mut url = self.url(repository, "tags/list")?;
        url.query_pairs_mut().append_pair("n", &PAGE.to_string());
        let mut tags = Vec::new();
        for _ in 0..MOST_PAGES {
            let response = self
                .send(&operation, repository, || Ok(self.client.get(url.clone())))
                .await?;
            if response.status() == 404 {
                return Ok(None);
            }
            let response = self.expect(&operation, response, &[200]).await?;
            let next = page::next(&url, response.headers()).map_err(|reason| protocol(&reason))?;
            let bytes = read_limited(response, PAGE_LIMIT).await.map_err(|source| {
                RegistryError::Interrupted {
                    operation: operation.clone(),
                    host: self.endpoint.host(),
                    source,
                }
            })?;
            let page: TagList = serde_json::from_slice(&bytes)
                .map_err(|_| protocol("the registry's answer is no list of tags"))?;
            tags.extend(page.tags.unwrap_or_default());
            match next {
                None => {
                    // A page may begin with the tag that the one before ended with.
                    tags.sort();
                    tags.dedup();
                    return Ok(Some(tags));
                }
                Some(next) => url = next,
            }
        }
        Err(protocol("the registry's list of tags has no end"))
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
