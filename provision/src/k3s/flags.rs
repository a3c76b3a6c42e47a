//! The keys of K3s's config.yaml. K3s only warns about one it does not know, which turns a typo
//! into a cluster that quietly lacks a setting; so they are checked before they are written.
//!
//! From the option lists in K3s's documentation (CLI reference of `server` and `agent`, 1.34).

use orch_contract::Role;

/// Keys that orch writes itself, and the configuration field that sets each.
pub(crate) const OWNED: [(&str, &str); 13] = [
    ("server", "servers"),
    ("token", "nothing: nodes join over SSH"),
    ("token-file", "nothing: nodes join over SSH"),
    ("agent-token", "nothing: agents join over SSH"),
    ("agent-token-file", "nothing: agents join over SSH"),
    ("data-dir", "nothing: it stays K3s's default"),
    ("private-registry", "registries"),
    ("node-name", "node.name"),
    ("node-label", "node.labels"),
    ("node-taint", "node.taints"),
    ("tls-san", "k3s.tls_sans"),
    ("disable", "k3s.disable"),
    ("kubelet-arg", "k3s.kubelet_args"),
];

const BOTH: &[&str] = &[
    "airgap-extra-registry",
    "alsologtostderr",
    "bind-address",
    "container-runtime-endpoint",
    "containerd-root",
    "containerd-state",
    "debug",
    "default-runtime",
    "disable-apiserver-lb",
    "disable-default-registry-endpoint",
    "docker",
    "enable-pprof",
    "flannel-cni-conf",
    "flannel-conf",
    "flannel-iface",
    "image-credential-provider-bin-dir",
    "image-credential-provider-config",
    "image-service-endpoint",
    "kube-proxy-arg",
    "lb-server-port",
    "log",
    "node-external-dns",
    "node-external-ip",
    "node-internal-dns",
    "node-ip",
    "nonroot-devices",
    "pause-image",
    "prefer-bundled-bin",
    "protect-kernel-defaults",
    "resolv-conf",
    "rootless",
    "selinux",
    "snapshotter",
    "v",
    "vmodule",
    "vpn-auth",
    "vpn-auth-file",
    "with-node-id",
];

const SERVER_ONLY: &[&str] = &[
    "advertise-address",
    "advertise-port",
    "cluster-cidr",
    "cluster-dns",
    "cluster-domain",
    "cluster-init",
    "cluster-reset",
    "cluster-reset-restore-path",
    "datastore-cafile",
    "datastore-certfile",
    "datastore-endpoint",
    "datastore-keyfile",
    "default-local-storage-path",
    "disable-agent",
    "disable-apiserver",
    "disable-cloud-controller",
    "disable-controller-manager",
    "disable-etcd",
    "disable-helm-controller",
    "disable-kube-proxy",
    "disable-network-policy",
    "disable-scheduler",
    "egress-selector-mode",
    "embedded-registry",
    "etcd-arg",
    "etcd-disable-snapshots",
    "etcd-expose-metrics",
    "etcd-s3",
    "etcd-s3-access-key",
    "etcd-s3-bucket",
    "etcd-s3-bucket-lookup-type",
    "etcd-s3-config-secret",
    "etcd-s3-endpoint",
    "etcd-s3-endpoint-ca",
    "etcd-s3-folder",
    "etcd-s3-insecure",
    "etcd-s3-proxy",
    "etcd-s3-region",
    "etcd-s3-retention",
    "etcd-s3-secret-key",
    "etcd-s3-session-token",
    "etcd-s3-skip-ssl-verify",
    "etcd-s3-timeout",
    "etcd-snapshot-compress",
    "etcd-snapshot-dir",
    "etcd-snapshot-name",
    "etcd-snapshot-reconcile-interval",
    "etcd-snapshot-retention",
    "etcd-snapshot-schedule-cron",
    "flannel-backend",
    "flannel-external-ip",
    "flannel-ipv6-masq",
    "helm-job-image",
    "https-listen-port",
    "kine-tls",
    "kube-apiserver-arg",
    "kube-cloud-controller-manager-arg",
    "kube-controller-manager-arg",
    "kube-scheduler-arg",
    "multi-cluster-cidr",
    "node-name-from-cloud-provider-metadata",
    "secrets-encryption",
    "secrets-encryption-provider",
    "service-cidr",
    "service-node-port-range",
    "servicelb-namespace",
    "supervisor-metrics",
    "system-default-registry",
    "tls-san-security",
    "write-kubeconfig",
    "write-kubeconfig-group",
    "write-kubeconfig-mode",
];

/// Whether K3s reads this key of config.yaml on a node of this role. `key+` appends.
pub(crate) fn is_known(role: Role, key: &str) -> bool {
    let key = key.strip_suffix('+').unwrap_or(key);
    BOTH.contains(&key) || (role == Role::Server && SERVER_ONLY.contains(&key))
}

/// Keys whose values are credentials, or may hold them.
const SECRET: [&str; 7] = [
    "agent-token",
    "datastore-endpoint",
    "etcd-s3-access-key",
    "etcd-s3-secret-key",
    "etcd-s3-session-token",
    "token",
    "vpn-auth",
];

/// Whether reports may show the value of a key of config.yaml. A key that nobody knows may hold anything.
pub(crate) fn is_public(key: &str) -> bool {
    let key = key.strip_suffix('+').unwrap_or(key);
    !SECRET.contains(&key) && (is_known(Role::Server, key) || owner(key).is_some())
}

/// The configuration field that owns a key.
pub(crate) fn owner(key: &str) -> Option<&'static str> {
    let key = key.strip_suffix('+').unwrap_or(key);
    OWNED
        .iter()
        .find(|(owned, _)| *owned == key)
        .map(|(_, owner)| *owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_role() {
        assert!(is_known(Role::Server, "cluster-init"));
        assert!(!is_known(Role::Agent, "cluster-init"));
        assert!(is_known(Role::Agent, "kube-proxy-arg+"));
        assert!(!is_known(Role::Server, "cluster-intit"));
    }

    #[test]
    fn what_is_secret_or_unknown_is_not_public() {
        assert!(is_public("node-name") && is_public("tls-san+") && is_public("token-file"));
        assert!(SECRET.iter().all(|key| !is_public(key)));
        assert!(!is_public("my-password"));
    }

    #[test]
    fn nothing_is_both_owned_and_free() {
        for (key, _) in OWNED {
            assert!(!is_known(Role::Server, key), "{key}");
        }
    }
}
