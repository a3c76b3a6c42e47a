use std::path::Path;

use orch_contract::JoinToken;
use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::system::FakeCommands;
use crate::testing::{server_config, servers_config};

const SERVER_TOKEN: &str = "K10abc::server:topsecret";
const ETCD: &str = "etcd/member";
const LIST: &str = "get secrets";
const LEASES: &str = "get leases";
const DELETE: &str = "delete secret";

#[derive(Default)]
struct Told(Mutex<Vec<AuditEvent>>);

impl Audit for Told {
    fn record(&self, event: AuditEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// A mint in front of a K3s that answers what it is told to.
struct Scene {
    mint: TokenMint<FakeCommands>,
    told: Arc<Told>,
    kubeconfig: NamedTempFile,
    server_data: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self::of(&server_config())
    }

    fn of(config: &NodeConfig) -> Self {
        let kubeconfig = NamedTempFile::new().unwrap();
        let told = Arc::new(Told::default());
        let server_data = tempfile::tempdir().unwrap();
        let commands = FakeCommands::default();
        let cluster = ClusterTokens::new(commands, kubeconfig.path(), server_data.path());
        let mint = TokenMint::of(cluster, config, Arc::clone(&told) as _);
        let scene = Self {
            mint,
            told,
            kubeconfig,
            server_data,
        };
        scene.kubectl("kube-system", LIST, 0, "");
        scene.kubectl("kube-system", DELETE, 0, "");
        scene.kubectl("kube-system", "delete node", 0, "");
        scene.lease("");
        scene.token("aaaaaa");
        scene
    }

    fn kubectl(&self, namespace: &str, what: &str, status: i32, output: &str) {
        let command = format!(
            "{} kubectl --kubeconfig {} --request-timeout=10s --namespace={namespace} {what}",
            paths::BINARY,
            self.kubeconfig.path().display()
        );
        self.mint.cluster.commands.answer(&command, status, output);
    }

    fn lease(&self, renewed: &str) {
        self.kubectl("kube-node-lease", LEASES, 0, &format!("agent\t{renewed}\n"));
    }

    fn token(&self, id: &str) {
        let output = format!("a warning\nK10abc::{id}.topsecret\n");
        self.answer_create(0, &output);
    }

    fn answer_create(&self, status: i32, output: &str) {
        let command = format!("{} token create", paths::BINARY);
        self.mint.cluster.commands.answer(&command, status, output);
    }

    /// What K3s has once it has made a cluster or joined one.
    fn put_data(&self, datastore: &str) {
        let path = self.server_data.path();
        std::fs::create_dir_all(path.join("db").join(datastore)).unwrap();
        if datastore == ETCD {
            std::fs::write(path.join("db/etcd/name"), "").unwrap();
        }
        std::fs::write(path.join("token"), format!("{SERVER_TOKEN}\n")).unwrap();
    }

    async fn ask_as_server(&self, name: &str) -> Result<JoinGrant, JoinRefusal> {
        self.mint.admit(&member(name, Role::Server)).await
    }

    async fn ask(&self) -> Result<JoinGrant, String> {
        self.mint.mint(&"agent".parse().unwrap()).await
    }

    /// What was deleted, command by command.
    fn deleted(&self) -> Vec<Vec<String>> {
        let asked = self.mint.cluster.commands.asked();
        let deletions = asked.into_iter().filter_map(|invocation| {
            let secrets = invocation
                .arguments
                .iter()
                .position(|word| word == "secret")?;
            Some(invocation.arguments[secrets + 1..].to_vec())
        });
        deletions.collect()
    }

    fn told(&self, kind: AuditKind) -> Vec<String> {
        let told = self.told.0.lock().unwrap();
        let of_kind = told.iter().filter(|event| event.kind == kind);
        of_kind.map(|event| event.what.clone()).collect()
    }
}

fn member(name: &str, role: Role) -> Member {
    let name = name.parse().unwrap();
    Member { name, role }
}

#[tokio::test]
async fn a_server_gets_the_servers_token_and_an_agent_never_does() {
    let scene = Scene::of(&servers_config(0));
    scene.put_data(ETCD);
    let grant = scene.ask_as_server("s1").await.unwrap();
    assert_eq!(grant.token, JoinToken::parse(SERVER_TOKEN).unwrap());
    assert_eq!((grant.role, grant.expires_at), (Role::Server, None));
    let asked = scene.mint.cluster.commands.asked_lines();
    assert!(
        asked
            .iter()
            .any(|line| line.contains("delete node s1 --ignore-not-found")),
        "{asked:?}"
    );
    assert_eq!(
        scene.deleted(),
        [["s1.node-password.k3s", "--ignore-not-found"]]
    );
    assert!(!asked.join("\n").contains("topsecret") && !asked.join("\n").contains("token create"));
    let agent = scene.mint.admit(&member("s1", Role::Agent)).await.unwrap();
    assert_eq!(agent.role, Role::Agent);
    assert!(!agent.token.is_a_servers());
    assert!(!format!("{grant:?}").contains("topsecret"));
}

#[tokio::test]
async fn a_second_server_waits_for_the_first_to_have_joined() {
    let scene = Scene::of(&servers_config(0));
    scene.put_data(ETCD);
    scene.ask_as_server("s1").await.unwrap();
    let refusal = scene.ask_as_server("s2").await.unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::InTurn);
    assert!(refusal.retry_after_seconds.is_some() && refusal.message.contains("s1"));
    scene.kubectl("kube-node-lease", LEASES, 0, "s1\t2026-01-02T03:04:05Z\n");
    scene.ask_as_server("s2").await.unwrap();
}

