use serde_json::json;

use super::*;

fn minimal() -> Value {
    json!({
        "schema": 1,
        "cluster": {"name": "orch"},
        "node": {"name": "agent", "role": "agent", "address": "192.168.56.11"},
        "server": {"address": "192.168.56.10"},
        "k3s": {"version": "v1.34.2+k3s1"},
    })
}

fn error_of(change: impl FnOnce(&mut Value)) -> String {
    let mut value = minimal();
    change(&mut value);
    NodeConfig::from_json(&value.to_string())
        .unwrap_err()
        .to_string()
}

#[test]
fn a_minimal_configuration_has_defaults_for_the_rest() {
    let config = NodeConfig::from_json(&minimal().to_string()).unwrap();
    assert_eq!(config.server.url(), "https://192.168.56.10:6443");
    assert_eq!(config.server.join_port, 6222);
    assert_eq!(
        config.artifacts.release_url.as_deref(),
        Some(DEFAULT_RELEASE_URL)
    );
    assert_eq!(config.storage.kind, StorageKind::None);
    let again = serde_json::to_string(&config).unwrap();
    assert_eq!(NodeConfig::from_json(&again).unwrap(), config);
}

#[test]
fn an_error_names_the_key() {
    for (change, expected) in [
        (json!({"k3s": {"version": 3}}), "k3s.version: "),
        (json!({"node": {"nmae": "x"}}), "node.nmae: "),
        (
            json!({"node": {"name": "A", "role": "agent", "address": "10.0.0.1"}}),
            "node.name: ",
        ),
        (
            json!({"timeouts": {"start_seconds": 0}}),
            "timeouts.start_seconds: ",
        ),
        (json!({"surplus": true}), "surplus: "),
        (
            json!({"artifacts": {"release_url": "http://x"}}),
            "artifacts.release_url: ",
        ),
        (
            json!({"artifacts": {"sha256": {"k3s": "abc"}}}),
            "artifacts.sha256.k3s: ",
        ),
        (json!({"storage": {"path": "x"}}), "storage.path: "),
        (
            json!({"storage": {"directories": [{"path": "../x", "uid": 1, "gid": 1}]}}),
            "storage.directories[0].path: ",
        ),
    ] {
        let message = error_of(|value| {
            for (key, new) in change.as_object().unwrap() {
                value[key] = new.clone();
            }
        });
        assert!(message.starts_with(expected), "{message} / {expected}");
    }
}

#[test]
fn an_agent_may_not_have_the_servers_address() {
    let message = error_of(|value| value["node"]["address"] = json!("192.168.56.10"));
    assert!(message.starts_with("node.address: "), "{message}");
}

#[test]
fn a_loopback_address_is_no_node_address() {
    let message = error_of(|value| value["node"]["address"] = json!("127.0.0.1"));
    assert!(message.contains("127.0.0.1"), "{message}");
}

#[test]
fn a_registry_password_is_not_in_debug_output() {
    let mut value = minimal();
    value["registries"] =
        json!({"configs": {"docker.io": {"auth": {"username": "u", "password": "hunter2"}}}});
    let config = NodeConfig::from_json(&value.to_string()).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn trailing_text_is_refused() {
    assert!(NodeConfig::from_json(&format!("{} x", minimal())).is_err());
}
