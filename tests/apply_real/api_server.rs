//! A real control plane for tests: etcd, kube-apiserver, kube-controller-manager and kube-scheduler out
//! of the multi-call stand-in binary, on loopback, in a folder of their own. No kubelet: a test that
//! needs a pod's status writes it through the API as a kubelet would.
//!
//! One control plane serves all tests of this binary; each test works in a namespace of its own. The
//! processes end with the test process (`setpriv --pdeathsig`).

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const BINARY: &str = "ORCH_TEST_K3S";
const STARTUP: Duration = Duration::from_secs(120);
const TOKEN: &str = "test-administrator";

/// The kubeconfig of the shared control plane, started on first use.
pub(crate) fn kubeconfig() -> &'static Path {
    static KUBECONFIG: OnceLock<PathBuf> = OnceLock::new();
    KUBECONFIG.get_or_init(|| {
        let binary = std::env::var_os(BINARY).unwrap_or_else(|| {
            panic!("{BINARY} is not set: build the stand-in with `ci/k3s-standin/build.sh DIR` and set {BINARY}=DIR/k3s")
        });
        let binary = fs::canonicalize(&binary).unwrap_or_else(|error| panic!("{BINARY}={binary:?}: {error}"));
        let (sender, receiver) = mpsc::channel();
        // The parent-death signal belongs to the thread that starts a process: this one stays.
        thread::spawn(move || {
            let mut processes = Processes::new(&binary);
            sender.send(start(&mut processes)).unwrap();
            for mut child in processes.children {
                let _ = child.wait();
            }
        });
        receiver.recv().expect("the control plane did not start; its logs are under the target folder's tmp/")
    })
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

struct Processes {
    folder: PathBuf,
    binary: PathBuf,
    children: Vec<Child>,
}

impl Processes {
    fn new(binary: &Path) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("control-plane-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        remove_leftovers(&folder);
        Self {
            folder,
            binary: binary.to_owned(),
            children: Vec::new(),
        }
    }

    /// The binary becomes the component whose name it is called by.
    fn spawn(&mut self, component: &str, arguments: &[String]) {
        let program = self.folder.join(component);
        symlink(&self.binary, &program).unwrap();
        let log = File::create(self.folder.join(format!("{component}.log"))).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("setpriv (util-linux) must be installed");
        self.children.push(child);
    }
}

fn start(processes: &mut Processes) -> PathBuf {
    let folder = processes.folder.clone();
    let file = |name: &str| folder.join(name).display().to_string();
    let (etcd, peer, api) = (free_port(), free_port(), free_port());

    processes.spawn(
        "etcd",
        &[
            format!("--data-dir={}", file("etcd-data")),
            format!("--listen-client-urls=http://127.0.0.1:{etcd}"),
            format!("--advertise-client-urls=http://127.0.0.1:{etcd}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
            format!("--initial-cluster=default=http://127.0.0.1:{peer}"),
            "--unsafe-no-fsync".into(),
        ],
    );
    let made = Command::new("openssl")
        .args([
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
        ])
        .arg(folder.join("service-account.key"))
        .status()
        .expect("openssl must be installed");
    assert!(made.success());
    fs::write(
        folder.join("tokens.csv"),
        format!("{TOKEN},admin,admin,system:masters\n"),
    )
    .unwrap();
    processes.spawn(
        "kube-apiserver",
        &[
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            "--endpoint-reconciler-type=none".into(),
            format!("--secure-port={api}"),
            format!("--cert-dir={}", file("certificates")),
            "--authorization-mode=RBAC".into(),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", file("service-account.key")),
            format!(
                "--service-account-signing-key-file={}",
                file("service-account.key")
            ),
        ],
    );
    let kubeconfig = folder.join("kubeconfig");
    fs::write(
        &kubeconfig,
        kubeconfig_text(&file("certificates/apiserver.crt"), api),
    )
    .unwrap();
    wait_ready(&kubeconfig);

    let client = format!("--kubeconfig={}", kubeconfig.display());
    processes.spawn(
        "kube-controller-manager",
        &[
            client.clone(),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
            // The tests' nodes have no kubelet that would keep them alive.
            "--controllers=*,-node-lifecycle-controller".into(),
            format!(
                "--service-account-private-key-file={}",
                file("service-account.key")
            ),
        ],
    );
    processes.spawn(
        "kube-scheduler",
        &[
            client,
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ],
    );
    kubeconfig
}

fn kubeconfig_text(authority: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- name: test\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority: {authority}\n\
         users:\n- name: test\n  user:\n    token: {TOKEN}\n\
         contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n"
    )
}

fn wait_ready(kubeconfig: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let deadline = Instant::now() + STARTUP;
        loop {
            let error = match orch::kube::connect(kubeconfig).await {
                Ok(client) => {
                    let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
                    match client.request_text(request).await {
                        Ok(_) => return,
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            assert!(
                Instant::now() < deadline,
                "kube-apiserver is not ready: {error}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

/// Folders of control planes whose test process is gone.
fn remove_leftovers(own: &Path) {
    for entry in fs::read_dir(own.parent().unwrap()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(process) = name.strip_prefix("control-plane-")
            && !Path::new("/proc").join(process).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
