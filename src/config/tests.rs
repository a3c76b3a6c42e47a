use std::path::Path;

use super::*;

const GOOD: &str = "\
name: demo
network:
  subnet: 192.168.56.0/24
nodes:
  - name: master
    role: server
    address: 192.168.56.10
  - name: agent
    role: agent
    address: 192.168.56.11
";

fn error(text: &str) -> String {
    Config::parse(text, Path::new("orch.yaml"))
        .unwrap_err()
        .to_string()
}

#[test]
fn the_smallest_file_gets_the_documented_defaults() {
    let config = Config::parse(GOOD, Path::new("orch.yaml")).unwrap();
    assert_eq!(config.provider, Provider::Auto);
    assert_eq!(config.ports.api, 6443);
    assert_eq!(config.k3s.version.value, K3S_VERSION);
    assert_eq!(config.server().unwrap().name.value, "master");
    assert_eq!(
        config.registry_address().unwrap().to_string(),
        "192.168.56.254"
    );
}

#[test]
fn an_unknown_key_is_named_with_line_and_column() {
    let message = error(&GOOD.replace("    role: agent", "    rolle: agent"));
    assert!(message.starts_with("orch.yaml:9:5: "), "{message}");
    assert!(message.contains("rolle"), "{message}");
}

#[test]
fn a_wrong_type_is_named_with_line_and_column() {
    let message = error(&GOOD.replace("192.168.56.11", "[1, 2]"));
    assert!(message.starts_with("orch.yaml:10:14: "), "{message}");
}

#[test]
fn broken_yaml_is_an_error_with_a_place() {
    let message = error("name: demo\n  nodes: [\n");
    assert!(message.starts_with("orch.yaml:2:"), "{message}");
}

#[test]
fn an_address_outside_the_subnet_points_at_the_address() {
    let message = error(&GOOD.replace("192.168.56.11", "10.0.0.1"));
    assert!(message.starts_with("orch.yaml:10:14: "), "{message}");
    assert!(message.contains("outside network.subnet"), "{message}");
}

#[test]
fn duplicate_names_and_addresses_are_refused() {
    assert!(error(&GOOD.replace("name: agent", "name: master")).contains("two nodes are named"));
    assert!(error(&GOOD.replace("56.11", "56.10")).contains("have the same address"));
}

#[test]
fn ports_must_not_meet() {
    let message = error(&format!("{GOOD}ports:\n  api: 5000\n"));
    assert!(message.contains("both use host port 5000"), "{message}");
}

#[test]
fn a_cluster_needs_a_server() {
    assert!(
        error(&GOOD.replace("role: server", "role: agent")).contains("no node has role: server")
    );
}

#[test]
fn an_even_number_of_servers_is_refused_where_the_last_is_named_and_an_odd_one_uses_etcd() {
    let two = GOOD.replace("role: agent", "role: server");
    let message = error(&two);
    assert!(
        message.starts_with("orch.yaml:8:11: 2 nodes have role: server"),
        "{message}"
    );
    assert!(
        message.contains("majority") && message.contains("make agent an agent"),
        "{message}"
    );
    let more = |text: &str, name: &str, last: u8| {
        format!("{text}  - {{ name: {name}, role: server, address: 192.168.56.{last} }}\n")
    };
    let three = more(&two, "third", 12);
    let config = Config::parse(&three, Path::new("orch.yaml")).unwrap();
    assert!(config.uses_etcd());
    assert_eq!(config.server().unwrap().name.value, "master");
    let names: Vec<_> = config
        .servers()
        .map(|node| node.name.value.as_str())
        .collect();
    assert_eq!(names, ["master", "agent", "third"]);
    let message = error(&more(&three, "fourth", 13));
    assert!(message.contains("majority, which of 4 is 3"), "{message}");
    let message = error(&format!(
        "{three}k3s:\n  config: {{ datastore-endpoint: x }}\n"
    ));
    assert!(message.contains("embedded etcd"), "{message}");
    // One server is as it was, unless it is told otherwise.
    let one = |text: &str| Config::parse(text, Path::new("orch.yaml")).unwrap();
    assert!(!one(GOOD).uses_etcd());
    assert!(one(&format!("{GOOD}k3s:\n  etcd: true\n")).uses_etcd());
}

#[test]
fn an_empty_file_is_an_error_not_a_panic() {
    assert!(error("").starts_with("orch.yaml:1:"));
}

#[test]
fn the_shipped_file_is_valid() {
    let text = include_str!("../../orch.yaml");
    let config = Config::parse(text, Path::new("orch.yaml")).unwrap();
    assert_eq!(config.nodes.len(), 2);
}

const SSH: &str = "\
name: demo
provider: ssh
ssh: { user: deploy, port: 2222, key: ~/.ssh/id, jump: bastion }
nodes:
  - name: one
    role: server
    address: fd00::11
    ssh: { host: one.example.com, port: 22, host_key: \"SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU\" }
  - { name: two, role: agent, address: 10.0.0.12 }
";

#[test]
fn hosts_that_exist_need_no_network_and_say_how_they_are_reached() {
    let config = Config::parse(SSH, Path::new("orch.yaml")).unwrap();
    assert_eq!(config.subnet(), None);
    let own = config.nodes[0].ssh.as_ref().unwrap().value.clone();
    let host = own.or(&config.ssh.value);
    assert_eq!(host.host.as_deref(), Some("one.example.com"));
    assert_eq!(
        (host.user.as_deref(), host.port),
        (Some("deploy"), Some(22))
    );
    assert_eq!(host.jump.as_deref(), Some("bastion"));
    assert!(config.nodes[1].ssh.is_none());
}

#[test]
fn what_belongs_to_machines_and_what_to_hosts_is_told_apart() {
    for (from, to, expected) in [
        ("provider: ssh\n", "", "network.subnet is missing"),
        (
            "provider: ssh\n",
            "provider: ssh\nnetwork: { subnet: 10.0.0.0/24 }\n",
            "orch.yaml:3:20: provider is `ssh`",
        ),
        (
            "10.0.0.12",
            "127.0.0.1",
            "none that the other nodes could reach",
        ),
        ("10.0.0.12", "fd00::11", "have the same address"),
        (
            "one.example.com",
            "-oProxyCommand=x",
            "ssh.host: \"-oProxyCommand=x\"",
        ),
        ("host: one.example.com", "host: \"a b\"", "ssh.host"),
        ("port: 22,", "port: 0,", "ssh.port"),
        ("host_key:", "hostkey:", "hostkey"),
        (
            "SHA256:47DE",
            "SHA256:",
            "orch.yaml:8:10: one: ssh.host_key: not a host key",
        ),
        (
            "user: deploy",
            "user: -x",
            "orch.yaml:3:6: ssh.user: \"-x\"",
        ),
        ("user: deploy", "parallel: 0", "orch.yaml:3:6: ssh.parallel"),
        (
            "nodes:",
            "k3s: { endpoint: \"https://a:6443\" }\nnodes:",
            "orch.yaml:4:18: k3s.endpoint",
        ),
    ] {
        let message = error(&SSH.replacen(from, to, 1));
        assert!(message.contains(expected), "{from} -> {to}: {message}");
    }
    let message = error(&GOOD.replace(
        "    address: 192.168.56.11",
        "    address: 192.168.56.11\n    ssh: { user: x }",
    ));
    assert!(
        message.starts_with("orch.yaml:11:10: agent: `ssh` is for hosts"),
        "{message}"
    );
    let message = error(&GOOD.replace("192.168.56.11", "fd00::1"));
    assert!(message.contains("outside network.subnet"), "{message}");
}
