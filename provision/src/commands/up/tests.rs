//! A run of `up` from top to bottom.

use orch_contract::ClusterKeys;
use orch_runner::Recorder;
use orch_ssh::keys::ensure_cluster_keys;

use super::*;
use crate::system::{Services, sha256_hex};
use crate::testing::{Machine, server_config};

/// A server on a machine where everything that K3s itself does has happened.
fn server() -> (Machine, NodeConfig, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let layout = ClusterKeys::new(directory.path());
    ensure_cluster_keys(&layout, &[]).unwrap();
    let machine = Machine::fit();
    let mut config = server_config();
    config.join.host_key = layout.host_key();
    let files = &machine.files;
    files.put("/etc/orch/authorized_keys", "", 0o600);
    files.put("/opt/orch-provision", "program", 0o755);
    files.put("/var/lib/orch/artifacts/k3s", "BIN", 0o644);
    files.put(
        "/var/lib/orch/artifacts/sha256sum-amd64.txt",
        &format!("{}  k3s\n", sha256_hex(b"BIN")),
        0o644,
    );
    files.put(
        "/var/lib/rancher/k3s/agent/etc/cni/net.d/1.conflist",
        r#"{"plugins":[{"type":"bridge"}]}"#,
        0o600,
    );
    *machine.endpoints.status.lock().unwrap() = Some("200 OK".to_owned());
    machine
        .commands
        .answer("/usr/local/bin/k3s", 0, "k3s version v1.34.2+k3s1\n");
    machine.commands.answer(
        "/usr/local/bin/.k3s.orch-new",
        0,
        "k3s version v1.34.2+k3s1\n",
    );
    machine.commands.answer(
        "/usr/local/bin/k3s kubectl",
        0,
        r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
    );
    (machine, config, directory)
}

async fn up(machine: &Machine, config: &NodeConfig, dry_run: bool) -> Vec<Event> {
    let recorder = Recorder::default();
    let up = Up {
        context: machine.context(config),
        program: "/opt/orch-provision".into(),
        config_path: "/etc/orch/node.json".into(),
        is_root: true,
        is_new_cluster: false,
    };
    up.run(&recorder, dry_run).await.unwrap();
    recorder.events()
}

fn names(events: &[Event], pick: impl Fn(&Event) -> Option<&String>) -> Vec<String> {
    events
        .iter()
        .filter_map(|event| pick(event).cloned())
        .collect()
}

fn applied(events: &[Event]) -> Vec<String> {
    names(events, |event| match event {
        Event::StepApplied { step, .. } => Some(step),
        _ => None,
    })
}

fn outcome(events: &[Event]) -> Outcome {
    match events.last() {
        Some(Event::Summary { outcome, .. }) => *outcome,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_comes_up_in_order_and_a_second_run_changes_nothing() {
    let (machine, config, _directory) = server();
    let events = up(&machine, &config, false).await;
    let started = names(&events, |event| match event {
        Event::StepStarted { step, .. } => Some(step),
        _ => None,
    });
    assert_eq!(started, steps(&config));
    assert_eq!(outcome(&events), Outcome::Changed);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::NodeReady { .. }))
    );
    machine.files.take_writes();
    machine.services.take_done();
    let events = up(&machine, &config, false).await;
    assert_eq!(applied(&events), Vec::<String>::new());
    assert_eq!(outcome(&events), Outcome::Unchanged);
    assert!(machine.files.take_writes().is_empty());
    assert!(machine.services.take_done().is_empty());
}

#[tokio::test]
async fn a_changed_setting_restarts_k3s_and_nothing_else() {
    let (machine, mut config, _directory) = server();
    up(&machine, &config, false).await;
    machine.services.take_done();
    config.k3s.disable = vec!["traefik".to_owned()];
    let events = up(&machine, &config, false).await;
    assert_eq!(applied(&events), ["write_config", "start_server"]);
    assert_eq!(machine.services.take_done(), ["restart k3s.service"]);
}

#[tokio::test]
async fn a_dry_run_says_what_a_run_would_do_and_does_nothing() {
    let (machine, mut config, _directory) = server();
    up(&machine, &config, false).await;
    machine.files.take_writes();
    machine.services.take_done();
    config.k3s.disable = vec!["traefik".to_owned()];
    let events = up(&machine, &config, true).await;
    let planned = names(&events, |event| match event {
        Event::StepPlanned { step, .. } => Some(step),
        _ => None,
    });
    assert_eq!(planned, ["write_config", "start_server"]);
    assert_eq!(outcome(&events), Outcome::Planned);
    assert!(machine.files.take_writes().is_empty());
    assert!(machine.services.take_done().is_empty());
    assert!(
        machine
            .services
            .state("k3s.service")
            .await
            .unwrap()
            .is_active()
    );
}
