//! Several servers: who makes the cluster, who joins it, and that it is never made twice.

use orch_contract::{Event, ExitCode, RefusalReason, Role};
use orch_runner::{Recorder, StepFailure, error_chain};

use crate::k3s::paths;
use crate::testing::grants::Grants;
use crate::testing::node::{ETCD, Node, SQLITE, lines};

/// A port at which nobody listens.
async fn closed_port() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// What another server's join service does.
#[derive(Clone, Copy)]
enum Other {
    Grants,
    Refuses(RefusalReason),
    IsAway,
}

/// A server of three, or an agent of theirs, and the services of those that it asks.
async fn scene(mut node: Node, others: [Other; 2]) -> (Node, Vec<Grants>) {
    let mut services = Vec::new();
    let layout = node.layout();
    let own = node.config.node.name.clone();
    let asked = std::iter::once(&mut node.config.servers.first)
        .chain(&mut node.config.servers.others)
        .filter(|server| server.name != own);
    for (server, other) in asked.zip(others) {
        let service = match other {
            Other::Grants => Grants::serve(&layout).await,
            Other::Refuses(reason) => Grants::refusing(&layout, reason).await,
            Other::IsAway => {
                server.join_port = closed_port().await;
                continue;
            }
        };
        server.join_port = service.port;
        services.push(service);
    }
    node.config.timeouts.join_seconds = 3;
    (node, services)
}

async fn server(index: usize, others: [Other; 2]) -> (Node, Vec<Grants>) {
    scene(Node::one_of_three(index, [1; 3]), others).await
}

fn config_of(node: &Node) -> String {
    node.machine.files.text(paths::CONFIG).unwrap_or_default()
}

async fn failure(node: &Node) -> (StepFailure, String) {
    let recorder = Recorder::default();
    let failure = node.run(node.system(), &recorder, false).await.unwrap_err();
    let text = error_chain(failure.error()).join(": ");
    (failure, text)
}

/// Neither configured nor started.
fn assert_untouched(node: &Node) {
    assert_eq!(config_of(node), "");
    let done = node.take_done();
    assert!(
        !done.contains(&"restart k3s.service".to_owned()),
        "{done:?}"
    );
}

const NO_CLUSTER: Other = Other::Refuses(RefusalReason::NoCluster);
const NOT_READY: Other = Other::Refuses(RefusalReason::NotReady);

