//! A whole simulated node for the tests of `up`: a systemd that reads unit files only when it is told to, and a K3s that
//! keeps what it was started with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use jiff::Timestamp;
use orch_contract::{
    Change, ClusterKeys, Event, Mirror, NodeConfig, Outcome, Role, Servers, StorageKind,
    VolumeDirectory, node_paths,
};
use orch_runner::{Recorder, Reporter, StepFailure};
use orch_ssh::keys::{Roster, ensure_cluster_keys};

use super::grants::Grants;
use super::{Machine, agent_config, server_config, servers_config};
use crate::commands::up::Up;
use crate::k3s::datastore::Datastore;
use crate::k3s::paths;
use crate::k3s::units::{JOIN_UNIT, environment_path, unit_name, unit_path};
use crate::steps::Context;
use crate::system::{
    CommandError, Commands, Files, Finished, Invocation, Services, System, UnitState, sha256_hex,
};

const MAIN_PROCESS: u32 = 77;
/// Where K3s keeps the state.
pub(crate) const SQLITE: &str = "/var/lib/rancher/k3s/server/db/state.db";
pub(crate) const ETCD: &str = "/var/lib/rancher/k3s/server/db/etcd/member";
const ETCD_NAME: &str = "/var/lib/rancher/k3s/server/db/etcd/name";
const SERVER_TOKEN: &str = "K10abc::server:topsecret";
const IMAGES: &str = "k3s-airgap-images-amd64.tar.zst";

/// A unit as systemd knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    pub(crate) is_enabled: bool,
    pub(crate) is_active: bool,
    /// The unit file when it was read last.
    pub(crate) loaded: Option<String>,
    /// What the service was started with: the unit as loaded, and the files that it reads.
    pub(crate) running: BTreeMap<String, String>,
}

pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) config: NodeConfig,
    units: Mutex<BTreeMap<String, Unit>>,
    /// Owners of directories, by path.
    owners: Mutex<BTreeMap<String, String>>,
    done: Mutex<Vec<String>>,
    grants: Option<Grants>,
    /// What the host says of the cluster.
    pub(crate) is_new_cluster: bool,
    keys: tempfile::TempDir,
}

/// Everything that a run leaves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct State {
    files: BTreeMap<PathBuf, String>,
    units: BTreeMap<String, Unit>,
    owners: BTreeMap<String, String>,
}

impl State {
    #[track_caller]
    pub(crate) fn assert_is(&self, expected: &Self, when: &str) {
        for path in self.files.keys().chain(expected.files.keys()) {
            let (found, wanted) = (self.files.get(path), expected.files.get(path));
            assert_eq!(found, wanted, "{}, {when}", path.display());
        }
        assert_eq!(self.units, expected.units, "{when}");
        assert_eq!(self.owners, expected.owners, "{when}");
    }
}

impl Node {
    /// An empty machine to which the host has brought what it brings.
    pub(crate) fn new(role: Role) -> Self {
        let keys = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(keys.path());
        let name = "agent".parse().unwrap();
        ensure_cluster_keys(&layout, std::slice::from_ref(&name)).unwrap();
        let machine = Machine::fit();
        let mut config = match role {
            Role::Server => server_config(),
            Role::Agent => agent_config(),
        };
        config.join.host_key = layout.host_key();
        config.join.client_key = layout.client_key(&name);
        config.join.known_host = layout.host_public_key();
        let authorized = std::fs::read_to_string(layout.authorized_keys()).unwrap();
        let files = &machine.files;
        files.put(node_paths::JOIN_AUTHORIZED_KEYS, &authorized, 0o600);
        files.put("/opt/orch-provision", "program", 0o755);
        files.put("/proc/sys/net/ipv4/ip_forward", "0\n", 0o644);
        files.put("/var/lib/orch/artifacts/k3s", "BIN", 0o644);
        files.put(
            "/var/lib/orch/artifacts/sha256sum-amd64.txt",
            &format!("{}  k3s\n", sha256_hex(b"BIN")),
            0o644,
        );
        *machine.endpoints.status.lock().unwrap() = Some("200 OK".to_owned());
        let version = "k3s version v1.34.2+k3s1\n";
        for binary in [paths::BINARY, "/usr/local/bin/.k3s.orch-new"] {
            machine.commands.answer(binary, 0, version);
        }
        machine.commands.answer(
            "/usr/local/bin/k3s kubectl",
            0,
            r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
        );
        Self {
            machine,
            config,
            units: Mutex::default(),
            owners: Mutex::default(),
            done: Mutex::default(),
            grants: None,
            is_new_cluster: false,
            keys,
        }
    }

