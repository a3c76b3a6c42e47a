//! The real registry for tests: this repository's own `registry` image in a container that goes when the test ends.

#![allow(dead_code, reason = "each test uses its part of it")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

pub(crate) struct RealRegistry {
    server: Server,
    pub(crate) address: String,
}

enum Server {
    Container(String),
    Process(Child),
}

impl RealRegistry {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further options of `docker run`.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        Self::start_on("127.0.0.1", options)
    }

    /// Listening on this address of the host.
    pub(crate) fn start_on(host: &str, options: &[&str]) -> Self {
        let image = image();
        let publish = format!("{host}:0:5000");
        let container = docker(
            &[
                &["run", "--detach", "--rm", "--publish", &publish],
                options,
                &[&image],
            ]
            .concat(),
        );
        let address = docker(&["port", &container, "5000/tcp"]);
        let registry = Self {
            server: Server::Container(container),
            address,
        };
        for _ in 0..200 {
            // The engine's proxy accepts before the registry listens; only the registry answers, if only with a refusal to speak
            // in the clear.
            let probe = Command::new("curl")
                .args(["--silent", "--noproxy", "*", "--http0.9", "--max-time", "2"])
                .arg(format!("http://{}/v2/", registry.address))
                .output()
                .unwrap();
            if probe.status.success() {
                return registry;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the registry at {} does not answer", registry.address);
    }

    /// Another registry: a program that prints its address and serves.
    pub(crate) fn of(program: &Path) -> Self {
        let mut child = Command::new(program)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut address).unwrap();
        Self {
            server: Server::Process(child),
            address: address.trim().to_owned(),
        }
    }

    /// The body of an answer of 200.
    pub(crate) fn get(&self, path: &str, accept: &str) -> Option<String> {
        let output = Command::new("curl")
            .args(["--silent", "--fail", "--noproxy", "*"])
            .args(["--header", &format!("Accept: {accept}")])
            .arg(format!("http://{}{path}", self.address))
            .output()
            .unwrap();
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }

    pub(crate) fn json(&self, path: &str, accept: &str) -> serde_json::Value {
        serde_json::from_str(&self.get(path, accept).unwrap()).unwrap()
    }
}

/// Builds the registry's image, unless it is there, and says what it is called.
pub(crate) fn image() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    run(Command::new(assert_cmd::cargo::cargo_bin("orch"))
        .args(["images", "build", "registry"])
        .current_dir(root)
        .env_remove("ORCH_FILE"))
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        match &mut self.server {
            Server::Container(name) => {
                let _ = Command::new("docker")
                    .args(["rm", "--force", "--volumes", name])
                    .output();
            }
            Server::Process(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What `docker` says when it does what it is asked for.
pub(crate) fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
