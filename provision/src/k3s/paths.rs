//! Where K3s keeps its files, and orch the ones it adds for K3s.

pub(crate) const BINARY: &str = "/usr/local/bin/k3s";
/// The names under which K3s's binary answers as another program.
pub(crate) const LINKS: [&str; 3] = ["kubectl", "crictl", "ctr"];
pub(crate) const CONFIG: &str = "/etc/rancher/k3s/config.yaml";
/// Files here are read after [`CONFIG`], in the alphabet's order, and win.
pub(crate) const CONFIG_EXTRA: &str = "/etc/rancher/k3s/config.yaml.d";
/// Read after [`CONFIG`] and apart from it: what it holds matters only to a node that registers.
pub(crate) const CONFIG_REGISTER: &str = "/etc/rancher/k3s/config.yaml.d/orch-register.yaml";
pub(crate) const REGISTRIES: &str = "/etc/rancher/k3s/registries.yaml";
pub(crate) const ADMIN_KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
pub(crate) const DATA: &str = "/var/lib/rancher/k3s";
/// Where K3s unpacks itself.
pub(crate) const UNPACKED: &str = "/var/lib/rancher/k3s/data";
pub(crate) const AIRGAP_IMAGES: &str = "/var/lib/rancher/k3s/agent/images";
/// The kubelet's credentials; it exists from a node's first join on.
pub(crate) const KUBELET_KUBECONFIG: &str = "/var/lib/rancher/k3s/agent/kubelet.kubeconfig";
/// Where containerd looks for the pod network's configuration: K3s's own, then a foreign one's.
pub(crate) const CNI_CONFIG_DIRECTORIES: [&str; 2] =
    ["/var/lib/rancher/k3s/agent/etc/cni/net.d", "/etc/cni/net.d"];
/// Flannel writes it once a node has its part of the pod network.
pub(crate) const FLANNEL_SUBNET: &str = "/run/flannel/subnet.env";
pub(crate) const CONTAINERD_TEMPLATE_DIRECTORY: &str = "/var/lib/rancher/k3s/agent/etc/containerd";
pub(crate) const UNIT_DIRECTORY: &str = "/etc/systemd/system";
/// Where systemd looks for drop-ins that people and programs add.
pub(crate) const UNIT_DIRECTORIES: [&str; 3] = [
    UNIT_DIRECTORY,
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
];
/// By which the server knows a node again.
pub(crate) const NODE_PASSWORD: &str = "/etc/rancher/node/password";
/// containerd's own log; the journal has only K3s's.
pub(crate) const CONTAINERD_LOG: &str = "/var/lib/rancher/k3s/agent/containerd/containerd.log";
/// The server's own folder: credentials, certificates and the datastore.
pub(crate) const SERVER_DATA: &str = "/var/lib/rancher/k3s/server";
/// The token with which servers join, and with which K3s encrypts its bootstrap data; K3s makes it.
pub(crate) const SERVER_TOKEN: &str = "/var/lib/rancher/k3s/server/token";
/// Where the token lies with which this node joined, 0600; orch's choice, named in config.yaml.
pub(crate) const JOIN_TOKEN: &str = "/var/lib/orch/join-token";
