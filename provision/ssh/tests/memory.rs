//! What a connection costs the join service in memory: the bound on connections is only one on memory
//! if each of them is small. The service runs in a process of its own, so that only it is measured.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::{ClusterKeys, JOIN_USER, JoinResponse, NodeName};
use orch_ssh::keys::{ensure_cluster_keys, read_private_key};
use orch_ssh::server::{Audit, AuditEvent, FactsSource, Grantor, JoinService, KeySource, Limits};
use orch_ssh::{AuthorizedKeys, Member, PrivateKey};
use russh::client;
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};

const CONNECTIONS: usize = 200;
/// Of each kind; several times what is measured, and a small part of the unit's limit for 64 connections.
const MAX_BYTES_EACH: usize = 512 * 1024;
/// Beyond it, the SSH library hangs up.
const LARGEST_PACKET_BYTES: u32 = 256 * 1024 - 4;
/// Names the keys' directory to the process that serves.
const DIRECTORY: &str = "ORCH_MEMORY_TEST_KEYS";

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match std::env::var_os(DIRECTORY) {
        Some(directory) => runtime.block_on(serve(&ClusterKeys::new(Path::new(&directory)))),
        None => measure(&runtime),
    }
}

fn measure(runtime: &tokio::runtime::Runtime) {
    let directory = tempfile::tempdir().unwrap();
    let layout = ClusterKeys::new(directory.path());
    let node: NodeName = "agent".parse().unwrap();
    ensure_cluster_keys(&layout, std::slice::from_ref(&node)).unwrap();
    let service = Service::start(directory.path());
    let key = Arc::new(read_private_key(&layout.client_key(&node)).unwrap());
    // What the first connections of each kind make once is no part of what each of them costs.
    let warm: Vec<_> = (0..10)
        .map(|_| {
            (
                half_open(service.address),
                runtime.block_on(authenticated(service.address, &key)),
            )
        })
        .collect();

    let before = service.resident_bytes();
    let half_opened: Vec<_> = (0..CONNECTIONS)
        .map(|_| half_open(service.address))
        .collect();
    let between = service.resident_bytes();
    let idle: Vec<_> = (0..CONNECTIONS)
        .map(|_| runtime.block_on(authenticated(service.address, &key)))
        .collect();
    let after = service.resident_bytes();
    let greedy: Vec<_> = (0..CONNECTIONS)
        .map(|_| promising(service.address))
        .collect();
    service.until_settled();
    let end = service.resident_bytes();

    for (what, bytes) in [
        ("half-open", between - before),
        ("authenticated", after - between),
        ("promising a large packet", end - after),
    ] {
        let each = bytes / CONNECTIONS;
        let _ = writeln!(std::io::stderr(), "{what}: {} KiB each", each / 1024);
        assert!(each < MAX_BYTES_EACH, "{what}: {each} bytes each");
    }
    drop((warm, half_opened, idle, greedy));
}

/// The service has greeted and waits for the other side.
fn half_open(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"SSH-");
    stream
}

/// The service waits for the rest of the largest packet that it accepts the beginning of.
fn promising(address: SocketAddr) -> TcpStream {
    let mut stream = half_open(address);
    let length = LARGEST_PACKET_BYTES.to_be_bytes();
    let beginning = [b"SSH-2.0-greedy\r\n".as_slice(), &length, &[0; 1000]].concat();
    stream.write_all(&beginning).unwrap();
    stream
}

struct AnyServer;

impl client::Handler for AnyServer {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// The service waits for the request of somebody who has shown a key.
async fn authenticated(address: SocketAddr, key: &Arc<PrivateKey>) -> client::Handle<AnyServer> {
    let mut session = client::connect(Arc::default(), address, AnyServer)
        .await
        .unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::clone(key), None);
    let authenticated = session
        .authenticate_publickey(JOIN_USER, key)
        .await
        .unwrap();
    assert!(authenticated.success());
    session
}

/// The process that serves; gone when dropped.
struct Service {
    process: Child,
    address: SocketAddr,
}

impl Service {
    fn start(directory: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        Self {
            process,
            address: line.trim().parse().unwrap(),
        }
    }

    /// What was sent last has been read when the process does nothing any more.
    fn until_settled(&self) {
        let ticks = || {
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
            let fields = stat.rsplit_once(')').unwrap().1.to_owned();
            fields
                .split_whitespace()
                .skip(11)
                .take(2)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let mut seen = ticks();
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = ticks();
            if now == seen {
                return;
            }
            seen = now;
        }
    }

    fn resident_bytes(&self) -> usize {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kibibytes = line.split_whitespace().nth(1).unwrap();
        kibibytes.parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn serve(layout: &ClusterKeys) {
    let text = std::fs::read_to_string(layout.authorized_keys()).unwrap();
    let keys = Keys(
        read_private_key(&layout.host_key()).unwrap(),
        AuthorizedKeys::parse(&text).unwrap(),
    );
    let long = Duration::from_secs(3600);
    let limits = Limits {
        max_connections: 4 * CONNECTIONS,
        max_connections_per_network: 4 * CONNECTIONS,
        handshake_timeout: long,
        request_timeout: long,
        ..Limits::default()
    };
    let service = JoinService::new(
        limits,
        Arc::new(Nobody),
        Arc::new(Nobody),
        Arc::new(keys),
        Arc::new(Nobody),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("{}\n", listener.local_addr().unwrap());
    std::io::stdout().write_all(address.as_bytes()).unwrap();
    service.run(listener).await;
}

struct Keys(PrivateKey, AuthorizedKeys);

impl KeySource for Keys {
    fn host_key(&self) -> Result<PrivateKey, String> {
        Ok(self.0.clone())
    }

    fn authorized_keys(&self) -> Result<AuthorizedKeys, String> {
        Ok(self.1.clone())
    }
}

struct Nobody;

#[async_trait]
impl Grantor for Nobody {
    async fn grant(&self, _: &Member) -> JoinResponse {
        panic!("nobody asks for a token here")
    }
}

#[async_trait]
impl FactsSource for Nobody {
    async fn facts(&self) -> Result<Vec<u8>, String> {
        panic!("nobody asks for facts here")
    }
}

impl Audit for Nobody {
    fn record(&self, _: AuditEvent) {}
}