#[tokio::test]
async fn the_first_server_makes_the_cluster_when_no_other_has_one() {
    let (node, _services) = server(0, [NO_CLUSTER; 2]).await;
    // Left from a cluster that is no more.
    let files = &node.machine.files;
    files.put(paths::JOIN_TOKEN, "K10old::server:x", 0o600);
    node.up(false).await;
    assert!(
        config_of(&node).contains("cluster-init: true"),
        "{}",
        config_of(&node)
    );
    assert_eq!(node.machine.files.text(paths::JOIN_TOKEN), None);
    assert_eq!(lines(&node.up(true).await), Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_may_have_the_cluster_unless_the_host_never_saw_one() {
    let (mut node, _services) = server(0, [NO_CLUSTER, Other::IsAway]).await;
    let (failed, text) = failure(&node).await;
    assert_eq!(failed.exit_code, ExitCode::Join);
    assert!(
        text.contains("would split it") && text.contains("s2: "),
        "{text}"
    );
    assert_untouched(&node);
    node.is_new_cluster = true;
    node.config.timeouts.join_seconds = 20;
    node.up(false).await;
    assert!(config_of(&node).contains("cluster-init: true"));
}

#[tokio::test]
async fn a_first_server_that_was_made_anew_joins_the_others() {
    // Whatever the host believes.
    for is_new_cluster in [false, true] {
        let (mut node, services) = server(0, [Other::IsAway, Other::Grants]).await;
        node.is_new_cluster = is_new_cluster;
        node.up(false).await;
        let config = config_of(&node);
        assert!(!config.contains("cluster-init"), "{config}");
        assert!(
            config.contains("server: https://127.0.0.1:6443"),
            "{config}"
        );
        assert_eq!(services[0].granted(), 1);
        node.take_done();
        assert_eq!(lines(&node.up(false).await), Vec::<String>::new());
        assert_eq!(services[0].granted(), 1);
        assert_eq!(node.take_done(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_cluster_that_stands_still_is_not_made_a_second_time() {
    let (mut node, _services) = server(0, [NO_CLUSTER, NOT_READY]).await;
    node.is_new_cluster = true;
    let (_, text) = failure(&node).await;
    assert!(text.contains("s2: ") && text.contains("not here"), "{text}");
    assert_untouched(&node);
}

#[tokio::test]
async fn a_joining_server_asks_them_in_order_and_keeps_its_token() {
    let (node, services) = server(1, [NOT_READY, Other::Grants]).await;
    node.up(false).await;
    assert_eq!(services[1].granted(), 1);
    let files = &node.machine.files;
    assert!(files.text(paths::JOIN_TOKEN).is_some());
    assert!(config_of(&node).contains("token-file: /var/lib/orch/join-token"));
    assert_eq!(lines(&node.up(true).await), Vec::<String>::new());
    // Its mode is put right without a new one, and without a restart.
    node.take_done();
    files.put(paths::JOIN_TOKEN, "K10abc::server:x", 0o644);
    node.up(false).await;
    let mode = orch_mode(&node);
    assert_eq!((mode, services[1].granted()), (Some(0o600), 1));
    assert_eq!(node.take_done(), Vec::<String>::new());
    // Wiped, as after a snapshot was restored elsewhere, it joins again.
    crate::system::Files::remove(files, std::path::Path::new(ETCD)).unwrap();
    node.up(false).await;
    assert_eq!(services[1].granted(), 2);
}

fn orch_mode(node: &Node) -> Option<u32> {
    let files: &dyn crate::system::Files = &node.machine.files;
    files.mode(std::path::Path::new(paths::JOIN_TOKEN)).unwrap()
}

#[tokio::test]
async fn a_server_that_may_not_make_the_cluster_waits_for_who_may() {
    let (mut node, _services) = server(2, [NO_CLUSTER; 2]).await;
    node.is_new_cluster = true;
    let (failed, text) = failure(&node).await;
    assert_eq!(failed.exit_code, ExitCode::Join);
    assert!(text.contains("s0: ") && text.contains("s1: "), "{text}");
    assert_untouched(&node);
}

#[tokio::test]
async fn a_cluster_in_sqlite_grows_from_its_own_server_and_no_other() {
    let (mut node, _services) = server(0, [NO_CLUSTER, Other::IsAway]).await;
    node.machine.files.put(SQLITE, "", 0o600);
    node.config.timeouts.join_seconds = 20;
    node.up(false).await;
    assert!(config_of(&node).contains("cluster-init: true"));
    for (others, said) in [
        ([NO_CLUSTER, Other::Grants], "of its own, in SQLite"),
        ([NO_CLUSTER, NOT_READY], "s2: "),
    ] {
        let (node, _services) = server(0, others).await;
        node.machine.files.put(SQLITE, "", 0o600);
        let (_, text) = failure(&node).await;
        assert!(text.contains(said), "{text}");
        assert_eq!(node.machine.files.text(paths::JOIN_TOKEN), None);
        assert_untouched(&node);
    }
    let (node, _services) = server(1, [Other::Grants; 2]).await;
    node.machine.files.put(SQLITE, "", 0o600);
    let (_, text) = failure(&node).await;
    assert!(text.contains("list it first"), "{text}");
    assert_untouched(&node);
}

#[tokio::test]
async fn a_server_with_data_goes_on_with_it_wherever_it_is_listed() {
    let (node, services) = server(1, [Other::Grants; 2]).await;
    node.put_etcd();
    node.up(false).await;
    assert!(config_of(&node).contains("cluster-init: true"));
    assert_eq!(services[0].granted() + services[1].granted(), 0);
}

#[tokio::test]
async fn a_server_that_is_granted_an_agents_token_does_not_use_it() {
    let node = Node::one_of_three(1, [1; 3]);
    // The list calls it an agent.
    let names = [node.config.node.name.clone()];
    orch_ssh::keys::ensure_cluster_keys(&node.layout(), &names).unwrap();
    let (node, _services) = scene(node, [Other::Grants; 2]).await;
    let (_, text) = failure(&node).await;
    assert!(text.contains("the token of a agent"), "{text}");
    assert_eq!(node.machine.files.text(paths::JOIN_TOKEN), None);
    assert_untouched(&node);
}

/// An agent of three servers.
fn agent() -> Node {
    let mut node = Node::new(Role::Agent);
    let mut servers = crate::testing::servers_config(0).servers;
    let all = std::iter::once(&mut servers.first).chain(&mut servers.others);
    for (index, server) in all.enumerate() {
        server.address = std::net::Ipv4Addr::LOCALHOST.into();
        server.api_port = 6443 + u16::try_from(index).unwrap();
    }
    node.config.servers = servers;
    node
}

#[tokio::test]
async fn an_agent_joins_through_any_server_that_answers_and_stays_with_it() {
    let (mut node, services) = scene(agent(), [Other::IsAway, Other::Grants]).await;
    node.config.servers.others[1].join_port = closed_port().await;
    node.up(false).await;
    assert!(
        config_of(&node).contains("server: https://127.0.0.1:6444"),
        "{}",
        config_of(&node)
    );
    // The first server is back, or the second is gone: K3s knows them all by now.
    node.config.servers.others[0].join_port = closed_port().await;
    assert_eq!(lines(&node.up(true).await), Vec::<String>::new());
    assert_eq!(services[0].granted(), 1);
    // One that is no server any more is not what its configuration may name.
    node.config.servers.others.remove(0);
    node.take_done();
    let events = node.up(false).await;
    assert!(config_of(&node).contains("server: https://127.0.0.1:6443"));
    assert_eq!(node.take_done(), ["restart k3s-agent.service"]);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::NodeReady { .. }))
    );
}