#[tokio::test]
async fn what_a_server_has_decides_whether_another_may_make_a_cluster() {
    let scene = Scene::of(&servers_config(1));
    let reason = async |scene: &Scene| scene.ask_as_server("s0").await.unwrap_err().reason;
    assert_eq!(reason(&scene).await, RefusalReason::NoCluster);
    // One that stands still is a cluster all the same.
    scene.put_data(ETCD);
    scene.kubectl("kube-node-lease", LEASES, 1, "connection refused");
    assert_eq!(reason(&scene).await, RefusalReason::NotReady);
    std::fs::remove_file(scene.kubeconfig.path()).unwrap();
    assert_eq!(reason(&scene).await, RefusalReason::NotReady);
    let scene = Scene::of(&servers_config(1));
    scene.put_data("state.db");
    let refusal = scene.ask_as_server("s0").await.unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::NotReady);
    assert!(refusal.message.contains("SQLite"), "{}", refusal.message);
}

#[tokio::test]
async fn a_server_s_token_that_is_none_is_not_handed_out() {
    let scene = Scene::of(&servers_config(0));
    scene.put_data(ETCD);
    for content in ["", "K10abc::abc123.topsecret", "two words"] {
        std::fs::write(scene.server_data.path().join("token"), content).unwrap();
        let refusal = scene.ask_as_server("s1").await.unwrap_err();
        assert_eq!(refusal.reason, RefusalReason::NotReady);
        assert!(
            content.is_empty() || !refusal.message.contains(content),
            "{}",
            refusal.message
        );
    }
}

#[tokio::test]
async fn a_token_that_another_server_made_for_a_node_dies_first() {
    let scene = Scene::of(&servers_config(0));
    scene.ask().await.unwrap();
    scene.kubectl(
        "kube-system",
        LIST,
        0,
        "bootstrap-token-aaaaaa\t2999-01-01T00:00:00Z\torch: join of node agent\n\
         bootstrap-token-gggggg\t2999-01-01T00:00:00Z\torch: join of node agent\n",
    );
    scene.token("bbbbbb");
    scene.ask().await.unwrap();
    let deleted = &scene.deleted()[1];
    assert!(
        deleted.contains(&"bootstrap-token-gggggg".to_owned()),
        "{deleted:?}"
    );
}

#[tokio::test]
async fn a_token_is_revoked_when_the_node_has_joined() {
    let scene = Scene::new();
    let grant = scene.ask().await.unwrap();
    assert_eq!(grant.token.expose(), "K10abc::aaaaaa.topsecret");
    scene.mint.revoke_what_is_over().await.unwrap();
    scene.lease("2026-01-02T03:04:05.000000Z");
    scene.mint.revoke_what_is_over().await.unwrap();
    assert_eq!(
        scene.deleted(),
        [
            ["agent.node-password.k3s", "--ignore-not-found"],
            ["bootstrap-token-aaaaaa", "--ignore-not-found"]
        ]
    );
    assert_eq!(
        scene.told(AuditKind::TokenRevoked),
        ["token aaaaaa: the node has joined"]
    );
    // Nothing is out: the cluster is left alone.
    let asked = scene.mint.cluster.commands.asked().len();
    scene.mint.revoke_what_is_over().await.unwrap();
    assert_eq!(scene.mint.cluster.commands.asked().len(), asked);
}

