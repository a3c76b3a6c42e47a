use serde_json::json;

use super::*;

fn minimal() -> Value {
    json!({
        "schema": 2,
        "cluster": {"name": "orch"},
        "node": {"name": "agent", "role": "agent", "address": "192.168.56.11"},
        "servers": [{"name": "master", "address": "192.168.56.10"}],
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
    assert_eq!(config.servers.first.url(), "https://192.168.56.10:6443");
    assert_eq!(config.servers.first.join_port, 6222);
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
        (
            json!({"artifacts": {"images": {"a.tar": "abc"}}}),
            "artifacts.images.a.tar: ",
        ),
        (
            json!({"artifacts": {"images": {"../a.tar": "a".repeat(64)}}}),
            "artifacts.images.../a.tar: ",
        ),
        (
            json!({"artifacts": {"images": {"k3s-airgap-images-amd64.tar": "a".repeat(64)}}}),
            "artifacts.images.k3s-airgap-images-amd64.tar: ",
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

#[test]
fn another_schema_is_told_before_its_keys() {
    let older = json!({"schema": 1, "server": {"address": "192.168.56.10"}});
    let error = NodeConfig::from_json(&older.to_string()).unwrap_err();
    assert_eq!(error.key, "schema");
    assert!(error.problem.contains("1 is not 2"), "{error}");
}

#[test]
fn servers_are_a_list_in_which_a_server_finds_itself() {
    let three: Vec<_> = (0..3)
        .map(
            |index| json!({"name": format!("s{index}"), "address": format!("192.168.56.2{index}")}),
        )
        .collect();
    let mut value = minimal();
    value["servers"] = json!(three);
    let agent = NodeConfig::from_json(&value.to_string()).unwrap();
    assert!(agent.uses_etcd() && !agent.is_first_server());
    assert_eq!(agent.other_servers().count(), 3);
    value["node"] = json!({"name": "s1", "role": "server", "address": "192.168.56.21"});
    let server = NodeConfig::from_json(&value.to_string()).unwrap();
    assert_eq!(server.own_server().url(), "https://192.168.56.21:6443");
    let others: Vec<_> = server
        .other_servers()
        .map(|other| other.name.as_str())
        .collect();
    assert_eq!(others, ["s0", "s2"]);
    let again = serde_json::to_value(&server).unwrap();
    assert_eq!(again["servers"].as_array().unwrap().len(), 3);
}

#[test]
fn a_list_of_servers_that_cannot_be_is_refused() {
    for (servers, expected) in [
        (json!([]), "servers: "),
        (
            json!([{"name": "a", "address": "127.0.0.1"}]),
            "servers[0].address: ",
        ),
        (
            json!([{"name": "a", "address": "10.0.0.1"}, {"name": "b", "address": "10.0.0.1"}]),
            "servers[1].name: ",
        ),
        (
            json!([{"name": "a", "address": "10.0.0.1", "join_port": 6443}]),
            "servers[0].join_port: ",
        ),
        (
            json!([{"name": "agent", "address": "10.0.0.1"}]),
            "node.address: ",
        ),
    ] {
        let message = error_of(|value| value["servers"] = servers.clone());
        assert!(message.starts_with(expected), "{message} / {expected}");
    }
    let message = error_of(|value| value["node"]["role"] = json!("server"));
    assert!(message.starts_with("servers: "), "{message}");
    let message = error_of(|value| {
        value["k3s"] =
            json!({"version": "v1.34.2+k3s1", "etcd": true, "config": {"datastore-endpoint": "x"}});
    });
    assert!(
        message.starts_with("k3s.config.datastore-endpoint: "),
        "{message}"
    );
}
