//! Lists that a registry gives in pages: all of them, as far as it makes sense, and where the next one is (RFC 8288,
//! `Link: <...>; rel="next"`).

use reqwest::header::{ACCEPT, HeaderMap, LINK};
use serde::de::DeserializeOwned;
use url::Url;

use super::{HttpRegistry, read_limited};
use crate::images::registry::RegistryError;

/// How much of a list is read before the registry is taken to go in circles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Pages.
    pub(super) pages: usize,
    /// Bytes of all pages together.
    pub(super) bytes: usize,
}

/// A hundred thousand tags, or entries of a list of referrers, are less than this, at a registry that gives ten a page.
pub(super) const LIMITS: Limits = Limits {
    pages: 10_000,
    bytes: 64 * 1024 * 1024,
};

/// A list of a registry.
pub(super) struct List<'a> {
    /// What is asked for, in words.
    pub(super) operation: &'a str,
    /// The repository that it is about.
    pub(super) repository: &'a str,
    /// The first page.
    pub(super) url: Url,
    /// Media type of a page.
    pub(super) accept: &'a str,
    /// The answers of a registry that has no such list.
    pub(super) absent: &'a [u16],
}

impl HttpRegistry {
    /// The pages of a list; nothing if there is no such list.
    pub(super) async fn pages<T: DeserializeOwned>(
        &self,
        list: List<'_>,
        limits: Limits,
    ) -> Result<Option<Vec<T>>, RegistryError> {
        let List {
            operation,
            repository,
            mut url,
            accept,
            absent,
        } = list;
        let protocol = |reason: String| RegistryError::Protocol {
            operation: operation.to_owned(),
            reason,
        };
        let endless = |what: String| {
            protocol(format!(
                "the registry's list has more than {what}, and the rest was not asked for: it goes in circles, or somebody \
                 has filled this repository; look at it there"
            ))
        };
        let mut left = limits.bytes;
        let mut pages = Vec::new();
        while pages.len() < limits.pages {
            let build = || Ok(self.client.get(url.clone()).header(ACCEPT, accept));
            let Some(response) = self.find(operation, repository, absent, build).await? else {
                return Ok(None);
            };
            let next = next(&url, response.headers()).map_err(protocol)?;
            let bytes = read_limited(response, left.saturating_add(1)).await;
            let bytes = bytes.map_err(|source| self.interrupted(operation, source))?;
            left = left
                .checked_sub(bytes.len())
                .ok_or_else(|| endless(format!("{} bytes", limits.bytes)))?;
            let page = serde_json::from_slice(&bytes)
                .map_err(|error| protocol(format!("the registry's answer is no list: {error}")))?;
            pages.push(page);
            match next {
                Some(next) => url = next,
                None => return Ok(Some(pages)),
            }
        }
        Err(endless(format!("{} pages", limits.pages)))
    }
}

/// The page after the one at `current`, if there is one. Another host gets no request with our token.
fn next(current: &Url, headers: &HeaderMap) -> Result<Option<Url>, String> {
    let links = headers.get_all(LINK).iter();
    let links = links.filter_map(|value| value.to_str().ok());
    let Some(target) = links.flat_map(|value| value.split(',')).find_map(target) else {
        return Ok(None);
    };
    let url = current
        .join(target)
        .map_err(|_| "the registry's next page is at something that is no URL".to_owned())?;
    if url.origin() != current.origin() {
        return Err(format!(
            "the registry's next page is at another host, {}",
            url.host_str().unwrap_or_default()
        ));
    }
    Ok(Some(url))
}

fn target(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let mut parameters = parameters.split(';').map(str::trim);
    parameters
        .any(|parameter| matches!(parameter, "rel=next" | "rel=\"next\""))
        .then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_of(link: &str) -> Result<Option<String>, String> {
        let current = Url::parse("https://r.example/v2/me/app/tags/list?n=2").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(LINK, link.parse().unwrap());
        next(&current, &headers).map(|found| found.map(|url| url.to_string()))
    }

    #[test]
    fn the_next_page_is_found_in_all_forms() {
        let wanted = Ok(Some(
            "https://r.example/v2/me/app/tags/list?n=2&last=b".to_owned(),
        ));
        for link in [
            r#"</v2/me/app/tags/list?n=2&last=b>; rel="next""#,
            "<list?n=2&last=b>;rel=next",
            r#"<https://r.example/x>; rel="prev", <list?n=2&last=b>; title="x"; rel="next""#,
        ] {
            assert_eq!(next_of(link), wanted, "{link}");
        }
        assert_eq!(next_of("nonsense"), Ok(None));
    }

    #[test]
    fn no_other_host_is_asked() {
        for link in [
            r#"<https://other.example/v2/>; rel="next""#,
            r#"<http://r.example/v2/>; rel="next""#,
        ] {
            assert!(next_of(link).is_err(), "{link}");
        }
    }
}
