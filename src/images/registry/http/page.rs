//! Lists that a registry gives in pages: all of them, as far as it makes sense, and where the next one is (RFC 8288,
//! `Link: <...>; rel="next"`).

use std::collections::BTreeSet;

use reqwest::Response;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, LINK};
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
    /// A redirect that was not followed, and a success of another media type, also come from a registry that has no such list.
    pub(super) optional: bool,
}

impl List<'_> {
    /// Is this first answer one of a registry that has no such list?
    fn is_absent(&self, response: &Response) -> bool {
        let status = response.status();
        let other = status.is_redirection() || status == 200 && !has_type(response, self.accept);
        self.absent.contains(&status.as_u16()) || self.optional && other
    }
}

fn has_type(response: &Response, wanted: &str) -> bool {
    let found = response.headers().get(CONTENT_TYPE);
    let found = found.and_then(|value| value.to_str().ok());
    let essence = found.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(wanted))
}

impl HttpRegistry {
    /// The pages of a list; nothing if there is no such list.
    pub(super) async fn pages<T: DeserializeOwned>(
        &self,
        list: List<'_>,
        limits: Limits,
    ) -> Result<Option<Vec<T>>, RegistryError> {
        let (operation, repository) = (list.operation, list.repository);
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
        let mut url = list.url.clone();
        let mut seen = BTreeSet::from([url.clone()]);
        let mut left = limits.bytes;
        let mut pages = Vec::new();
        while pages.len() < limits.pages {
            let build = || Ok(self.client.get(url.clone()).header(ACCEPT, list.accept));
            let response = self.send(operation, repository, build).await?;
            // A list that has begun is there: without its end it would be taken for a shorter one.
            if pages.is_empty() && list.is_absent(&response) {
                return Ok(None);
            }
            let response = self.expect(operation, response, &[200]).await?;
            let next = next(&url, response.headers()).map_err(protocol)?;
            let bytes = read_limited(response, left.saturating_add(1)).await;
            let bytes = bytes.map_err(|source| self.interrupted(operation, source))?;
            left = left
                .checked_sub(bytes.len())
                .ok_or_else(|| endless(format!("{} bytes", limits.bytes)))?;
            let page = serde_json::from_slice(&bytes)
                .map_err(|error| protocol(format!("the registry's answer is no list: {error}")))?;
            pages.push(page);
            let Some(next) = next else {
                return Ok(Some(pages));
            };
            if !seen.insert(next.clone()) {
                return Err(protocol(format!(
                    "the registry's list goes in circles: page {} names one that was read before as the next; ask whoever runs \
                     the registry",
                    pages.len()
                )));
            }
            url = next;
        }
        Err(endless(format!("{} pages", limits.pages)))
    }
}

/// The page after the one at `current`, if there is one. Another host gets no request with our token.
fn next(current: &Url, headers: &HeaderMap) -> Result<Option<Url>, String> {
    let mut found = Vec::new();
    for value in headers.get_all(LINK) {
        // Taken for the last page, a page that is not would make the list shorter than it is.
        let targets = value.to_str().ok().and_then(next_targets).ok_or_else(|| {
            format!(
                "the registry's answer has a header `Link: {}` that cannot be read, so the list may go on: ask whoever runs \
                 the registry",
                String::from_utf8_lossy(value.as_bytes())
            )
        })?;
        found.extend(targets);
    }
    let Some(target) = found.first() else {
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

/// The targets with the relation `next` among a header field's links; nothing if they cannot be read.
fn next_targets(links: &str) -> Option<Vec<&str>> {
    let mut found = Vec::new();
    let mut rest = skip(links, &[',']);
    while !rest.is_empty() {
        let (target, mut after) = rest.strip_prefix('<')?.split_once('>')?;
        let mut relation = None;
        after = skip(after, &[]);
        while let Some(parameter) = after.strip_prefix(';') {
            let (name, value, more) = parameter_of(skip(parameter, &[]))?;
            // Only the first counts (RFC 8288, section 3.3).
            if name.eq_ignore_ascii_case("rel") && relation.is_none() {
                relation = Some(value);
            }
            after = skip(more, &[]);
        }
        if !after.is_empty() && !after.starts_with(',') {
            return None;
        }
        let mut relations = relation?.split_ascii_whitespace();
        if relations.any(|relation| relation.eq_ignore_ascii_case("next")) {
            found.push(target);
        }
        rest = skip(after, &[',']);
    }
    Some(found)
}

/// A parameter's name and value, and what comes after it.
fn parameter_of(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_at(token_length(text));
    let rest = skip(rest, &[]);
    let Some(value) = rest.strip_prefix('=') else {
        return Some((name, "", rest));
    };
    let value = skip(value, &[]);
    if let Some(quoted) = value.strip_prefix('"') {
        // Whatever is escaped, it is not in the name of a relation.
        let mut escaped = false;
        let end = quoted.find(|character| {
            let ends = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            ends
        })?;
        return Some((name, &quoted[..end], &quoted[end + 1..]));
    }
    let (value, rest) = value.split_at(token_length(value));
    Some((name, value, rest))
}

fn token_length(text: &str) -> usize {
    let ends = |character: char| character.is_ascii_whitespace() || "=;,\"".contains(character);
    text.find(ends).unwrap_or(text.len())
}

fn skip<'t>(text: &'t str, others: &[char]) -> &'t str {
    text.trim_start_matches(|character: char| {
        character.is_ascii_whitespace() || others.contains(&character)
    })
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
            r#"< >; rel=prev ,, <list?n=2&last=b> ; title="a, \"b\"; rel=x" ; crossorigin; REL = "Last  NEXT" ,"#,
        ] {
            assert_eq!(next_of(link), wanted, "{link}");
        }
        let comma = "<list?n=2&last=a,b>; rel=next";
        let wanted = "https://r.example/v2/me/app/tags/list?n=2&last=a,b";
        assert_eq!(next_of(comma), Ok(Some(wanted.to_owned())));
    }

    #[test]
    fn a_link_to_something_else_is_no_next_page() {
        for link in ["", "<x>; rel=prev", r#"<x>; rel=prev; rel="next""#] {
            assert_eq!(next_of(link), Ok(None), "{link}");
        }
    }

    #[test]
    fn a_link_that_cannot_be_read_is_not_the_end_of_the_list() {
        for link in [
            "nonsense",
            "<x; rel=next",
            "<x>",
            r#"<x>; rel="next"#,
            "<x>; rel=next <y>; rel=prev",
            "<x>; rel=prev, y",
        ] {
            let error = next_of(link).unwrap_err();
            assert!(error.contains(link), "{error}");
        }
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
