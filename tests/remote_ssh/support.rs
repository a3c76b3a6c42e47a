//! An OpenSSH server with keys of its own, and what a client of it has: all in one temporary folder, gone when dropped.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orch::remote::{
    Connection, Environment, Limits, RemoteError, Target, Wanted, connect, resolve_in,
};
use tempfile::TempDir;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A part of a name that no other test of this run or of another has.
pub(crate) fn unique() -> String {
    let count = COUNTER.fetch_add(1, Ordering::SeqCst);
    format!("{}x{count}", std::process::id())
}

/// Runs a program that must succeed.
pub(crate) fn run(words: &[&str]) -> String {
    let output = run_raw(words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{words:?} (these tests need root, OpenSSH, iproute2 and sudo): {error}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn run_raw(words: &[&str]) -> Output {
    let (program, arguments) = words.split_first().unwrap();
    let command = Command::new(program).args(arguments).output();
    command.unwrap_or_else(|error| panic!("{program} is needed: {error}"))
}

/// One OpenSSH server.
pub(crate) struct Server {
    pub(crate) folder: TempDir,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    namespace: Option<String>,
    has_own_etc: bool,
    options: String,
    process: Option<Child>,
}

impl Server {
    /// On the loopback, with these lines in its configuration before the others.
    pub(crate) fn start(options: &str) -> Self {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self::start_at(address, None, options)
    }

    /// On the loopback, with an `/etc` that only those see who log in: a copy, in the folder of that name.
    pub(crate) fn start_with_own_etc() -> Self {
        Self::launched(IpAddr::V4(Ipv4Addr::LOCALHOST), None, true, "")
    }

    pub(crate) fn start_at(address: IpAddr, namespace: Option<&str>, options: &str) -> Self {
        Self::launched(address, namespace, false, options)
    }

    fn launched(
        address: IpAddr,
        namespace: Option<&str>,
        has_own_etc: bool,
        options: &str,
    ) -> Self {
        let port = match namespace {
            Some(_) => 22,
            None => TcpListener::bind((address, 0))
                .unwrap()
                .local_addr()
                .unwrap()
                .port(),
        };
        let folder = tempfile::tempdir().unwrap();
        // sshd reads the list of keys as the user who logs in.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut server = Self {
            folder,
            address,
            port,
            namespace: namespace.map(str::to_owned),
            has_own_etc,
            options: options.to_owned(),
            process: None,
        };
        for kind in ["ed25519", "ecdsa", "rsa"] {
            server.make_key(&format!("host_{kind}"), kind, "");
        }
        server.make_key("user", "ed25519", "");
        fs::copy(server.path("user.pub"), server.path("authorized_keys")).unwrap();
        fs::create_dir(server.path("home")).unwrap();
        server.know(&["ed25519"]);
        server.configure("");
        server.launch();
        server
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn make_key(&self, name: &str, kind: &str, passphrase: &str) {
        let path = self.path(name);
        let path = path.to_str().unwrap();
        let bits = if kind == "rsa" { "2048" } else { "256" };
        run(&[
            "ssh-keygen",
            "-q",
            "-t",
            kind,
            "-b",
            bits,
            "-N",
            passphrase,
            "-C",
            name,
            "-f",
            path,
        ]);
    }

    /// Adds a key to those that may log in.
    pub(crate) fn authorize(&self, name: &str) {
        let keys = self.text("authorized_keys") + &self.text(&format!("{name}.pub"));
        fs::write(self.path("authorized_keys"), keys).unwrap();
    }

    /// Replaces the client's list of known hosts.
    pub(crate) fn know(&self, kinds: &[&str]) {
        let lines: String = kinds.iter().map(|kind| self.known_line(kind)).collect();
        fs::write(self.path("known_hosts"), lines).unwrap();
    }

    pub(crate) fn known_line(&self, kind: &str) -> String {
        let name = match self.port {
            22 => self.address.to_string(),
            port => format!("[{}]:{port}", self.address),
        };
        format!("{name} {}", self.text(&format!("host_{kind}.pub")))
    }

    /// Replaces the client's configuration: these lines, then what keeps this machine's out.
    pub(crate) fn configure(&self, lines: &str) {
        let folder = self.folder.path().display();
        let text = format!(
            "{lines}\nHost *\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n  \
             IdentityFile {folder}/user\n  StrictHostKeyChecking no\n"
        );
        fs::write(self.path("ssh_config"), text).unwrap();
    }

    fn launch(&mut self) {
        let folder = self.folder.path().display();
        // Debian has systemd make it.
        fs::create_dir_all("/run/sshd").unwrap();
        let configuration = format!(
            "{}\nListenAddress {}\nPort {}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel VERBOSE\n\
             AuthorizedKeysFile {folder}/authorized_keys\nHostKey {folder}/host_ed25519\n\
             HostKey {folder}/host_ecdsa\nHostKey {folder}/host_rsa\n",
            self.options, self.address, self.port
        );
        fs::write(self.path("sshd_config"), configuration).unwrap();
        let log = fs::File::create(self.path("log")).unwrap();
        let mut sshd = format!("exec /usr/sbin/sshd -D -e -f {folder}/sshd_config");
        let mut command = Command::new("sh");
        if self.has_own_etc {
            sshd = format!("cp -a /etc {folder}/etc && mount --bind {folder}/etc /etc && {sshd}");
            command = Command::new("unshare");
            command.args(["--mount", "sh"]);
        }
        if let Some(namespace) = &self.namespace {
            command = Command::new("ip");
            command.args(["netns", "exec", namespace, "sh"]);
        }
        let child = command
            .args(["-c", &sshd])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(child.spawn().unwrap());
        let address = SocketAddr::new(self.address, self.port);
        let deadline = Instant::now() + Duration::from_secs(60);
        let up = || match &self.namespace {
            Some(namespace) => inside(namespace, move || TcpStream::connect(address).is_ok()),
            None => TcpStream::connect(address).is_ok(),
        };
        while !up() {
            assert!(Instant::now() < deadline, "no server: {}", self.text("log"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            name: "node".into(),
            host: self.address.to_string(),
            port: Some(self.port),
            user: Some("root".into()),
            ssh_config: Some(self.path("ssh_config")),
            ..Wanted::default()
        }
    }

    pub(crate) fn environment(&self) -> Environment {
        Environment {
            home: Some(self.path("home")),
            user: "root".into(),
            agent: None,
            ssh: Some(PathBuf::from("/usr/bin/ssh")),
        }
    }

    pub(crate) async fn resolve(&self, wanted: &Wanted) -> Target {
        resolve_in(wanted, &self.environment()).await.unwrap()
    }

    pub(crate) async fn try_connect(&self, wanted: &Wanted) -> Result<Connection, RemoteError> {
        connect(&self.resolve(wanted).await, &Limits::default()).await
    }

    pub(crate) async fn connect(&self) -> Connection {
        let connected = self.try_connect(&self.wanted()).await;
        connected.unwrap_or_else(|error| panic!("{error}\n{}", self.text("log")))
    }

    /// Ends the server's side of all connections, and nothing that runs in them.
    pub(crate) fn cut_connections(&mut self) {
        for id in children_of(self.process.as_ref().unwrap().id()) {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            if name.starts_with("sshd") {
                let _ = run_raw(&["kill", "-KILL", &id.to_string()]);
            }
        }
    }

    /// Ends the server and all that it has started.
    pub(crate) fn kill(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        for id in children_of(process.id()) {
            let _ = run_raw(&["kill", "-KILL", &id.to_string()]);
        }
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// All that a process has started, and what those have.
fn children_of(id: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let direct: Vec<u32> = listed
        .split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect();
    let deeper = direct
        .iter()
        .flat_map(|id| children_of(*id))
        .collect::<Vec<_>>();
    direct.into_iter().chain(deeper).collect()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Network namespaces and what joins them; gone when dropped.
pub(crate) struct Network {
    prefix: String,
    names: Vec<String>,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self {
            prefix: format!("orch-remote-{}", unique()),
            names: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, name: &str) -> String {
        let name = format!("{}-{name}", self.prefix);
        run(&["ip", "netns", "add", &name]);
        self.names.push(name.clone());
        run(&["ip", "-n", &name, "link", "set", "lo", "up"]);
        name
    }

    /// A cable between two namespaces, with an address at each end.
    pub(crate) fn join(&self, device: &str, left: (&str, &str), right: (&str, &str)) {
        run(&[
            "ip", "link", "add", device, "netns", left.0, "type", "veth", "peer", "name", device,
            "netns", right.0,
        ]);
        for (namespace, address) in [left, right] {
            // Without the wait that IPv6 makes for whoever might have the address already.
            let mut words = vec!["ip", "-n", namespace, "addr", "add", address, "dev", device];
            if address.contains(':') {
                words.push("nodad");
            }
            run(&words);
            run(&["ip", "-n", namespace, "link", "set", device, "up"]);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run_raw(&["ip", "netns", "delete", name]);
        }
    }
}

/// Runs a closure on a thread of its own in a namespace.
pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let path = Path::new("/run/netns").join(namespace);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let namespace = fs::File::open(path).unwrap();
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Runs a future in a namespace, with all the threads it needs.
pub(crate) fn block_on_inside<T: Send>(
    namespace: &str,
    future: impl Future<Output = T> + Send,
) -> T {
    inside(namespace, || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(future)
    })
}

/// A user of this machine who is not root; gone when dropped.
pub(crate) struct User {
    pub(crate) name: String,
}

impl User {
    pub(crate) fn new(password: Option<&str>) -> Self {
        let name = format!("orcht{}", unique());
        run(&["useradd", "--create-home", "--shell", "/bin/sh", &name]);
        let user = Self { name };
        match password {
            Some(password) => {
                let line = format!("printf '%s:%s' {} {password} | chpasswd", user.name);
                run(&["sh", "-c", &line]);
            }
            // Without one, not locked: sshd refuses locked accounts.
            None => {
                run(&["usermod", "--password", "*", &user.name]);
            }
        }
        user
    }

    fn sudoers(&self) -> PathBuf {
        Path::new("/etc/sudoers.d").join(&self.name)
    }

    /// Lets the user be root: `ALL`, or `NOPASSWD: ALL`.
    pub(crate) fn may(&self, what: &str) {
        fs::write(self.sudoers(), format!("{} ALL=(ALL) {what}\n", self.name)).unwrap();
        fs::set_permissions(self.sudoers(), fs::Permissions::from_mode(0o440)).unwrap();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.sudoers());
        let _ = run_raw(&["userdel", "--remove", "--force", &self.name]);
    }
}
