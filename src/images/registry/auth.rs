//! Docker's token authentication (distribution specification, "token" and "oauth2"): one token for all repositories of a run.
//!
//! The first request goes out bare while all others wait: its answer says whether the registry wants anything at all. So a
//! registry without authentication costs no request more, and Hub one token however many images there are.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::RegistryError;
use super::credentials::Credential;
use super::meter::Meter;

/// Lifetime of a token that does not say (distribution specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// Taken off a lifetime, so that a token does not expire on the way.
const MARGIN: Duration = Duration::from_secs(10);

/// The longest lifetime that is believed: a time that far off that no clock holds it is none.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a token server may take for its whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer of a token server that is read, in bytes. Tokens have a few thousand.
const ANSWER_LIMIT: usize = 64 * 1024;

/// What has to be put into a request.
pub(super) enum Authorization {
    None,
    Basic(Zeroizing<String>, Zeroizing<String>),
    Bearer(Zeroizing<String>),
}

/// What the registry asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// What is known about a registry's wishes, and the token in use.
#[derive(Default)]
pub(super) struct State {
    pub(super) asked: bool,
    challenge: Option<Challenge>,
    token: Option<Token>,
    scopes: BTreeSet<String>,
}

struct Token {
    value: Zeroizing<String>,
    expires: Instant,
    scopes: BTreeSet<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default, deserialize_with = "secret")]
    token: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "secret")]
    access_token: Option<Zeroizing<String>>,
    expires_in: Option<u64>,
}

/// Reads a secret into memory that is wiped.
pub(super) fn secret<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

/// Where and with what to ask for tokens.
pub(super) struct TokenSource<'a> {
    pub(super) client: &'a reqwest::Client,
    /// Follows no redirect: for bodies with a secret in them.
    pub(super) forms: &'a reqwest::Client,
    pub(super) credential: Option<&'a Credential>,
    pub(super) meter: &'a Meter,
    pub(super) host: &'a str,
    /// Does the registry speak TLS? Then the token server must, too.
    pub(super) secure: bool,
}

impl State {
    /// Asks for one more repository with the next token.
    pub(super) fn want(&mut self, scope: String) {
        self.scopes.insert(scope);
    }

    /// Asks for one repository less. A token server may refuse a whole request for the sake of one repository.
    pub(super) fn do_without(&mut self, scope: &str) {
        self.scopes.remove(scope);
    }

    /// The registry answered 401: remember what it wants and drop the token it did not like.
    pub(super) fn challenged(&mut self, headers: &HeaderMap) -> bool {
        self.asked = true;
        self.token = None;
        let offered: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .filter_map(parse_challenge)
            .collect();
        let bearer = offered
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        self.challenge = bearer.or(offered.first()).cloned();
        self.challenge.is_some()
    }

    /// What to send now, with a fresh token where one is needed.
    pub(super) async fn authorization(
        &mut self,
        source: &TokenSource<'_>,
    ) -> Result<Authorization, RegistryError> {
        match self.challenge.clone() {
            None => Ok(Authorization::None),
            Some(Challenge::Basic) => match source.credential {
                Some(Credential::Password { username, secret }) => Ok(Authorization::Basic(
                    Zeroizing::new(username.clone()),
                    secret.clone(),
                )),
                _ => Ok(Authorization::None),
            },
            Some(Challenge::Bearer { realm, service }) => {
                if let Some(Credential::RegistryToken(token)) = source.credential {
                    return Ok(Authorization::Bearer(token.clone()));
                }
                let usable = |token: &&Token| {
                    token.expires > Instant::now() && token.scopes.is_superset(&self.scopes)
                };
                if let Some(token) = self.token.as_ref().filter(usable) {
                    return Ok(Authorization::Bearer(token.value.clone()));
                }
                let token = source
                    .fetch(&realm, service.as_deref(), &self.scopes)
                    .await?;
                let value = token.value.clone();
                self.token = Some(token);
                Ok(Authorization::Bearer(value))
            }
        }
    }
}

