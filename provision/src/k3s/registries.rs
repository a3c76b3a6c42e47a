//! K3s's registries.yaml.

use std::collections::BTreeMap;

use orch_contract::{ExitCode, Registries};
use orch_runner::ExitCoded;
use serde_json::{Map, Value, json};

use super::yaml::{YamlError, render};

/// A registries.yaml that K3s would hang on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistriesError {
    #[error("registries.mirrors.{host}.endpoints: {endpoint:?} is not an http or https URL")]
    Endpoint { host: String, endpoint: String },
    #[error("registries.mirrors.{host}.endpoints: there is none")]
    NoEndpoint { host: String },
    #[error(transparent)]
    Yaml(#[from] YamlError),
}

impl ExitCoded for RegistriesError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Config
    }
}

/// Renders registries.yaml, or nothing where there is nothing to say.
pub(crate) fn render_registries(
    registries: &Registries,
) -> Result<Option<String>, RegistriesError> {
    if registries.is_empty() {
        return Ok(None);
    }
    let mut mirrors = Map::new();
    for (host, mirror) in &registries.mirrors {
        if mirror.endpoints.is_empty() {
            return Err(RegistriesError::NoEndpoint { host: host.clone() });
        }
        for endpoint in &mirror.endpoints {
            let rest = endpoint
                .strip_prefix("https://")
                .or_else(|| endpoint.strip_prefix("http://"));
            if rest.is_none_or(|rest| rest.is_empty() || rest.contains(char::is_whitespace)) {
                return Err(RegistriesError::Endpoint {
                    host: host.clone(),
                    endpoint: endpoint.clone(),
                });
            }
        }
        let mut entry = json!({ "endpoint": mirror.endpoints });
        if !mirror.rewrites.is_empty() {
            entry["rewrite"] = json!(mirror.rewrites);
        }
        mirrors.insert(host.clone(), entry);
    }
    let mut configs = Map::new();
    for (host, config) in &registries.configs {
        let mut entry = Map::new();
        if let Some(auth) = &config.auth {
            entry.insert(
                "auth".to_owned(),
                json!({ "username": auth.username, "password": auth.password.expose() }),
            );
        }
        if let Some(tls) = &config.tls {
            let files: BTreeMap<_, _> = [
                ("ca_file", &tls.ca_file),
                ("cert_file", &tls.cert_file),
                ("key_file", &tls.key_file),
            ]
            .into_iter()
            .filter_map(|(key, path)| path.as_ref().map(|path| (key, path)))
            .collect();
            entry.insert("tls".to_owned(), json!(files));
        }
        configs.insert(host.clone(), Value::Object(entry));
    }
    let mut document = Map::new();
    if !mirrors.is_empty() {
        document.insert("mirrors".to_owned(), Value::Object(mirrors));
    }
    if !configs.is_empty() {
        document.insert("configs".to_owned(), Value::Object(configs));
    }
    Ok(Some(render("registries.yaml", &Value::Object(document))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(value: Value) -> Registries {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn mirrors_rewrites_and_credentials() {
        let registries = registries(json!({
            "mirrors": {
                "docker.io": {
                    "endpoints": ["http://192.168.56.254:5000"],
                    "rewrites": {"^library/(.*)": "mirror/$1"},
                },
            },
            "configs": {
                "docker.io": {"auth": {"username": "u", "password": "p: #"}},
                "192.168.56.254:5000": {"tls": {"ca_file": "/etc/ca.pem"}},
            },
        }));
        insta::assert_snapshot!(render_registries(&registries).unwrap().unwrap(), @r#"
        # Written by orch-provision; change orch.yaml instead.
        mirrors:
          docker.io:
            endpoint:
            - http://192.168.56.254:5000
            rewrite:
              ^library/(.*): mirror/$1
        configs:
          "192.168.56.254:5000":
            tls:
              ca_file: /etc/ca.pem
          docker.io:
            auth:
              username: u
              password: "p: #"
        "#);
    }

    #[test]
    fn nothing_to_say_is_no_file() {
        assert_eq!(render_registries(&Registries::default()).unwrap(), None);
    }

    #[test]
    fn an_endpoint_that_is_no_url_is_refused() {
        let registries =
            registries(json!({"mirrors": {"docker.io": {"endpoints": ["192.168.56.254:5000"]}}}));
        assert!(matches!(
            render_registries(&registries),
            Err(RegistriesError::Endpoint { .. })
        ));
    }
}
