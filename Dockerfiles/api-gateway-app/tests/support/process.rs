//! Child processes of a test: each in a process group of its own, gone when the value is dropped.

use std::net::TcpListener;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use uuid::Uuid;

/// A running program and all it has started.
pub(crate) struct Process(Child);

impl Process {
    /// Starts `command` with its output in `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    /// Sends a signal, by name, to the whole group.
    pub(crate) fn signal(&self, name: &str) {
        run(Command::new("kill").args([&format!("-{name}"), "--", &format!("-{}", self.0.id())]));
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group may be gone already, which is what this is for.
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill")
            .args(["-KILL", "--", &group])
            .stderr(Stdio::null())
            .status();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end; a failure fails the test.
pub(crate) fn run(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A command that does not run as root: PostgreSQL refuses to, and RabbitMQ should not.
pub(crate) fn unprivileged(user: &str, program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args([&format!("--reuid={user}"), &format!("--regid={user}")])
        .arg("--clear-groups")
        .arg(program);
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A new directory that belongs to `user` and goes away with the value.
pub(crate) struct OwnedDirectory(PathBuf);

impl OwnedDirectory {
    pub(crate) fn new(user: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{user}-{}", Uuid::now_v7()));
        std::fs::create_dir(&path).unwrap();
        let directory = Self(path);
        directory.give_to(user);
        directory
    }

    /// Hands over what has been written into it since.
    pub(crate) fn give_to(&self, user: &str) {
        if is_root() {
            let owner = format!("{user}:");
            run(Command::new("chown").args(["-R", &owner]).arg(&self.0));
        }
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for OwnedDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Below what Linux gives to outgoing connections, and Kubernetes to NodePorts, by default.
const PORTS: Range<u16> = 12_000..30_000;

/// A port on the loopback interface that nothing listens on, and that is given out only once.
///
/// Not one that the kernel chooses: it chooses the same for outgoing connections, so that a server
/// which a test kills might find its port taken when it comes back, by another test's server even.
pub(crate) fn free_port() -> u16 {
    static OFFSET: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run at the same time begin at different places.
    let start = std::process::id().wrapping_mul(64);
    loop {
        let offset = start.wrapping_add(OFFSET.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + u16::try_from(offset % PORTS.len() as u32).unwrap();
        if is_free(port) {
            return port;
        }
    }
}

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