#[tokio::test]
async fn a_node_that_asks_again_loses_its_earlier_token_first() {
    let scene = Scene::new();
    scene.ask().await.unwrap();
    scene.token("bbbbbb");
    scene.ask().await.unwrap();
    assert_eq!(
        scene.deleted()[1],
        [
            "agent.node-password.k3s",
            "bootstrap-token-aaaaaa",
            "--ignore-not-found"
        ]
    );
    // A K3s that cannot delete the earlier token makes no further one.
    scene.kubectl("kube-system", DELETE, 1, "etcd is away");
    let created = |scene: &Scene| {
        let lines = scene.mint.cluster.commands.asked_lines();
        lines
            .iter()
            .filter(|line| line.contains("token create"))
            .count()
    };
    let before = created(&scene);
    assert!(scene.ask().await.unwrap_err().contains("etcd is away"));
    assert_eq!(created(&scene), before);
    let node = "agent".parse().unwrap();
    assert_eq!(
        scene.mint.outstanding().as_ref().unwrap().ids_of(&node),
        ["bbbbbb"]
    );
}

#[tokio::test]
async fn a_service_that_starts_again_knows_the_tokens_that_are_out() {
    let scene = Scene::new();
    scene.kubectl(
        "kube-system",
        LIST,
        0,
        "bootstrap-token-cccccc\t2000-01-01T00:00:00Z\torch: join of node agent\n\
         bootstrap-token-dddddd\t2000-01-01T00:00:00Z\tan administrator's\n",
    );
    scene.mint.revoke_what_is_over().await.unwrap();
    assert_eq!(
        scene.deleted(),
        [["bootstrap-token-cccccc", "--ignore-not-found"]]
    );
    assert_eq!(
        scene.told(AuditKind::TokenRevoked),
        ["token cccccc: its time is up"]
    );
}

#[tokio::test]
async fn a_mint_that_was_cut_off_leaves_no_unknown_token() {
    let scene = Scene::new();
    scene.answer_create(137, "");
    scene.ask().await.unwrap_err();
    // The command had done its work before it ended.
    scene.kubectl(
        "kube-system",
        LIST,
        0,
        "bootstrap-token-eeeeee\t2999-01-01T00:00:00Z\torch: join of node agent\n",
    );
    scene.token("ffffff");
    scene.ask().await.unwrap();
    assert!(scene.deleted()[1].contains(&"bootstrap-token-eeeeee".to_owned()));
}

#[tokio::test]
async fn a_failed_deletion_is_tried_again() {
    let scene = Scene::new();
    scene.ask().await.unwrap();
    scene.mint.revoke_what_is_over().await.unwrap();
    scene.lease("1");
    scene.kubectl("kube-system", DELETE, 1, "no");
    assert!(scene.mint.revoke_what_is_over().await.is_err());
    scene.kubectl("kube-system", DELETE, 0, "");
    scene.mint.revoke_what_is_over().await.unwrap();
    assert_eq!(scene.told(AuditKind::TokenRevoked).len(), 1);
}

#[tokio::test]
async fn what_is_no_bootstrap_token_is_not_handed_out() {
    let scene = Scene::new();
    for output in ["", "K10abc::server:password", "two words"] {
        scene.answer_create(0, output);
        let problem = scene.ask().await.unwrap_err();
        assert!(output.is_empty() || !problem.contains(output), "{problem}");
    }
}

#[tokio::test]
async fn no_secret_is_in_an_argument_or_an_event() {
    let scene = Scene::new();
    scene.ask().await.unwrap();
    scene.ask().await.unwrap();
    let lines = scene.mint.cluster.commands.asked_lines().join("\n");
    assert!(!lines.contains("topsecret"), "{lines}");
    let told = format!("{:?}", scene.told.0.lock().unwrap());
    assert!(!told.contains("topsecret"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_too_long_is_told_to_ask_again() {
    let Scene { mint, .. } = Scene::new();
    let mint = Arc::new(mint);
    let all = u32::try_from(CONCURRENT_MINTS).unwrap();
    let busy = Arc::clone(&mint.turns).acquire_many_owned(all).await;
    let shared = SharedMint(Arc::clone(&mint));
    let JoinResponse::Refused(refusal) = shared.grant(&member("agent", Role::Agent)).await else {
        panic!("nobody had a turn to give");
    };
    assert_eq!(refusal.reason, RefusalReason::NotReady);
    assert_eq!(mint.cluster.commands.asked(), []);
    drop(busy);
}

#[tokio::test]
async fn a_k3s_that_is_not_up_is_not_asked() {
    let scene = Scene::new();
    std::fs::remove_file(scene.kubeconfig.path()).unwrap();
    assert!(!Path::new(scene.kubeconfig.path()).exists());
    assert_eq!(scene.ask().await.unwrap_err(), "K3s is not up yet");
    scene.mint.revoke_what_is_over().await.unwrap();
    assert_eq!(scene.mint.cluster.commands.asked(), []);
}
