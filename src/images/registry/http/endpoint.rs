//! Where a registry is, and whether plain HTTP may be spoken there.

use std::path::PathBuf;

use url::Url;

use crate::images::registry::RegistryError;

/// Where a registry is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Base URL, e.g. `https://registry-1.docker.io/`.
    pub url: Url,
    /// The registry's name in references: that of its folder with certificates.
    pub name: String,
    /// The certificate of a CA that is trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl Endpoint {
    /// The endpoint of a registry's name in references. Plain HTTP is for loopback, or where `plain_http` is asked for.
    pub fn of(registry: &str, plain_http: bool) -> Result<Self, RegistryError> {
        let host = match registry {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        };
        let invalid = |reason: String| RegistryError::Protocol {
            operation: format!("using registry `{registry}`"),
            reason,
        };
        let at = |url| Self {
            url,
            name: registry.to_owned(),
            ca_file: None,
        };
        let secure =
            Url::parse(&format!("https://{host}/")).map_err(|error| invalid(error.to_string()))?;
        // Docker Hub has TLS whatever is said about other registries of the same run.
        let plain_http = plain_http && host == registry;
        if !plain_http && !is_loopback(&secure) {
            return Ok(at(secure));
        }
        let url =
            Url::parse(&format!("http://{host}/")).map_err(|error| invalid(error.to_string()))?;
        Ok(at(url))
    }

    /// The same endpoint, trusting a further CA.
    #[must_use]
    pub fn trusting(mut self, ca_file: Option<PathBuf>) -> Self {
        self.ca_file = ca_file;
        self
    }

    /// Is it on this machine?
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.url)
    }

    /// Host and port.
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url
            .port()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }
}

/// Does the URL lead to this machine?
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_or_on_request() {
        let scheme = |registry, plain| Endpoint::of(registry, plain).unwrap().url.to_string();
        assert_eq!(scheme("docker.io", false), "https://registry-1.docker.io/");
        assert_eq!(scheme("docker.io", true), "https://registry-1.docker.io/");
        assert_eq!(scheme("127.0.0.1:5000", false), "http://127.0.0.1:5000/");
        assert_eq!(scheme("localhost:5000", false), "http://localhost:5000/");
        assert_eq!(scheme("[::1]:5000", false), "http://[::1]:5000/");
        assert_eq!(scheme("10.0.0.1:5000", false), "https://10.0.0.1:5000/");
        assert_eq!(scheme("10.0.0.1:5000", true), "http://10.0.0.1:5000/");
        assert_eq!(
            scheme("localhost.example.org", false),
            "https://localhost.example.org/"
        );
        assert!(Endpoint::of("not a host", false).is_err());
    }
}