    /// An empty machine that is a server of three, and whom it asks at the ports.
    pub(crate) fn one_of_three(index: usize, ports: [u16; 3]) -> Self {
        let mut node = Self::new(Role::Server);
        let address = node.config.node.address;
        let mut config = servers_config(index);
        let name = config.node.name.clone();
        let layout = ClusterKeys::new(node.keys.path());
        let roster = Roster {
            nodes: std::slice::from_ref(&name),
            servers: std::slice::from_ref(&name),
        };
        ensure_cluster_keys(&layout, roster).unwrap();
        config.node.address = address;
        config.join = orch_contract::Join {
            client_key: layout.client_key(&name),
            ..node.config.join.clone()
        };
        let Servers { first, others } = &mut config.servers;
        for (server, port) in std::iter::once(first).chain(others).zip(ports) {
            server.address = std::net::Ipv4Addr::LOCALHOST.into();
            server.join_port = port;
        }
        node.config = config;
        node
    }

    /// Its keys, with which it asks and is known.
    pub(crate) fn layout(&self) -> ClusterKeys {
        ClusterKeys::new(self.keys.path())
    }

    /// An empty machine on which every step has something to do: storage over NFS, volumes, registries, images, and for an
    /// agent a server that grants tokens.
    pub(crate) async fn with_storage(role: Role) -> Self {
        let mut node = Self::new(role);
        if role == Role::Agent {
            let grants = Grants::serve(&ClusterKeys::new(node.keys.path())).await;
            node.config.servers.first.address = std::net::Ipv4Addr::LOCALHOST.into();
            node.config.servers.first.join_port = grants.port;
            node.grants = Some(grants);
        }
        node.config.storage.kind = StorageKind::Nfs;
        node.config.storage.directories = vec![VolumeDirectory {
            path: "movies/db".into(),
            uid: 999,
            gid: 999,
        }];
        let mirror = Mirror {
            endpoints: vec!["http://192.168.56.254:5000".to_owned()],
            ..Mirror::default()
        };
        let mirrors = &mut node.config.registries.mirrors;
        mirrors.insert("docker.io".to_owned(), mirror);
        let (binary, images) = (sha256_hex(b"BIN"), sha256_hex(b"IMG"));
        let files = &node.machine.files;
        files.put(&format!("/var/lib/orch/artifacts/{IMAGES}"), "IMG", 0o644);
        files.put(
            "/var/lib/orch/artifacts/sha256sum-amd64.txt",
            &format!("{binary}  k3s\n{images}  {IMAGES}\n"),
            0o644,
        );
        node
    }

    /// How many tokens this agent was granted.
    pub(crate) fn granted(&self) -> u32 {
        self.grants.as_ref().map_or(0, Grants::granted)
    }

    pub(crate) fn state_of_all(&self) -> State {
        let mut files = self.machine.files.everything();
        // They differ with where each test keeps its keys and has its join service.
        files.remove(Path::new(node_paths::APPLIED));
        files.remove(Path::new(node_paths::JOIN_AUTHORIZED_KEYS));
        files.remove(Path::new(&unit_path(JOIN_UNIT)));
        State {
            files,
            units: self.units.lock().unwrap().clone(),
            owners: self.owners.lock().unwrap().clone(),
        }
    }

    /// One that was provisioned: an agent has joined.
    pub(crate) async fn provisioned(role: Role) -> Self {
        let node = Self::new(role);
        if role == Role::Agent {
            node.join();
        }
        node.up(false).await;
        node.machine.files.take_writes();
        node.take_done();
        node
    }

    /// What an agent has once it has joined: its token, and what K3s made with it.
    pub(crate) fn join(&self) {
        let files = &self.machine.files;
        files.put(paths::JOIN_TOKEN, "K10abc::id.topsecret", 0o600);
        files.put(
            paths::KUBELET_KUBECONFIG,
            "users:\n- name: default\n  user:\n    client-certificate: /data/client-kubelet.crt\n",
            0o600,
        );
        files.put("/data/client-kubelet.crt", "cert", 0o600);
    }

    /// What K3s makes of its settings where a server has no data, and of SQLite's data where it is to use etcd.
    fn keep_data(&self) {
        let files = &self.machine.files;
        let config = files.text(paths::CONFIG).unwrap_or_default();
        let uses_etcd = config.contains("cluster-init: true") || config.contains("\nserver: ");
        let was = Datastore::of(files).unwrap();
        if was != Datastore::Etcd && uses_etcd {
            files.remove(Path::new(SQLITE)).unwrap();
            self.put_etcd();
        } else if was == Datastore::None {
            files.put(SQLITE, "", 0o600);
        }
        files.put(paths::SERVER_TOKEN, SERVER_TOKEN, 0o600);
    }

