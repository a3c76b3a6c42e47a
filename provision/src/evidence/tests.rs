use orch_contract::{ExitCode, Secret};

use super::*;
use crate::system::Files;
use crate::testing::{Machine, agent_config, server_config};

async fn gathered(
    machine: &Machine,
    config: &NodeConfig,
    step: &str,
    reason: &str,
) -> Vec<Evidence> {
    let surroundings = Surroundings::new(machine.context(config), Timestamp::UNIX_EPOCH);
    let failure = StepFailure::new(ExitCode::Start, reason.to_owned());
    surroundings.evidence(step, &failure).await
}

fn titled<'a>(evidence: &'a [Evidence], title: &str) -> &'a [String] {
    let found = evidence.iter().find(|evidence| evidence.title == title);
    found.map_or(&[], |evidence| &evidence.lines)
}

#[tokio::test]
async fn a_k3s_that_does_not_start_leaves_its_journals_and_who_has_its_port() {
    let machine = Machine::fit();
    machine.commands.answer(
        "ss ",
        0,
        "LISTEN 0 1 127.0.0.1:6444 *:* users:((\"haproxy\",pid=7,fd=3))\nLISTEN 0 1 *:22 *:* users:((\"sshd\",pid=8,fd=3))\n",
    );
    machine.commands.answer(
        "tail -n 500 /var/lib/rancher/k3s/agent/containerd/containerd.log",
        0,
        "level=info msg=fine\nlevel=error msg=\"failed to load cni\"\n",
    );
    machine
        .files
        .symlink(Path::new("/usr/sbin/haproxy"), Path::new("/proc/7/exe"))
        .unwrap();
    let mut journal: Vec<String> = (0..100).map(|n| format!("level=info msg={n}")).collect();
    journal.push("E1118 21:20:24.257888  163970 kubelet.go:1] \"no sandbox\"".to_owned());
    journal.push("listen tcp 127.0.0.1:6444: bind: address already in use".to_owned());
    *machine.services.journal.lock().unwrap() = journal;
    let found = gathered(
        &machine,
        &agent_config(),
        "start_agent",
        "it does not start",
    )
    .await;
    let tail = titled(&found, "journal of k3s-agent.service");
    assert_eq!(tail.len(), LINES);
    assert!(tail.last().unwrap().contains("address already in use"));
    let errors = titled(
        &found,
        "last errors of the kubelet and the other components",
    );
    assert!(errors[0].contains("no sandbox"), "{errors:?}");
    let errors = titled(&found, "last errors of containerd");
    assert_eq!(errors, ["level=error msg=\"failed to load cni\""]);
    assert_eq!(
        titled(&found, "who listens"),
        ["port 6444: haproxy, process 7, /usr/sbin/haproxy"]
    );
}

#[tokio::test]
async fn a_full_disk_is_named() {
    let machine = Machine::fit();
    machine.files.put(
        "/proc/self/mountinfo",
        "1 2 0:3 / /proc rw - proc proc rw\n2 2 0:4 / /var/lib rw - ext4 /dev/sdb rw\n3 2 0:4 / /var/lib/docker/x rw - overlay overlay rw\n",
        0o444,
    );
    let config = server_config();
    let found = gathered(
        &machine,
        &config,
        "acquire_k3s",
        "write x: no space left on device",
    )
    .await;
    assert_eq!(
        titled(&found, "fullest file system"),
        ["/var/lib: 50 % used, 102400 of 204800 MiB free"]
    );
    // Half full is worth no line where something else failed.
    assert_eq!(gathered(&machine, &config, "acquire_k3s", "no").await, []);
}

#[tokio::test]
async fn missing_controllers_clocks_and_names_are_told_where_they_matter() {
    let machine = Machine::fit();
    let files = &machine.files;
    files.put("/sys/fs/cgroup/cgroup.controllers", "cpu pids", 0o444);
    files.put(
        "/etc/resolv.conf",
        "search x\nnameserver 192.0.2.53\n",
        0o644,
    );
    files.put("/run/systemd/timesync/x", "", 0o644);
    let config = server_config();
    let found = gathered(&machine, &config, "check_host", "no memory cgroup").await;
    assert_eq!(titled(&found, "control groups")[1], "missing: memory");
    let found = gathered(
        &machine,
        &config,
        "wait_ready",
        "x509: certificate has expired",
    )
    .await;
    assert!(titled(&found, "clock")[0].ends_with("not synchronised"));
    let reason =
        "cannot download https://github.com/k3s\ndns error: failed to lookup address information";
    let found = gathered(&machine, &config, "acquire_k3s", reason).await;
    assert_eq!(
        titled(&found, "name resolution"),
        [
            "no address was found for github.com",
            "/etc/resolv.conf names the resolvers 192.0.2.53"
        ]
    );
}

#[tokio::test]
async fn no_secret_of_the_node_is_evidence() {
    let machine = Machine::fit();
    let mut config = agent_config();
    let environment = &mut config.k3s.environment;
    environment.insert("PROXY".to_owned(), Secret::new("hunter1-proxy"));
    let settings = &mut config.k3s.config;
    settings.insert("vpn-auth".to_owned(), "hunter2-vpn".into());
    machine
        .files
        .put(paths::JOIN_TOKEN, "hunter3-token\n", 0o600);
    *machine.services.journal.lock().unwrap() = vec![
        "proxy hunter1-proxy refused, joinKey=hunter2-vpn; token hunter3-token".to_owned(),
        "token K10abc::server:hunter4".to_owned(),
        "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXI1In0.hunter5hunter5hunter5"
            .to_owned(),
        format!("\u{1b}[2J{}", "x".repeat(1000)),
    ];
    let found = gathered(&machine, &config, "start_agent", "no").await;
    let text = serde_json::to_string(&found).unwrap();
    assert!(!text.contains("hunter"), "{text}");
    let journal = titled(&found, "journal of k3s-agent.service");
    assert_eq!(journal.len(), 4);
    assert!(journal[3].len() < COLUMNS + 10 && !journal[3].contains('\u{1b}'));
}
