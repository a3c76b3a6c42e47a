//! A client for the cluster that a kubeconfig file names.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::KubeError;

/// Long enough for a far cloud, short enough to notice a stopped cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long nothing may come of an answer. It holds for watches, too: the server ends each within the 290 s that the library
/// asks it for, so that something comes of every one that lives.
const WATCH_READ_TIMEOUT: Duration = Duration::from_secs(330);
/// The same for who watches nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A client for the current context of `kubeconfig`. Nothing is sent yet.
pub async fn connect(kubeconfig: &Path) -> Result<kube::Client, KubeError> {
    open(kubeconfig, true, WATCH_READ_TIMEOUT).await
}

/// The same, but "not now" is an answer, and soon: what waits by itself, such as a drain, is to know that it waits and what
/// for. Not for watches.
pub async fn connect_impatient(kubeconfig: &Path) -> Result<kube::Client, KubeError> {
    open(kubeconfig, false, READ_TIMEOUT).await
}

async fn open(
    kubeconfig: &Path,
    retries: bool,
    read_timeout: Duration,
) -> Result<kube::Client, KubeError> {
    let unusable = |message: String| KubeError::Kubeconfig {
        path: kubeconfig.to_owned(),
        message,
    };
    let parsed = Kubeconfig::read_from(kubeconfig).map_err(|error| unusable(describe(&error)))?;
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(describe(&error)))?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(read_timeout);
    // What a connection was idle before does not count.
    config.reset_reader_on_write = true;
    config.default_retry = retries;
    kube::Client::try_from(config).map_err(|error| unusable(error.to_string()))
}

/// The error without the file's text around it, which holds the client key.
fn describe(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(source, _) => source.to_string(),
        KubeconfigError::Parse(source) => {
            let place = source.location().map_or(String::new(), |location| {
                format!(" at line {}, column {}", location.line(), location.column())
            });
            format!("it is not a kubeconfig: invalid YAML{place}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_never_answers_is_an_error() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k3s.yaml");
        let text = format!(
            "clusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}]\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
             current-context: a\nusers: [{{name: a, user: {{}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        let client = open(&path, false, Duration::from_millis(50)).await.unwrap();
        let error = client.apiserver_version().await.unwrap_err();
        assert!(
            matches!(error, kube::Error::HyperError(_) | kube::Error::Service(_)),
            "{error:?}"
        );
        drop(server);
    }

    #[tokio::test]
    async fn a_broken_kubeconfig_is_named_and_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k3s.yaml");
        std::fs::write(
            &path,
            "users:\n- name: a\n  user: {client-key-data: [topsecret}\n",
        )
        .unwrap();
        let error = connect(&path).await.err().unwrap().to_string();
        assert!(
            error.contains("k3s.yaml") && error.contains("line 3"),
            "{error}"
        );
        assert!(!error.contains("topsecret"), "{error}");

        let error = connect(&folder.path().join("none"))
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("none") && error.contains("--kubeconfig"),
            "{error}"
        );
    }
}