    /// What a server has that made a cluster in etcd or joined one.
    pub(crate) fn put_etcd(&self) {
        for path in [ETCD, ETCD_NAME] {
            self.machine.files.put(path, "", 0o600);
        }
    }

    pub(crate) fn unit(&self) -> &'static str {
        unit_name(self.config.node.role)
    }

    pub(crate) fn change_unit(&self, change: impl FnOnce(&mut Unit)) {
        change(
            self.units
                .lock()
                .unwrap()
                .entry(self.unit().to_owned())
                .or_default(),
        );
    }

    /// What systemd was told since the last call.
    pub(crate) fn take_done(&self) -> Vec<String> {
        std::mem::take(&mut self.done.lock().unwrap())
    }

    /// What K3s was started with, and what it would be started with now.
    pub(crate) fn running_and_wanted(&self) -> [BTreeMap<String, String>; 2] {
        let unit = self.unit();
        let state = self
            .units
            .lock()
            .unwrap()
            .get(unit)
            .cloned()
            .unwrap_or_default();
        let mut wanted = self.readable();
        wanted.insert(
            unit.to_owned(),
            self.machine
                .files
                .text(&unit_path(unit))
                .unwrap_or_default(),
        );
        [state.running, wanted]
    }

    /// The files that K3s reads when it starts.
    fn readable(&self) -> BTreeMap<String, String> {
        let role = self.config.node.role;
        [
            paths::CONFIG,
            paths::REGISTRIES,
            paths::BINARY,
            &environment_path(role),
        ]
        .into_iter()
        .map(|path| {
            (
                path.to_owned(),
                self.machine.files.text(path).unwrap_or_default(),
            )
        })
        .collect()
    }

    pub(crate) async fn run(
        &self,
        system: System<'_>,
        reporter: &dyn Reporter,
        dry_run: bool,
    ) -> Result<Outcome, StepFailure> {
        let up = Up {
            context: Context {
                system,
                config: &self.config,
            },
            program: PathBuf::from("/opt/orch-provision"),
            config_path: node_paths::NODE_CONFIG.into(),
            is_root: true,
            is_new_cluster: self.is_new_cluster,
        };
        up.run(reporter, dry_run).await
    }

    /// One run of `up` that succeeds.
    pub(crate) async fn up(&self, dry_run: bool) -> Vec<Event> {
        let recorder = Recorder::default();
        self.run(self.system(), &recorder, dry_run).await.unwrap();
        recorder.events()
    }

    pub(crate) fn system(&self) -> System<'_> {
        System {
            services: self,
            commands: self,
            ..self.machine.system()
        }
    }
}

/// What each step of a run would change, or has changed, by step.
pub(crate) fn changes(events: &[Event]) -> Vec<(String, Vec<Change>)> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::StepPlanned { step, changes, .. } | Event::StepApplied { step, changes, .. } => {
                Some((step.clone(), changes.clone()))
            }
            _ => None,
        })
        .collect()
}

/// Every change of a run as one line.
pub(crate) fn lines(events: &[Event]) -> Vec<String> {
    changes(events)
        .into_iter()
        .flat_map(|(_, changes)| changes)
        .map(|change| format!("{} {} {}", change.action, change.name, change.detail))
        .collect()
}

