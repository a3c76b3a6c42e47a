//! Tokens in a real API server: etcd and kube-apiserver out of the stand-in's binary, in the server's
//! namespace. Elsewhere K3s is a script; here its commands are what is tested.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};

use crate::support::Cluster;

const BINARY: &str = "ORCH_TEST_K3S";
const ADMINISTRATOR: &str = "test-administrator";

/// A control plane without controllers; gone when dropped.
struct ControlPlane<'a> {
    cluster: &'a Cluster,
    processes: Vec<Child>,
}

impl<'a> ControlPlane<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let binary = std::env::var_os(BINARY).unwrap_or_else(|| {
            panic!("{BINARY} is not set: build the stand-in with `ci/k3s-standin/build.sh DIR` and set {BINARY}=DIR/k3s")
        });
        let binary = fs::canonicalize(binary).unwrap();
        for component in ["etcd", "kube-apiserver"] {
            symlink(&binary, cluster.path(component)).unwrap();
        }
        fs::create_dir_all(cluster.path("data/server/tls")).unwrap();
        fs::create_dir_all(cluster.path("data/server/cred")).unwrap();
        let wrapper = format!(
            "#!/bin/sh\nexport K3S_DATA_DIR={}\nexec {} \"$@\"\n",
            cluster.path("data").display(),
            binary.display()
        );
        fs::write(cluster.path("bin/k3s"), wrapper).unwrap();
        fs::set_permissions(cluster.path("bin/k3s"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut plane = Self {
            cluster,
            processes: Vec::new(),
        };
        plane.start_etcd();
        plane.start_api_server();
        plane
    }

    fn file(&self, name: &str) -> String {
        self.cluster.path(name).display().to_string()
    }

    fn start_etcd(&mut self) {
        self.spawn(
            "etcd",
            &[
                format!("--data-dir={}", self.file("etcd-data")),
                "--listen-client-urls=http://127.0.0.1:2379".into(),
                "--advertise-client-urls=http://127.0.0.1:2379".into(),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-cluster=default=http://127.0.0.1:2380".into(),
                "--unsafe-no-fsync".into(),
            ],
        );
    }

    fn start_api_server(&mut self) {
        let key = self.file("service-account.key");
        let made = self
            .cluster
            .in_server("openssl")
            .args([
                "ecparam",
                "-name",
                "prime256v1",
                "-genkey",
                "-noout",
                "-out",
                &key,
            ])
            .status()
            .unwrap();
        assert!(made.success(), "openssl must be installed");
        let tokens = format!("{ADMINISTRATOR},admin,admin,system:masters\n");
        fs::write(self.cluster.path("tokens.csv"), tokens).unwrap();
        self.spawn(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379".into(),
                "--bind-address=127.0.0.1".into(),
                "--advertise-address=127.0.0.1".into(),
                "--endpoint-reconciler-type=none".into(),
                "--secure-port=6443".into(),
                format!("--cert-dir={}", self.file("certificates")),
                "--authorization-mode=RBAC".into(),
                format!("--token-auth-file={}", self.file("tokens.csv")),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
                "--service-account-issuer=https://kubernetes.default.svc".into(),
                format!("--service-account-key-file={key}"),
                format!("--service-account-signing-key-file={key}"),
            ],
        );
        let authority = self.cluster.path("certificates/apiserver.crt");
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster:\n    server: https://127.0.0.1:6443\n    certificate-authority: {}\n\
             users:\n- name: test\n  user:\n    token: {ADMINISTRATOR}\n\
             contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n",
            authority.display()
        );
        fs::write(self.kubeconfig(), &kubeconfig).unwrap();
        fs::write(
            self.cluster.path("data/server/cred/admin.kubeconfig"),
            kubeconfig,
        )
        .unwrap();
        self.cluster.until("a ready API server", || {
            let spaces = ["get", "namespaces", "kube-system", "kube-node-lease"];
            self.kubectl(&spaces).status.success()
        });
        fs::copy(
            authority,
            self.cluster.path("data/server/tls/server-ca.crt"),
        )
        .unwrap();
    }

    fn kubeconfig(&self) -> PathBuf {
        self.cluster.path("etc/rancher/k3s/k3s.yaml")
    }

    fn spawn(&mut self, component: &str, arguments: &[String]) {
        let log = File::create(self.cluster.path(&format!("{component}.log"))).unwrap();
        let process = self
            .cluster
            .in_server("setpriv")
            .args(["--pdeathsig", "KILL", &self.file(component)])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes.push(process);
    }

    fn k3s(&self, arguments: &[&str]) -> Output {
        let mut k3s = self.cluster.in_server(&self.file("bin/k3s"));
        k3s.args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        let kubeconfig = self.kubeconfig().display().to_string();
        self.k3s(&[&["kubectl", "--kubeconfig", &kubeconfig], arguments].concat())
    }

    /// As K3s shows them: public halves and descriptions.
    fn tokens(&self) -> String {
        let listed = self.k3s(&["token", "list"]);
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8(listed.stdout).unwrap()
    }

    /// What a kubelet does every ten seconds.
    fn renew_lease(&self, node: &str, second: usize) {
        let lease = format!(
            "{{\"apiVersion\":\"coordination.k8s.io/v1\",\"kind\":\"Lease\",\
             \"metadata\":{{\"name\":\"{node}\",\"namespace\":\"kube-node-lease\"}},\
             \"spec\":{{\"holderIdentity\":\"{node}\",\"renewTime\":\"2026-01-01T00:00:{:02}.000000Z\"}}}}",
            second % 60
        );
        let file = self.cluster.path("lease.json");
        fs::write(&file, lease).unwrap();
        let applied = self.kubectl(&["apply", "-f", file.to_str().unwrap()]);
        assert!(applied.status.success(), "{applied:?}");
    }
}

impl Drop for ControlPlane<'_> {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn k3s_keeps_no_token_of_a_node_that_has_joined_and_loses_none_of_others() {
    let cluster = Cluster::start();
    let plane = ControlPlane::start(&cluster);
    let other = plane.k3s(&[
        "token",
        "create",
        "--ttl=1h",
        "--description=an administrator's",
    ]);
    assert!(other.status.success(), "{other:?}");
    let password = ["create", "secret", "generic", "agent.node-password.k3s"];
    let made = plane.kubectl(&[&password[..], &["--namespace=kube-system"]].concat());
    assert!(made.status.success(), "{made:?}");

    let first = cluster.ask("agent").unwrap();
    let second = cluster.ask("agent").unwrap();
    let tokens = plane.tokens();
    assert!(!tokens.contains(first.token.id().unwrap()), "{tokens}");
    assert!(tokens.contains(second.token.id().unwrap()), "{tokens}");
    let passwords = plane.kubectl(&["get", "secrets", "--namespace=kube-system"]);
    let passwords = String::from_utf8(passwords.stdout).unwrap();
    assert!(!passwords.contains("node-password"), "{passwords}");

    let mut second_of_renewal = 0;
    cluster.until("revoked", || {
        second_of_renewal += 1;
        plane.renew_lease("agent", second_of_renewal);
        !plane.tokens().contains("orch: join of node agent")
    });
    let tokens = plane.tokens();
    assert!(tokens.contains("an administrator's"), "{tokens}");
}
