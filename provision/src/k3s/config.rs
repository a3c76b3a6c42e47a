//! K3s's config.yaml for one node.

use orch_contract::{DEFAULT_API_PORT, ExitCode, NodeConfig, Role};
use orch_runner::ExitCoded;
use serde_json::{Map, Value, json};

use super::yaml::{YamlError, render};
use super::{flags, paths};

/// Makes K3s keep its state in embedded etcd, which other servers can join.
const CLUSTER_INIT: &str = "cluster-init";

/// A config.yaml that must not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigYamlError {
    #[error("k3s.config.{key}: this key belongs to orch; set {owner} instead")]
    Owned { key: String, owner: &'static str },
    #[error(
        "k3s.config.{key}: K3s has no such setting for a {role}, and would only warn about it; \
         correct it, or set k3s.allow_unknown_config for a newer K3s"
    )]
    Unknown { key: String, role: Role },
    #[error(transparent)]
    Yaml(#[from] YamlError),
}

impl ExitCoded for ConfigYamlError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Config
    }
}

/// How a node came to its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// It made the cluster.
    Founder,
    /// It joined through the server with this URL, with a token. Once it has joined K3s knows the other servers.
    Joined(String),
}

/// Renders config.yaml. `interface` carries the node's address.
pub(crate) fn render_config(
    config: &NodeConfig,
    interface: &str,
    place: &Place,
) -> Result<String, ConfigYamlError> {
    let role = config.node.role;
    let address = config.node.address.to_string();
    let mut keys = Map::new();
    let mut set = |key: &str, value: Value| {
        keys.insert(key.to_owned(), value);
    };
    set("node-name", json!(config.node.name));
    // A virtual machine's first address is often a NAT one that no other node can reach.
    set("node-ip", json!(address));
    set("flannel-iface", json!(interface));
    match role {
        Role::Server => {
            set("advertise-address", json!(address));
            if config.own_server().api_port != DEFAULT_API_PORT {
                set("https-listen-port", json!(config.own_server().api_port));
            }
            let sans: Vec<_> = std::iter::once(&address)
                .chain(&config.k3s.tls_sans)
                .collect();
            set("tls-san", json!(sans));
            set("write-kubeconfig-mode", json!("0600"));
            if !config.k3s.disable.is_empty() {
                set("disable", json!(config.k3s.disable));
            }
        }
        Role::Agent => {}
    }
    match place {
        Place::Founder => {
            if config.uses_etcd() {
                set(CLUSTER_INIT, json!(true));
            }
        }
        // K3s reads the file at each start, also where it has joined already.
        Place::Joined(url) => {
            set("server", json!(url));
            set("token-file", json!(paths::JOIN_TOKEN));
        }
    }
    if !config.k3s.kubelet_args.is_empty() {
        set("kubelet-arg", json!(config.k3s.kubelet_args));
    }
    for (key, value) in &config.k3s.config {
        let is_init = config.uses_etcd() && key == CLUSTER_INIT;
        if let Some(owner) = flags::owner(key).or(is_init.then_some("k3s.etcd")) {
            return Err(ConfigYamlError::Owned {
                key: key.clone(),
                owner,
            });
        }
        if !config.k3s.allow_unknown_config && !flags::is_known(role, key) {
            return Err(ConfigYamlError::Unknown {
                key: key.clone(),
                role,
            });
        }
        keys.insert(key.clone(), value.clone());
    }
    Ok(render("config.yaml", &Value::Object(keys))?)
}

/// Renders what a node says of itself when it registers, and K3s never looks at again: labels and taints. Afterwards the
/// host looks after them, so that a change of theirs restarts nothing. `None` where there are none.
pub(crate) fn render_registration(config: &NodeConfig) -> Result<Option<String>, ConfigYamlError> {
    let labels: Vec<_> = config
        .node
        .labels
        .iter()
        .filter(|(key, _)| kubelet_may_set(key))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut keys = Map::new();
    if !labels.is_empty() {
        keys.insert("node-label".to_owned(), json!(labels));
    }
    if !config.node.taints.is_empty() {
        keys.insert("node-taint".to_owned(), json!(config.node.taints));
    }
    if keys.is_empty() {
        return Ok(None);
    }
    Ok(Some(render("orch-register.yaml", &Value::Object(keys))?))
}

