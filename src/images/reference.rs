//! Image references, read without the price of the general case.
//!
//! [`Reference`]'s own parser compiles a regular expression of some hundred thousand states at its first use, which is most of what a
//! run with nothing to do would take. What nearly every reference looks like is read here; all else is left to that parser, which
//! also has the last word on what is wrong. Grammar: <https://pkg.go.dev/github.com/distribution/reference>.

use oci_distribution::{ParseError, Reference};

use super::destination::DOCKER_HUB;
use super::hash::is_digest;

const HUB_BEFORE: &str = "index.docker.io";
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;

/// Reads `[registry[:port]/]repository[:tag][@digest]`; Docker Hub and `latest` where nothing is said.
pub fn parse(text: &str) -> Result<Reference, ParseError> {
    plain(text).map_or_else(|| text.parse(), Ok)
}

/// A reference of ASCII characters, with a domain that has a dot, a port or is localhost, and with no digest but SHA-256 in lower case.
fn plain(text: &str) -> Option<Reference> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if !digest.is_none_or(is_digest) {
        return None;
    }
    let path = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest.get(path..)?.split_once(':') {
        Some((last, tag)) => (rest.get(..path + last.len())?, Some(tag)),
        None => (rest, None),
    };
    if !tag.is_none_or(is_tag) {
        return None;
    }
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (is_domain(first).then_some(first)?, rest)
        }
        _ => (DOCKER_HUB, name),
    };
    if !repository.split('/').all(is_component) {
        return None;
    }
    let registry = if registry == HUB_BEFORE {
        DOCKER_HUB
    } else {
        registry
    };
    let repository = if registry == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    if repository.len() > LONGEST_REPOSITORY {
        return None;
    }
    let registry = registry.to_owned();
    Some(match (tag, digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest.to_owned())
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => {
            Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned())
        }
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    tag.len() <= LONGEST_TAG
        && bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (domain, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let number = |port: &str| !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    host.split('.').all(label) && port.is_none_or(number)
}

/// Letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut ends = component.bytes();
    let (first, last) = (ends.next(), component.bytes().next_back());
    if !first.is_some_and(alphanumeric) || !last.is_some_and(alphanumeric) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_usual_does_not_need_the_general_parser() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for usual in [
            "redis",
            "redis:7.2",
            "acme/web_front-end:v1.0_rc",
            "registry.example.org/team/app",
            "localhost/app:x",
            "127.0.0.1:5000/orch/billing-app:d2f1",
            "index.docker.io/debian:bookworm-slim",
            &format!("docker.io/library/debian@{digest}"),
            &format!("registry.example.org:5000/a/b/c:tag@{digest}"),
        ] {
            assert_eq!(plain(usual), usual.parse().ok(), "{usual}");
            assert!(plain(usual).is_some(), "{usual}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_by_the_general_parser() {
        for wrong in [
            "",
            "Redis",
            "a//b",
            "a:",
            "a@sha256:12",
            "a b",
            "-a",
            "a-/b:x",
        ] {
            assert_eq!(plain(wrong), None, "{wrong}");
            assert_eq!(parse(wrong), wrong.parse(), "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn both_parsers_agree(
            text in r"([a-zA-Z0-9.-]{0,8}(:[0-9]{0,4})?/)?[a-zA0-9._-]{0,6}(/[a-z0-9._-]{0,6}){0,2}(:[\w.-]{0,6})?(@sha256:[0-9a-fF]{63,65})?"
        ) {
            if let Some(read) = plain(&text) {
                prop_assert_eq!(Ok(read), text.parse());
            }
        }

        #[test]
        fn and_on_anything_else(text in r"[a-z./:@_\-A0☃]{0,20}") {
            if let Some(read) = plain(&text) {
                prop_assert_eq!(Ok(read), text.parse());
            }
        }
    }
}
