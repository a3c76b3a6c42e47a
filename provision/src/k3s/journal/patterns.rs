//! The sayings of K3s, etcd, flannel and containerd that name a cause, and what each means.

pub(super) struct Pattern {
    /// Parts that a line must have, in lower case.
    pub(super) parts: &'static [&'static str],
    pub(super) meaning: &'static str,
    pub(super) is_final: bool,
}

/// The more telling first: the last of them to appear in the journal is not always the cause.
pub(super) const PATTERNS: &[Pattern] = &[
    Pattern {
        parts: &["ca hash does not match"],
        meaning: "the token belongs to another cluster than the one that answers: the server was made anew, or the address is another cluster's; run `orch-provision reset` on this node and provision it again",
        is_final: true,
    },
    Pattern {
        parts: &["node password rejected"],
        meaning: "the server remembers a node of this name with another password; run `orch-provision reset` on this node and provision it again, which makes the server forget the old one",
        is_final: true,
    },
    Pattern {
        parts: &["token rejected"],
        meaning: "the server does not accept this node's token: it has expired or was deleted; remove /var/lib/orch/join-token and provision this node again",
        is_final: true,
    },
    Pattern {
        parts: &["401 unauthorized"],
        meaning: "the server does not accept this node's token: it has expired or was deleted; remove /var/lib/orch/join-token and provision this node again",
        is_final: true,
    },
    Pattern {
        parts: &["not authorized"],
        meaning: "the server does not accept this node's token or password; remove /var/lib/orch/join-token and provision this node again",
        is_final: false,
    },
    Pattern {
        parts: &["bootstrap data already found and encrypted with different token"],
        meaning: "the data directory was made with another server token; put that token back, or run `orch-provision reset` to start over without the data",
        is_final: true,
    },
    Pattern {
        parts: &["duplicate node name found"],
        meaning: "the etcd cluster still has a member of this node's name: where the cluster has its Node, `orch cluster remove NODE` on the host takes both away; where it has none any more, remove the member by hand (`etcdctl member list`, `member remove` on another server), or give this node another name",
        is_final: true,
    },
    Pattern {
        parts: &["due to duplicate node names"],
        meaning: "the etcd cluster still has a member of this node's name: where the cluster has its Node, `orch cluster remove NODE` on the host takes both away; where it has none any more, remove the member by hand (`etcdctl member list`, `member remove` on another server), or give this node another name",
        is_final: true,
    },
    Pattern {
        parts: &["not enough started members"],
        meaning: "etcd has no quorum: too few of its servers run to take in another; start the other servers first",
        is_final: false,
    },
    Pattern {
        parts: &["not a member of the etcd cluster"],
        meaning: "this server was removed from the etcd cluster; run `orch-provision reset` on it and provision it again",
        is_final: true,
    },
    Pattern {
        parts: &["etcdserver: no leader"],
        meaning: "etcd has no quorum: too few of its servers run or reach each other at TCP 2380; start the others and look at the network",
        is_final: false,
    },
    Pattern {
        parts: &["registries.yaml"],
        meaning: "K3s cannot use /etc/rancher/k3s/registries.yaml; correct `registries` in the node's configuration",
        is_final: false,
    },
    Pattern {
        parts: &["address already in use"],
        meaning: "another program has a port that K3s needs; `ss -ltnp` names it",
        is_final: false,
    },
    Pattern {
        parts: &["cannot assign requested address"],
        meaning: "K3s is to listen at an address that no interface has; look at `ip address` (the loopback interface, too) and `node.address`",
        is_final: false,
    },
    Pattern {
        parts: &["no such network interface"],
        meaning: "the interface that carries the node's address has another name now; provision this node again, which writes it anew",
        is_final: true,
    },
    Pattern {
        parts: &["failed to find ipv4 address for interface"],
        meaning: "the interface that carries the node's address has lost it; look at `ip address`",
        is_final: false,
    },
    Pattern {
        parts: &["iptables", "not found in path"],
        meaning: "there is no iptables on this node; install the package iptables",
        is_final: true,
    },
    Pattern {
        parts: &["iptables", "executable file not found"],
        meaning: "there is no iptables on this node; install the package iptables",
        is_final: true,
    },
    Pattern {
        parts: &["flannel exited"],
        meaning: "the pod network cannot be set up: does the kernel have vxlan (`modprobe vxlan`) and iptables?",
        is_final: false,
    },
    Pattern {
        parts: &["error registering network", "operation not supported"],
        meaning: "the pod network cannot be set up: this kernel has no vxlan (`modprobe vxlan`)",
        is_final: false,
    },
    Pattern {
        parts: &["no space left on device"],
        meaning: "a disk is full: `df -h` names it; make room, K3s needs it below /var/lib/rancher and for its images",
        is_final: true,
    },
    Pattern {
        parts: &["failed to find memory cgroup"],
        meaning: "the kernel runs without the memory cgroup; boot it with cgroup_enable=memory cgroup_memory=1",
        is_final: true,
    },
    Pattern {
        parts: &["failed to pull", "certificate signed by unknown authority"],
        meaning: "a registry's certificate comes from an authority that this node does not know; set `tls.ca_file` for it in `registries.configs`",
        is_final: false,
    },
    Pattern {
        parts: &[
            "failed to do request",
            "certificate signed by unknown authority",
        ],
        meaning: "a registry's certificate comes from an authority that this node does not know; set `tls.ca_file` for it in `registries.configs`",
        is_final: false,
    },
    Pattern {
        parts: &["server gave http response to https client"],
        meaning: "a registry speaks plain HTTP where HTTPS was tried; give its endpoint as `http://` in `registries.mirrors`",
        is_final: false,
    },
    Pattern {
        parts: &["certificate signed by unknown authority"],
        meaning: "the server has another CA than this node knows: it was made anew; run `orch-provision reset` on this node and provision it again",
        is_final: false,
    },
    Pattern {
        parts: &["certificate has expired or is not yet valid", "is before"],
        meaning: "a certificate is valid only from a later moment on: this node's clock is behind the clock of whoever signed it; compare `date` on both, and synchronise them (chrony)",
        is_final: false,
    },
    Pattern {
        parts: &["certificate has expired or is not yet valid", "is after"],
        meaning: "a certificate has expired, or this node's clock is ahead: compare `date` with the server's; K3s renews its certificates when it is restarted",
        is_final: false,
    },
    Pattern {
        parts: &["certificate has expired or is not yet valid"],
        meaning: "the clocks of this node and of the server differ, or a certificate has expired; compare `date` on both",
        is_final: false,
    },
    Pattern {
        parts: &["no route to host"],
        meaning: "this node cannot reach the server's address; check the network and `server.address`",
        is_final: false,
    },
    Pattern {
        parts: &["connection refused"],
        meaning: "nothing answers at the server's address and port; is K3s running there?",
        is_final: false,
    },
    Pattern {
        parts: &["i/o timeout"],
        meaning: "the server's address does not answer; check the network, firewalls and `server.address`",
        is_final: false,
    },
    Pattern {
        parts: &["waiting to retrieve agent configuration"],
        meaning: "the server does not hand out this node's configuration; see the server's journal (`journalctl -u k3s`)",
        is_final: false,
    },
];
