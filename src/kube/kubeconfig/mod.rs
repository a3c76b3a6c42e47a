//! K3s's kubeconfig as the host needs it.
//!
//! K3s writes one whose server is 127.0.0.1 and whose cluster, user and context are all `default`. It is
//! parsed, changed and written again: replacing text would hit the word wherever else it stands.

mod edit;
mod merge;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::files;

pub use merge::{MergeError, Merged, default_file, merge};

/// What the host's kubeconfig says instead.
#[derive(Debug, Clone)]
pub struct HostView<'a> {
    /// Where this host reaches the API server: `https://HOST:PORT`.
    pub server: &'a str,
    /// Name of the cluster, its user and its context.
    pub cluster: &'a str,
    /// Namespace of the context.
    pub namespace: &'a str,
}

/// Why a kubeconfig cannot be rewritten.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    #[error(
        "the server's kubeconfig is not YAML (line {line}); look at /etc/rancher/k3s/k3s.yaml on that node"
    )]
    Syntax { line: u64 },
    #[error(
        "the server's kubeconfig has no {what}; look at /etc/rancher/k3s/k3s.yaml on that node"
    )]
    Missing { what: String },
    #[error("{server:?} is no address of an API server: expected https://HOST:PORT")]
    Server { server: String },
    #[error("cannot write {path}; the folder must be writable")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Rewrites K3s's kubeconfig. Only the current context is kept: with its cluster and its user.
pub fn rewrite(k3s_yaml: &[u8], view: &HostView<'_>) -> Result<Zeroizing<String>, KubeconfigError> {
    check_server(view.server)?;
    let mut config: Value =
        serde_saphyr::from_slice(k3s_yaml).map_err(|error| KubeconfigError::Syntax {
            line: error.location().map_or(1, |location| location.line()),
        })?;
    let current = text(&config, "current-context")?;
    let context = take_named(&mut config, "contexts", &current, "context")?;
    let cluster_name = text(&context, "cluster")?;
    let user_name = text(&context, "user")?;
    let mut cluster = take_named(&mut config, "clusters", &cluster_name, "cluster")?;
    let user = take_named(&mut config, "users", &user_name, "user")?;

    let Some(fields) = cluster.as_object_mut() else {
        return Err(missing(format!("details of cluster {cluster_name}")));
    };
    fields.insert("server".to_owned(), json!(view.server));
    let rewritten = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": view.cluster, "cluster": cluster}],
        "contexts": [{"name": view.cluster, "context": {
            "cluster": view.cluster, "namespace": view.namespace, "user": view.cluster,
        }}],
        "current-context": view.cluster,
        "users": [{"name": view.cluster, "user": user}],
    });
    let output = serde_saphyr::to_string(&rewritten).map(Zeroizing::new);
    wipe(rewritten);
    wipe(config);
    output.map_err(|error| missing(format!("form that can be written: {error}")))
}

/// Rewrites K3s's kubeconfig into a file of mode 0600, replaced whole.
pub fn write(k3s_yaml: &[u8], view: &HostView<'_>, path: &Path) -> Result<(), KubeconfigError> {
    let content = rewrite(k3s_yaml, view)?;
    files::keep_private(path, content.as_bytes()).map_err(|source| KubeconfigError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The API server that a kubeconfig of ours leads to.
pub fn server_of(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).map(Zeroizing::new).ok()?;
    let config: Value = serde_saphyr::from_slice(&bytes).ok()?;
    let server = config.pointer("/clusters/0/cluster/server");
    let server = server.and_then(Value::as_str).map(str::to_owned);
    wipe(config);
    server
}

fn check_server(server: &str) -> Result<(), KubeconfigError> {
    let parsed = url::Url::parse(server).ok();
    match parsed {
        Some(url)
            if url.scheme() == "https" && url.host().is_some() && url.username().is_empty() =>
        {
            Ok(())
        }
        _ => Err(KubeconfigError::Server {
            server: server.to_owned(),
        }),
    }
}

fn missing(what: String) -> KubeconfigError {
    KubeconfigError::Missing { what }
}

fn text(object: &Value, field: &str) -> Result<String, KubeconfigError> {
    object
        .get(field)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| missing(field.to_owned()))
}