/// A kubelet that is given another label of Kubernetes' own does not start (kubelet's `--node-labels`); the host sets those.
fn kubelet_may_set(key: &str) -> bool {
    const NAMES: [&str; 9] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    let Some((domain, _)) = key.split_once('/') else {
        return true;
    };
    let is_in = |parent: &str| {
        domain
            .strip_suffix(parent)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let is_theirs = is_in("kubernetes.io") || is_in("k8s.io");
    !is_theirs
        || is_in("kubelet.kubernetes.io")
        || is_in("node.kubernetes.io")
        || NAMES.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{agent_config, server_config, servers_config};

    fn joined() -> Place {
        Place::Joined("https://192.168.56.10:6443".to_owned())
    }

    #[test]
    fn the_first_of_several_servers_makes_the_cluster_and_the_others_join_it() {
        let config = servers_config(1);
        let second = render_config(&config, "eth1", &joined()).unwrap();
        insta::assert_snapshot!(second, @r#"
        # Written by orch-provision; change orch.yaml instead.
        node-name: s1
        node-ip: "192.168.56.11"
        flannel-iface: eth1
        advertise-address: "192.168.56.11"
        tls-san:
        - "192.168.56.11"
        write-kubeconfig-mode: "0600"
        server: https://192.168.56.10:6443
        token-file: /var/lib/orch/join-token
        "#);
        let config = servers_config(0);
        let first = render_config(&config, "eth1", &Place::Founder).unwrap();
        assert!(first.ends_with("cluster-init: true\n"), "{first}");
        let mut config = server_config();
        config.k3s.etcd = true;
        let only = render_config(&config, "eth1", &Place::Founder).unwrap();
        assert!(only.ends_with("cluster-init: true\n"), "{only}");
        config
            .k3s
            .config
            .insert("cluster-init".to_owned(), json!(false));
        let error = render_config(&config, "eth1", &Place::Founder).unwrap_err();
        assert!(error.to_string().contains("k3s.etcd"), "{error}");
    }

    #[test]
    fn a_server() {
        let mut config = server_config();
        config.k3s.tls_sans = vec!["127.0.0.1".to_owned(), "master".to_owned()];
        config.k3s.disable = vec!["traefik".to_owned()];
        config.k3s.kubelet_args = vec!["max-pods=50".to_owned()];
        config
            .k3s
            .config
            .insert("cluster-init".to_owned(), json!(true));
        insta::assert_snapshot!(render_config(&config, "eth1", &Place::Founder).unwrap(), @r#"
        # Written by orch-provision; change orch.yaml instead.
        node-name: master
        node-ip: "192.168.56.10"
        flannel-iface: eth1
        advertise-address: "192.168.56.10"
        tls-san:
        - "192.168.56.10"
        - "127.0.0.1"
        - master
        write-kubeconfig-mode: "0600"
        disable:
        - traefik
        kubelet-arg:
        - max-pods=50
        cluster-init: true
        "#);
    }

    #[test]
    fn an_agent() {
        let config = agent_config();
        insta::assert_snapshot!(render_config(&config, "eth1", &joined()).unwrap(), @r#"
        # Written by orch-provision; change orch.yaml instead.
        node-name: agent
        node-ip: "192.168.56.11"
        flannel-iface: eth1
        server: https://192.168.56.10:6443
        token-file: /var/lib/orch/join-token
        "#);
    }

    #[test]
    fn what_only_matters_when_a_node_registers_stands_apart() {
        let mut config = agent_config();
        assert_eq!(render_registration(&config).unwrap(), None);
        for (key, value) in [
            ("disk", "no"),
            ("example.com/a", "b"),
            ("node-role.kubernetes.io/worker", ""),
            ("notkubernetes.io/x", "1"),
            ("x.node.kubernetes.io/y", "2"),
            ("topology.kubernetes.io/zone", "z"),
        ] {
            config.node.labels.insert(key.to_owned(), value.to_owned());
        }
        config.node.taints = vec!["dedicated=db:NoSchedule".to_owned()];
        insta::assert_snapshot!(render_registration(&config).unwrap().unwrap(), @r#"
        # Written by orch-provision; change orch.yaml instead.
        node-label:
        - disk=no
        - example.com/a=b
        - notkubernetes.io/x=1
        - topology.kubernetes.io/zone=z
        - x.node.kubernetes.io/y=2
        node-taint:
        - dedicated=db:NoSchedule
        "#);
    }

    #[test]
    fn a_typo_and_a_key_of_ours_are_refused() {
        for (key, expected) in [
            ("cluster-intit", "no such setting for a server"),
            ("token", "belongs to orch"),
            ("tls-san+", "k3s.tls_sans"),
        ] {
            let mut config = server_config();
            config.k3s.config.insert(key.to_owned(), json!("x"));
            let error = render_config(&config, "eth1", &Place::Founder)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