/// Programs that change something; all others answer as they were told to.
#[async_trait]
impl Commands for Node {
    async fn run(&self, invocation: &Invocation) -> Result<Finished, CommandError> {
        let files = &self.machine.files;
        let line = invocation.to_string();
        let words: Vec<&str> = invocation.arguments.iter().map(String::as_str).collect();
        match (invocation.program.as_str(), words.as_slice()) {
            ("apt-get", _) => {
                files.put("/usr/sbin/exportfs", "", 0o755);
                files.put("/usr/sbin/mount.nfs4", "", 0o755);
            }
            ("systemctl", ["enable", "--now", unit]) if unit.ends_with(".mount") => {
                let host = self.config.servers.first.address;
                let mount = format!(
                    "37 35 0:50 / /var/lib/orch/volumes rw - nfs4 {host}:/var/lib/orch/exported rw\n"
                );
                files.put("/proc/self/mountinfo", &mount, 0o444);
            }
            ("systemctl", ["enable", "--now", unit]) => {
                let mut units = self.units.lock().unwrap();
                units.entry((*unit).to_owned()).or_default().is_active = true;
            }
            ("umount", ["-l", point]) => {
                let mounts = files.text("/proc/self/mountinfo").unwrap_or_default();
                let left = mounts.lines().filter(|line| !line.contains(point));
                let left: String = left.map(|line| format!("{line}\n")).collect();
                files.put("/proc/self/mountinfo", &left, 0o444);
            }
            ("exportfs" | "modprobe", _) => {}
            ("install", ["-d", "-m", "0700", "-o", user, "-g", group, path]) => {
                let mut owners = self.owners.lock().unwrap();
                owners.insert((*path).to_owned(), format!("directory {user}:{group}"));
            }
            ("stat", [.., path]) => {
                let owner = self.owners.lock().unwrap().get(*path).cloned();
                let status = i32::from(owner.is_none());
                return Ok(finished(status, owner.unwrap_or_default()));
            }
            _ => return self.machine.commands.run(invocation).await,
        }
        self.machine.commands.answer(&line, 0, "");
        self.machine.commands.run(invocation).await
    }
}

fn finished(status: i32, output: String) -> Finished {
    Finished {
        status,
        stdout: zeroize::Zeroizing::new(output.into_bytes()),
        stderr: String::new(),
    }
}

#[async_trait]
impl Services for Node {
    async fn reload(&self) -> Result<(), CommandError> {
        self.done.lock().unwrap().push("reload".to_owned());
        for (name, unit) in self.units.lock().unwrap().iter_mut() {
            unit.loaded = self.machine.files.text(&unit_path(name));
        }
        Ok(())
    }

    async fn enable(&self, unit: &str) -> Result<(), CommandError> {
        self.done.lock().unwrap().push(format!("enable {unit}"));
        let loaded = self.machine.files.text(&unit_path(unit));
        let mut units = self.units.lock().unwrap();
        let known = units.entry(unit.to_owned()).or_default();
        known.is_enabled = true;
        known.loaded = known.loaded.take().or(loaded);
        Ok(())
    }

    async fn begin_restart(&self, unit: &str) -> Result<(), CommandError> {
        self.done.lock().unwrap().push(format!("restart {unit}"));
        let text = self.machine.files.text(&unit_path(unit));
        let mut units = self.units.lock().unwrap();
        let known = units.entry(unit.to_owned()).or_default();
        known.loaded = known.loaded.take().or(text);
        known.is_active = true;
        known.running = self.readable();
        let loaded = known.loaded.clone().unwrap_or_default();
        known.running.insert(unit.to_owned(), loaded);
        if unit == self.unit() {
            let files = &self.machine.files;
            files
                .symlink(Path::new(paths::BINARY), Path::new("/proc/77/exe"))
                .unwrap();
            files.put(
                "/var/lib/rancher/k3s/agent/etc/cni/net.d/1.conflist",
                r#"{"plugins":[{"type":"bridge"}]}"#,
                0o600,
            );
            match self.config.node.role {
                Role::Agent => self.join(),
                Role::Server => self.keep_data(),
            }
        }
        Ok(())
    }

    async fn stop(&self, unit: &str) -> Result<(), CommandError> {
        self.done.lock().unwrap().push(format!("stop {unit}"));
        if unit.ends_with(".mount") {
            self.machine.files.put("/proc/self/mountinfo", "", 0o444);
        }
        self.units.lock().unwrap().remove(unit);
        Ok(())
    }

    async fn state(&self, unit: &str) -> Result<UnitState, CommandError> {
        let text = self.machine.files.text(&unit_path(unit));
        let known = self.units.lock().unwrap().get(unit).cloned();
        let exists = text.is_some();
        let known = known.unwrap_or_default();
        let word = |is: bool, yes: &str, no: &str| if is { yes } else { no }.to_owned();
        Ok(UnitState {
            active: word(known.is_active, "active", "inactive"),
            sub: word(known.is_active, "running", "dead"),
            enabled: match exists {
                true => word(known.is_enabled, "enabled", "disabled"),
                false => String::new(),
            },
            needs_reload: known.loaded.is_some() && known.loaded != text,
            main_process: (known.is_active && unit == self.unit()).then_some(MAIN_PROCESS),
            ..UnitState::default()
        })
    }

    async fn journal(
        &self,
        _unit: &str,
        _since: Timestamp,
        _lines: u32,
    ) -> Result<Vec<String>, CommandError> {
        Ok(Vec::new())
    }
}
