//! Two network namespaces joined by a cable: a server with the real join service in one, agents in
//! the other. K3s is a recorded script; everything else is real. Needs root and iproute2.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orch_contract::{ClusterKeys, JoinGrant, NodeFacts, NodeName};
use orch_ssh::client::{JoinError, Server, request_facts, request_join};
use orch_ssh::keys::{Roster, ensure_cluster_keys, read_private_key, read_public_key};
use serde_json::json;
use tempfile::TempDir;

pub(crate) const PORT: u16 = 6222;
/// The agents' second address, for peers that are not the node that is looked at.
pub(crate) const STRANGER: &str = "10.231.7.3";
/// K3s's folder of the server, below the folder that it sees as /var/lib.
pub(crate) const SERVER_DATA: &str = "varlib/rancher/k3s/server";
pub(crate) const SERVER_TOKEN: &str = "K10abc::server:secretofservers\n";
/// A stand-in for K3s's commands: fresh tokens, a list of those that are out, leases from a file, and
/// a record of how it was called.
const K3S: &str = r#"#!/bin/sh
cd @RECORD@
echo "$*" >> calls
case "$*" in
  'token create'*)
    id=$(printf 'a%05d' "$(($$ % 100000))")
    for description; do :; done
    printf 'bootstrap-token-%s\t2999-01-01T00:00:00Z\t%s\n' "$id" "$description" |
      flock tokens.lock tee -a tokens > /dev/null
    printf 'K10%064d::%s.secret%010d\n' 7 "$id" "$$" | tee -a minted ;;
  *'delete secret'*)
    for secret; do
      grep -q "^$secret	" tokens || continue
      flock tokens.lock sh -c "grep -v '^$secret	' tokens > tokens.new; mv tokens.new tokens"
    done ;;
  *'delete node'*) ;;
  *'get secrets'*) cat tokens ;;
  *'get leases'*) cat leases ;;
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
    /// Starts a server that knows the nodes `agent` and `other` and the server `second`, and has a cluster in etcd.
    pub(crate) fn start() -> Self {
        let id = format!(
            "{}x{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::SeqCst)
        );
        let directory = tempfile::tempdir().unwrap();
        let keys = ClusterKeys::new(directory.path().join("keys"));
        let nodes: [NodeName; 3] = ["agent", "other", "second"].map(|name| name.parse().unwrap());
        let roster = Roster {
            nodes: &nodes,
            servers: &nodes[2..],
        };
        ensure_cluster_keys(&keys, roster).unwrap();
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
        let addresses: [(_, &[&str]); 2] = [
            (server, &["10.231.7.1/24", "fd07::1/64 nodad"]),
            (
                agent,
                &["10.231.7.2/24", "10.231.7.3/24", "fd07::2/64 nodad"],
            ),
        ];
        for (namespace, addresses) in addresses {
            for address in addresses {
                run(&format!("ip -n {namespace} addr add dev orch0 {address}"));
            }
            run(&format!("ip -n {namespace} link set orch0 up"));
            run(&format!("ip -n {namespace} link set lo up"));
        }
    }

    fn write_files(&self) {
        for folder in ["bin", "etc/rancher/k3s", "record", SERVER_DATA] {
            fs::create_dir_all(self.path(folder)).unwrap();
        }
        fs::create_dir_all(self.path(SERVER_DATA).join("db/etcd/member")).unwrap();
        fs::write(self.path(SERVER_DATA).join("db/etcd/name"), "").unwrap();
        fs::write(self.path(SERVER_DATA).join("token"), SERVER_TOKEN).unwrap();
        for file in ["etc/rancher/k3s/k3s.yaml", "record/tokens", "record/leases"] {
            fs::write(self.path(file), "").unwrap();
        }
        let script = K3S.replace("@RECORD@", self.path("record").to_str().unwrap());
        fs::write(self.path("bin/k3s"), script).unwrap();
        fs::set_permissions(self.path("bin/k3s"), fs::Permissions::from_mode(0o755)).unwrap();
        let config = json!({
            "schema": 2,
            "cluster": {"name": "test"},
            "node": {"name": "master", "role": "server", "address": self.address},
            "servers": [{"name": "master", "address": self.address, "join_port": PORT}],
            "k3s": {"version": "v1.34.2+k3s1"},
            "join": {
                "host_key": self.keys.host_key(),
                "authorized_keys": self.keys.authorized_keys(),
            },
        });
        fs::write(self.path("node.json"), config.to_string()).unwrap();
    }

    /// The service runs with a /usr/local/bin, an /etc and a /var/lib of its own, so that it finds the script and K3s's
    /// data where they would be.
    fn start_service(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.server_namespace, "unshare", "-m", "sh", "-c"])
            .arg("mount --bind \"$1/bin\" /usr/local/bin && mount --bind \"$1/etc\" /etc && mount --bind \"$1/varlib\" /var/lib && exec \"$2\" serve --config \"$1/node.json\"")
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

    /// Ends the service as a power cut would, and starts it again.
    pub(crate) fn restart_service(&mut self) {
        self.kill_service();
        self.start_service();
    }

    fn kill_service(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
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

    /// The tokens that are out, as the cluster lists them.
    pub(crate) fn tokens(&self) -> String {
        fs::read_to_string(self.path("record/tokens")).unwrap()
    }

    /// Waits for something that the service does by itself.
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !condition() {
            assert!(Instant::now() < deadline, "not {what}: {}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The service as it is asked with a key.
    pub(crate) fn server(&self, client_key: &Path) -> Server {
        Server {
            address: self.socket(),
            server_keys: vec![read_public_key(&self.keys.host_public_key()).unwrap()],
            client_key: Arc::new(read_private_key(client_key).unwrap()),
        }
    }

    /// The service as a node asks it.
    pub(crate) fn server_for(&self, node: &str) -> Server {
        self.server(&self.keys.client_key(&node.parse().unwrap()))
    }

    /// Asks as a node with its own key.
    pub(crate) fn ask(&self, node: &str) -> Result<JoinGrant, JoinError> {
        self.ask_as(self.server_for(node), node)
    }

    pub(crate) fn ask_as(&self, server: Server, node: &str) -> Result<JoinGrant, JoinError> {
        let node: NodeName = node.parse().unwrap();
        self.in_agent(move || block_on(request_join(&server, &node)))
    }

    pub(crate) fn ask_facts(&self, client_key: &Path) -> Result<NodeFacts, JoinError> {
        let server = self.server(client_key);
        self.in_agent(move || block_on(request_facts(&server)))
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

    /// A program in the server's namespace.
    pub(crate) fn in_server(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.server_namespace, program]);
        command
    }

    pub(crate) fn connect(&self) -> std::io::Result<TcpStream> {
        let address = self.socket();
        self.in_agent(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)))
    }

    /// OpenSSH's client in the agents' namespace with a node's key and the server's key pinned.
    pub(crate) fn ssh_command(&self, node: &str, options: &[&str], command: &[&str]) -> Command {
        let key = self.keys.client_key(&node.parse().unwrap());
        self.ssh_command_with(&key, options, command)
    }

    pub(crate) fn ssh_command_with(
        &self,
        key: &Path,
        options: &[&str],
        command: &[&str],
    ) -> Command {
        let known_hosts = self.path("known_hosts");
        let public = fs::read_to_string(self.keys.host_public_key()).unwrap();
        fs::write(&known_hosts, format!("[{}]:{PORT} {public}", self.address)).unwrap();
        let mut ssh = Command::new("ip");
        ssh.args(["netns", "exec", &self.agent_namespace])
            .args(["timeout", "60", "ssh", "-F", "none"])
            .args(["-p", &PORT.to_string()])
            .arg("-i")
            .arg(key)
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", known_hosts.display()));
        for option in [
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=10",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args(options)
            .arg(format!("orch@{}", self.address))
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        ssh
    }

    pub(crate) fn ssh(
        &self,
        node: &str,
        options: &[&str],
        command: &[&str],
        input: &str,
    ) -> Output {
        let mut child = self.ssh_command(node, options, command).spawn().unwrap();
        // A server that refuses closes before it has read its input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }
}

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_service();
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
