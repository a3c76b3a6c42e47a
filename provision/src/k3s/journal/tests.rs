//! Lines as K3s has written them into the journals of its users.

use super::*;

fn lines(text: &[&str]) -> Vec<String> {
    text.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn the_telling_line_wins_over_the_last() {
    let cause = find_cause(&lines(&[
        r#"level=fatal msg="token CA hash does not match the Cluster CA certificate hash: a != b""#,
        r#"level=info msg="Waiting to retrieve agent configuration; server is not ready""#,
    ]))
    .unwrap();
    assert!(
        cause.is_final && cause.meaning.contains("another cluster"),
        "{cause:?}"
    );
}

#[test]
fn a_quiet_info_line_is_a_cause_too() {
    let cause = find_cause(&lines(&[
        r#"level=info msg="Waiting to retrieve agent configuration; server is not ready: Node password rejected, duplicate hostname""#,
    ]))
    .unwrap();
    assert!(cause.meaning.contains("another password"), "{cause:?}");
}

#[test]
fn an_ordinary_journal_has_no_cause() {
    assert_eq!(find_cause(&lines(&["level=info msg=started"])), None);
}

#[test]
fn the_tail_prefers_errors_and_shows_no_token() {
    let shown = tail(
        &lines(&[
            "level=info msg=a",
            "level=error msg=K10abc::x:y",
            "level=info msg=b",
        ]),
        5,
    );
    assert_eq!(shown, ["level=error msg=[token redacted]"]);
}

#[track_caller]
fn means(line: &str, expected: &str, is_final: bool) {
    let cause = find_cause(&lines(&["level=info msg=before", line])).unwrap();
    assert!(cause.meaning.contains(expected), "{line}: {cause:?}");
    assert_eq!(cause.is_final, is_final, "{line}: {cause:?}");
}

#[test]
fn a_rejected_node_password() {
    means(
        r#"time="2022-08-30T14:00:20Z" level=info msg="Waiting to retrieve agent configuration; server is not ready: Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server node-passwd entry, try enabling a unique node name with the --with-node-id flag""#,
        "another password",
        true,
    );
}

#[test]
fn a_token_of_another_cluster() {
    means(
        r#"time="2021-07-29T06:42:37.109627641-04:00" level=error msg="token CA hash does not match the Cluster CA certificate hash: f08676bf4f7418e46f692f21543118417d2698b7f758027b352dd87cfd6de3ab != 8e7d49c6991960d1a116415d9506f0a15ea3e278538c173b1d9965b62727267d""#,
        "another cluster",
        true,
    );
}

#[test]
fn data_of_another_token() {
    means(
        r#"level=fatal msg="starting kubernetes: preparing server: bootstrap data already found and encrypted with different token""#,
        "another server token",
        true,
    );
}

#[test]
fn a_clock_that_is_behind_and_a_certificate_that_has_expired() {
    means(
        r#"F0722 18:55:59.543496 1697126 controller.go:170] Unable to perform initial IP allocation check: unable to refresh the service IP block: Get "https://127.0.0.1:6444/api/v1/services": x509: certificate has expired or is not yet valid: current time 2022-07-22T18:55:59+12:00 is before 2022-07-22T07:45:55Z"#,
        "clock is behind",
        false,
    );
    means(
        r#"E1110 11:13:26.574951 52749 authentication.go:73] "Unable to authenticate the request" err="[x509: certificate has expired or is not yet valid: current time 2025-11-10T11:13:26+08:00 is after 2025-10-18T18:12:42Z, verifying certificate SN=4554962678795574631""#,
        "has expired",
        false,
    );
}

#[test]
fn a_full_disk() {
    means(
        r#"time="2024-06-28T23:15:44Z" level=fatal msg="extracting data: error writing to /var/lib/rancher/k3s/data/019fb8bac4d6-tmp/bin/k3s: write /var/lib/rancher/k3s/data/019fb8bac4d6-tmp/bin/k3s: no space left on device""#,
        "df -h",
        true,
    );
}

#[test]
fn a_kernel_without_the_memory_controller() {
    means(
        r#"time="2020-10-27T17:07:53.213216306Z" level=fatal msg="failed to find memory cgroup, you may need to add \"cgroup_memory=1 cgroup_enable=memory\" to your linux cmdline (/boot/cmdline.txt on a Raspberry Pi)""#,
        "cgroup_enable=memory",
        true,
    );
    means(
        r#"time="2021-11-12T06:53:31.262056755Z" level=fatal msg="failed to find memory cgroup (v2)""#,
        "cgroup_enable=memory",
        true,
    );
}

#[test]
fn a_taken_port_and_an_address_that_is_not_there() {
    means(
        "Error starting load balancer: listen tcp 127.0.0.1:6444: bind: address already in use",
        "another program has a port",
        false,
    );
    means(
        "apiserver exited: failed to create listener: failed to listen on 127.0.0.1:6444: listen tcp 127.0.0.1:6444: bind: cannot assign requested address",
        "no interface has",
        false,
    );
}

#[test]
fn etcd_without_a_quorum_or_without_this_member() {
    means(
        r#"{"level":"warn","ts":"2023-03-03T09:21:24.783Z","logger":"etcd-client","caller":"v3/retry_interceptor.go:62","msg":"retrying of unary invoker failed","attempt":0,"error":"rpc error: code = Unknown desc = etcdserver: re-configuration failed due to not enough started members"}"#,
        "no quorum",
        false,
    );
    means(
        r#"time="2022-03-29T09:42:20Z" level=fatal msg="starting kubernetes: preparing server: start managed database: server is a not a member of the etcd cluster""#,
        "was removed",
        true,
    );
}

#[test]
fn a_name_that_another_server_has() {
    means(
        r#"time="2022-01-11T20:52:54Z" level=fatal msg="ETCD join failed: duplicate node name found, please use a unique name for this node""#,
        "this node's name",
        true,
    );
    means(
        "FATA[0000] starting kubernetes: preparing server: start managed database: joining etcd cluster: Failed to join etcd cluster due to duplicate node names, please use unique node name for the server",
        "this node's name",
        true,
    );
}

#[test]
fn a_registry_whose_certificate_or_protocol_is_another() {
    means(
        r#"E1118 21:20:24.257888  163970 pod_workers.go:1298] "Error syncing pod, skipping" err="failed to \"StartContainer\" for \"web\" with ErrImagePull: \"failed to pull and unpack image: failed to resolve reference: failed to do request: Head: x509: certificate signed by unknown authority\"""#,
        "tls.ca_file",
        false,
    );
    means(
        r#"failed to pull and unpack image "10.15.122.12:8082/helloworld:latest": failed to resolve reference "10.15.122.12:8082/helloworld:latest": failed to do request: Head "https://10.15.122.12:8082/v2/helloworld/manifests/latest": http: server gave HTTP response to HTTPS client"#,
        "registries.mirrors",
        false,
    );
}

#[test]
fn a_pod_network_that_cannot_be() {
    means(
        r#"time="2023-09-27T15:44:22Z" level=fatal msg="interface test does not have a correct global unicast ip: route ip+net: no such network interface""#,
        "another name now",
        true,
    );
    means(
        r#"time="2019-04-17T14:17:49.806063094-07:00" level=fatal msg="flannel exited: failed to find IPv4 address for interface ens224""#,
        "has lost it",
        false,
    );
    means(
        "E0128 10:22:38.500621       8 main.go:292] Error registering network: operation not supported",
        "vxlan",
        false,
    );
    means(
        r#"level=fatal msg="starting kubernetes: exec: \"iptables\": executable file not found in $PATH""#,
        "package iptables",
        true,
    );
}

#[test]
fn errors_of_components_are_told_from_k3ss_own() {
    let shown = component_errors(
        &lines(&[
            "level=error msg=k3s",
            "E1118 21:20:24.257888  163970 pod_workers.go:1298] one",
            "I1118 21:20:24.257888  163970 server.go:1] fine",
            "Error is no klog",
            "F1118 21:20:25.257888  163970 server.go:1] two",
        ]),
        5,
    );
    assert_eq!(shown.len(), 2, "{shown:?}");
}
