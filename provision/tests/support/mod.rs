//! Two network namespaces joined by a cable: a server with the real join service in one, agents in
//! the other. K3s is a recorded script; everything else is real. Needs root and iproute2.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orch_contract::{ClusterKeys, NodeName};
use orch_ssh::keys::ensure_cluster_keys;
use serde_json::json;
use tempfile::TempDir;

pub(crate) const PORT: u16 = 6222;
/// A stand-in for `k3s token create`: a fresh token each time, and a record of how it was called.
const K3S: &str = r#"#!/bin/sh
echo "$*" >> @RECORD@/calls
case "$1 $2" in
  'token create')
    echo x >> @RECORD@/count
    printf 'K10%064d::abc%03d.secret%010d\n' 7 "$(wc -l < @RECORD@/count)" "$$" | tee -a @RECORD@/minted ;;
  kubectl*) exit 0 ;;
  *) exit 64 ;;
esac
"#;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// One pair of namespaces with a running join service; gone when dropped.
pub(crate) struct Cluster {
    pub(crate) directory: TempDir,
    pub(crate) keys: ClusterKeys,
    server_namespace: String,
    agent_namespace: String,
    pub(crate) address: IpAddr,
    service: Option<Child>,
}

impl Cluster {
    /// Starts a server that knows the nodes `agent` and `other`.
    pub(crate) fn start() -> Self {
        let id = format!(
            "{}x{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::SeqCst)
        );
        let directory = tempfile::tempdir().unwrap();
        let keys = ClusterKeys::new(directory.path().join("keys"));
        let nodes: [NodeName; 2] = ["agent", "other"].map(|name| name.parse().unwrap());
        ensure_cluster_keys(&keys, &nodes).unwrap();
        let mut cluster = Self {
            directory,
            keys,
            server_namespace: format!("orch-server-{id}"),
            agent_namespace: format!("orch-agent-{id}"),
            address: "10.231.7.1".parse().unwrap(),
            service: None,
        };
        cluster.lay_cable();
        cluster.write_files();
        cluster.start_service();
        cluster
    }

    fn lay_cable(&self) {
        let (server, agent) = (&self.server_namespace, &self.agent_namespace);
        run(&format!("ip netns add {server}"));
        run(&format!("ip netns add {agent}"));
        run(&format!(
            "ip link add orch0 netns {server} type veth peer name orch0 netns {agent}"
        ));
        for (namespace, address) in [(server, "10.231.7.1/24"), (agent, "10.231.7.2/24")] {
            run(&format!("ip -n {namespace} addr add {address} dev orch0"));
            run(&format!("ip -n {namespace} link set orch0 up"));
            run(&format!("ip -n {namespace} link set lo up"));
        }
    }

    fn write_files(&self) {
        for folder in ["bin", "etc/rancher/k3s", "record"] {
            fs::create_dir_all(self.path(folder)).unwrap();
        }
        fs::write(self.path("etc/rancher/k3s/k3s.yaml"), "").unwrap();
        let script = K3S.replace("@RECORD@", self.path("record").to_str().unwrap());
        fs::write(self.path("bin/k3s"), script).unwrap();
        fs::set_permissions(self.path("bin/k3s"), fs::Permissions::from_mode(0o755)).unwrap();
        let config = json!({
            "schema": 1,
            "cluster": {"name": "test"},
            "node": {"name": "master", "role": "server", "address": self.address},
            "server": {"address": self.address, "join_port": PORT},
            "k3s": {"version": "v1.34.2+k3s1"},
            "join": {
                "host_key": self.keys.host_key(),
                "authorized_keys": self.keys.authorized_keys(),
            },
        });
        fs::write(self.path("node.json"), config.to_string()).unwrap();
    }

    /// The service runs with a /usr/local/bin and an /etc of its own, so that it finds the script
    /// where K3s would be.
    fn start_service(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.server_namespace, "unshare", "-m", "sh", "-c"])
            .arg("mount --bind \"$1/bin\" /usr/local/bin && mount --bind \"$1/etc\" /etc && exec \"$2\" serve --config \"$1/node.json\"")
            .arg("sh")
            .arg(self.directory.path())
            .arg(env!("CARGO_BIN_EXE_orch-provision"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.service = Some(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.connect().is_err() {
            assert!(Instant::now() < deadline, "no service: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, PORT)
    }

    /// What the service wrote: its audit.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// How the script was called.
    pub(crate) fn calls(&self) -> String {
        fs::read_to_string(self.path("record/calls")).unwrap_or_default()
    }

    /// Every token that was minted.
    pub(crate) fn minted(&self) -> Vec<String> {
        fs::read_to_string(self.path("record/minted"))
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn service_id(&self) -> u32 {
        self.service.as_ref().unwrap().id()
    }

    /// Runs a closure on a thread of its own inside the agents' namespace.
    pub(crate) fn in_agent<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let path = Path::new("/run/netns").join(&self.agent_namespace);
        std::thread::spawn(move || {
            let namespace = fs::File::open(path).unwrap();
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None).unwrap();
            work()
        })
        .join()
        .unwrap()
    }

    pub(crate) fn connect(&self) -> std::io::Result<TcpStream> {
        let address = self.socket();
        self.in_agent(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)))
    }

    /// Runs OpenSSH's client in the agents' namespace with a node's key and the server's key pinned.
    pub(crate) fn ssh(
        &self,
        node: &str,
        options: &[&str],
        command: &[&str],
        input: &str,
    ) -> Output {
        let known_hosts = self.path("known_hosts");
        let public = fs::read_to_string(self.keys.host_public_key()).unwrap();
        fs::write(&known_hosts, format!("[{}]:{PORT} {public}", self.address)).unwrap();
        let mut child = Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.agent_namespace,
                "timeout",
                "60",
                "ssh",
            ])
            .args(["-F", "none", "-p", &PORT.to_string()])
            .arg("-i")
            .arg(self.keys.client_key(&node.parse().unwrap()))
            .args([
                "-o",
                &format!("UserKnownHostsFile={}", known_hosts.display()),
            ])
            .args(["-o", "GlobalKnownHostsFile=/dev/null"])
            .args([
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"])
            .args(options)
            .arg(format!("orch@{}", self.address))
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A server that refuses closes before it has read its input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
        for namespace in [&self.server_namespace, &self.agent_namespace] {
            let _ = Command::new("ip")
                .args(["netns", "delete", namespace])
                .status();
        }
    }
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "`{line}` (this test needs root and iproute2): {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