/// Takes the content of the entry that has the name.
fn take_named(
    config: &mut Value,
    list: &str,
    name: &str,
    content: &str,
) -> Result<Value, KubeconfigError> {
    let entries = config.get_mut(list).and_then(Value::as_array_mut);
    let entry = entries.and_then(|entries| entries.iter_mut().find(|entry| entry["name"] == name));
    entry
        .and_then(|entry| entry.get_mut(content))
        .map(Value::take)
        .filter(Value::is_object)
        .ok_or_else(|| missing(format!("{content} named {name:?}")))
}

/// Overwrites every string: one of them is the administrator's key.
fn wipe(value: Value) {
    match value {
        Value::String(text) => drop(Zeroizing::new(text)),
        Value::Array(items) => items.into_iter().for_each(wipe),
        Value::Object(fields) => Map::into_iter(fields).for_each(|(_, field)| wipe(field)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use kube::config::Kubeconfig;

    use super::*;

    const K3S: &str = "\
apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: ZGVmYXVsdA==
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: default
  user:
    client-certificate-data: Y2VydA==
    client-key-data: a2V5LWRlZmF1bHQ=
";
    const VIEW: HostView<'static> = HostView {
        server: "https://192.168.56.10:6443",
        cluster: "movies",
        namespace: "microservices",
    };

    #[test]
    fn names_server_and_namespace_change_and_credentials_stay() {
        let rewritten = rewrite(K3S.as_bytes(), &VIEW).unwrap();
        insta::assert_snapshot!(*rewritten, @r"
        apiVersion: v1
        kind: Config
        clusters:
        - name: movies
          cluster:
            certificate-authority-data: ZGVmYXVsdA==
            server: https://192.168.56.10:6443
        contexts:
        - name: movies
          context:
            cluster: movies
            namespace: microservices
            user: movies
        current-context: movies
        users:
        - name: movies
          user:
            client-certificate-data: Y2VydA==
            client-key-data: a2V5LWRlZmF1bHQ=
        ");
        let parsed = Kubeconfig::from_yaml(&rewritten).unwrap();
        assert_eq!(parsed.current_context.as_deref(), Some("movies"));
        assert_eq!(
            parsed.contexts[0]
                .context
                .as_ref()
                .unwrap()
                .namespace
                .as_deref(),
            Some("microservices")
        );
    }

    #[test]
    fn a_name_that_yaml_would_read_as_something_else_survives() {
        let view = HostView {
            cluster: "1234",
            namespace: "on",
            ..VIEW
        };
        let parsed = Kubeconfig::from_yaml(&rewrite(K3S.as_bytes(), &view).unwrap()).unwrap();
        assert_eq!(parsed.current_context.as_deref(), Some("1234"));
        assert_eq!(
            parsed.contexts[0]
                .context
                .as_ref()
                .unwrap()
                .namespace
                .as_deref(),
            Some("on")
        );
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_quoted() {
        for (from, to, expected) in [
            (
                "current-context: default",
                "current-context: other",
                "context named \"other\"",
            ),
            ("    user: default\n", "", "no user;"),
            (
                "users:\n- name: default",
                "users:\n- name: other",
                "user named \"default\"",
            ),
            ("current-context: default\n", "", "current-context"),
            ("kind: Config", "kind: [Config", "is not YAML"),
        ] {
            let error = rewrite(K3S.replace(from, to).as_bytes(), &VIEW)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("a2V5"), "{error}");
        }
        for broken in ["", "[]", "text", "\u{0}"] {
            assert!(rewrite(broken.as_bytes(), &VIEW).is_err());
        }
        assert!(rewrite(&[0xff, 0xfe, 0x00], &VIEW).is_err());
    }

    #[test]
    fn a_server_that_is_no_https_url_is_refused() {
        for server in [
            "192.168.56.10:6443",
            "http://a:1",
            "https://",
            "https://user@a",
        ] {
            assert!(rewrite(K3S.as_bytes(), &HostView { server, ..VIEW }).is_err());
        }
    }

    #[test]
    fn the_file_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k3s.yaml");
        write(K3S.as_bytes(), &VIEW, &path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
