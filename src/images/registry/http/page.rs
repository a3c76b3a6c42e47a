//! Lists that a registry gives in pages: where the next one is (RFC 8288, `Link: <...>; rel="next"`).

use reqwest::header::{HeaderMap, LINK};
use url::Url;

/// The page after the one at `current`, if there is one. Another host gets no request with our token.
pub(super) fn next(current: &Url, headers: &HeaderMap) -> Result<Option<Url>, String> {
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