impl TokenSource<'_> {
    async fn fetch(
        &self,
        realm: &str,
        service: Option<&str>,
        scopes: &BTreeSet<String>,
    ) -> Result<Token, RegistryError> {
        let operation = format!("getting a token from {realm}");
        let mut url = url::Url::parse(realm).map_err(|error| RegistryError::Protocol {
            operation: operation.clone(),
            reason: format!("the registry names a token server that is no URL: {error}"),
        })?;
        let host = url.host_str().unwrap_or(self.host).to_owned();
        let failed = |source| super::http::broken(&operation, &host, source);
        if self.secure && url.scheme() != "https" {
            return Err(RegistryError::Protocol {
                operation: operation.clone(),
                reason: "the registry names a token server without TLS, which gets no password"
                    .to_owned(),
            });
        }
        self.meter.request();
        let request = match self.credential {
            Some(Credential::IdentityToken(token)) => {
                let joined = scopes.iter().cloned().collect::<Vec<_>>().join(" ");
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.append_pair("grant_type", "refresh_token")
                    .append_pair("client_id", "orch");
                form.append_pair("service", service.unwrap_or_default())
                    .append_pair("scope", &joined);
                form.append_pair("refresh_token", token);
                let body = form.finish();
                self.forms
                    .post(url)
                    .header(
                        reqwest::header::CONTENT_TYPE,
                        "application/x-www-form-urlencoded",
                    )
                    .body(body)
            }
            other => {
                for scope in scopes {
                    url.query_pairs_mut().append_pair("scope", scope);
                }
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                let request = self.client.get(url);
                match other {
                    Some(Credential::Password { username, secret }) => {
                        request.basic_auth(username, Some(secret.as_str()))
                    }
                    _ => request,
                }
            }
        };
        let request = request.timeout(ANSWER_TIMEOUT);
        let response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        match status {
            200 => {}
            401 | 403 => {
                return Err(RegistryError::Denied {
                    operation,
                    host: self.host.to_owned(),
                    reason: format!("the token server answers {status}"),
                    advice: advice(self.credential),
                });
            }
            _ => return Err(super::http::status_error(operation, response).await),
        }
        let body = super::http::read_limited(response, ANSWER_LIMIT).await;
        let body = Zeroizing::new(Vec::from(body.map_err(failed)?));
        let invalid = || RegistryError::Protocol {
            operation: operation.clone(),
            reason: "the token server's answer holds no token".to_owned(),
        };
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| invalid())?;
        let value = answer.token.or(answer.access_token).ok_or_else(invalid)?;
        Ok(Token {
            value,
            expires: Instant::now() + lifetime(answer.expires_in),
            scopes: scopes.clone(),
        })
    }
}

/// How long a token is used that is said to be good for `seconds`.
fn lifetime(seconds: Option<u64>) -> Duration {
    seconds
        .map_or(DEFAULT_LIFETIME, Duration::from_secs)
        .min(LONGEST_LIFETIME)
        .saturating_sub(MARGIN)
        .max(Duration::from_secs(1))
}

/// What somebody who is refused can do.
pub(super) fn advice(credential: Option<&Credential>) -> String {
    match credential {
        None => "run `docker login`, or set ORCH_REGISTRY_USERNAME and ORCH_REGISTRY_PASSWORD (for Docker Hub also \
                 DOCKER_HUB_USERNAME and DOCKER_HUB_TOKEN)"
            .to_owned(),
        Some(_) => "the credentials were refused: run `docker login` again, and check that the token may write to this \
                    namespace"
            .to_owned(),
    }
}

/// Reads one `WWW-Authenticate` value.
fn parse_challenge(value: &str) -> Option<Challenge> {
    let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameter = |name: &str| {
        let mut rest = rest;
        while let Some((key, after)) = rest.split_once('=') {
            let (value, tail) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
                return Some(value.trim().to_owned());
            }
            rest = tail;
        }
        None
    };
    Some(Challenge::Bearer {
        realm: parameter("realm")?,
        service: parameter("service"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lifetime_is_too_long_to_be_added_to_the_time() {
        let used = |seconds| lifetime(seconds).as_secs();
        assert_eq!(used(None), 50);
        assert_eq!(used(Some(300)), 290);
        assert_eq!(used(Some(0)), 1);
        assert_eq!(used(Some(u64::MAX)), 24 * 60 * 60 - 10);
    }

    #[test]
    fn challenges_are_read_with_and_without_quotes() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".to_owned(),
            service: Some("registry.docker.io".to_owned()),
        };
        assert_eq!(parse_challenge(hub), Some(expected));
        let bare = Challenge::Bearer {
            realm: "http://a/t".to_owned(),
            service: None,
        };
        assert_eq!(
            parse_challenge("bearer scope=x, realm=http://a/t"),
            Some(bare)
        );
        assert_eq!(parse_challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(parse_challenge("Negotiate"), None);
        assert_eq!(parse_challenge("Bearer realm=\"open"), None);
    }
}
