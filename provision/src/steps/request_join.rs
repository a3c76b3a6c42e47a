//! An agent asks the server's join service for a token, over SSH with both keys pinned.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use orch_contract::{Action, Change, ExitCode, JoinGrant, NodeName, Subject};
use orch_runner::{
    Check, ExitCoded, Probe, Step, StepFailure, StepReport, Wait, WaitError, error_chain,
};
use orch_ssh::client::{JoinError, Server, request_join};
use orch_ssh::keys::{KeyError, read_known_host, read_private_key};
use serde::Deserialize;

use super::Context;
use crate::k3s::paths;
use crate::system::{FileError, Files};

const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// A node that was just added may ask before the server has been told of its key.
const UNKNOWN_KEY_PATIENCE: Duration = Duration::from_secs(20);
/// A service that asks for more time than this is not believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Certificates and tokens tolerate less than this.
const TOLERATED_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(60);

/// Why this node has no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestJoinError {
    #[error("this node's join keys cannot be used; provision it from the host, which uploads them")]
    Keys(#[from] KeyError),
    #[error("this node may not join")]
    Join(#[source] JoinError),
    #[error("the server granted no token in time; is it provisioned and up?")]
    Wait(#[source] WaitError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for RequestJoinError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Join
    }
}

/// How this node belongs to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    /// It joined earlier and has credentials of its own.
    Old,
    /// It holds a token that K3s has not used yet.
    New,
}

/// The part of a kubeconfig that says where the node's certificate is.
#[derive(Deserialize)]
struct Kubeconfig {
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedUser {
    user: User,
}

#[derive(Deserialize)]
struct User {
    #[serde(rename = "client-certificate")]
    client_certificate: Option<String>,
}

pub(crate) struct RequestJoin<'a> {
    pub(crate) context: Context<'a>,
}

impl RequestJoin<'_> {
    /// Why this node must ask; None if it has joined.
    fn needed(&self) -> Result<Option<String>, FileError> {
        let files = self.context.system.files;
        if !has_certificate(files)? {
            return Ok(Some("this node has not joined yet".to_owned()));
        }
        Ok(match files.mode(Path::new(paths::AGENT_TOKEN))? {
            // K3s reads its token file at each start.
            None => Some(format!("{} is missing", paths::AGENT_TOKEN)),
            Some(mode) if mode & 0o077 != 0 => {
                Some(format!("{} can be read by others", paths::AGENT_TOKEN))
            }
            Some(_) => None,
        })
    }

    fn server(&self) -> Result<Server, KeyError> {
        let config = self.context.config;
        Ok(Server {
            address: SocketAddr::new(config.server.address, config.server.join_port),
            server_keys: read_known_host(&config.join.known_host)?,
            client_key: Arc::new(read_private_key(&config.join.client_key)?),
        })
    }

    async fn ask(&self, report: &StepReport<'_>) -> Result<(), RequestJoinError> {
        let config = self.context.config;
        let server = self.server()?;
        let wait = Wait {
            condition: format!("a join token from {}", server.address),
            timeout: Duration::from_secs(config.timeouts.join_seconds),
            interval: RETRY_INTERVAL,
        };
        let patience = Mutex::new(Patience::default());
        let grant = wait
            .until(report, || ask_once(&server, &config.node.name, &patience))
            .await
            .map_err(RequestJoinError::Wait)?
            .map_err(RequestJoinError::Join)?;
        self.warn_of_differences(&grant, report);
        self.context.system.files.write(
            Path::new(paths::AGENT_TOKEN),
            grant.token.expose().as_bytes(),
            0o600,
        )?;
        Ok(())
    }

    fn warn_of_differences(&self, grant: &JoinGrant, report: &StepReport<'_>) {
        let config = self.context.config;
        if grant.server_url != config.server.url() {
            report.warn(format!(
                "the server calls itself {}, this node will reach it at {}",
                grant.server_url,
                config.server.url()
            ));
        }
        let ttl = SignedDuration::try_from(config.join.token_ttl()).unwrap_or_default();
        let difference = Timestamp::now()
            .duration_until(grant.expires_at - ttl)
            .abs();
        if difference > TOLERATED_CLOCK_DIFFERENCE {
            report.warn(format!(
                "this node's clock and the server's differ by about {} s; certificates may be refused",
                difference.as_secs()
            ));
        }
    }
}

/// What earlier questions of one run say about the next.
#[derive(Default)]
struct Patience {
    unknown_since: Option<Instant>,
    /// The service wants to be left alone until then, and had this to say.
    not_before: Option<(Instant, String)>,
}

impl Patience {
    /// What there is to wait for without asking.
    fn hold(&self, now: Instant) -> Option<String> {
        let (until, said) = self.not_before.as_ref()?;
        (now < *until).then(|| said.clone())
    }

    /// What to wait for after an answer that may still come right; None: it will not.
    fn judge(&mut self, error: &JoinError, now: Instant) -> Option<String> {
        let patient = match error {
            JoinError::KeyRejected { .. } => {
                let since = *self.unknown_since.get_or_insert(now);
                now.duration_since(since) < UNKNOWN_KEY_PATIENCE
            }
            other => other.is_transient(),
        };
        if !patient {
            return None;
        }
        let said = error_chain(error).join(": ");
        self.not_before = error
            .retry_after()
            .map(|wait| (now + wait.min(LONGEST_RETRY_AFTER), said.clone()));
        Some(said)
    }
}

/// Asks once, unless the service has said when to ask again.
async fn ask_once(
    server: &Server,
    node: &NodeName,
    patience: &Mutex<Patience>,
) -> Result<Probe<JoinGrant>, JoinError> {
    let patience = || patience.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(said) = patience().hold(Instant::now()) {
        return Ok(Probe::Pending(said));
    }
    let error = match request_join(server, node).await {
        Ok(grant) => return Ok(Probe::Met(grant)),
        Err(error) => error,
    };
    match patience().judge(&error, Instant::now()) {
        Some(said) => Ok(Probe::Pending(said)),
        None => Err(error),
    }
}

/// Whether the kubelet's kubeconfig names a certificate that is there.
fn has_certificate(files: &dyn Files) -> Result<bool, FileError> {
    let Some(text) = files.read_text(Path::new(paths::KUBELET_KUBECONFIG))? else {
        return Ok(false);
    };
    let Ok(kubeconfig) = serde_saphyr::from_str::<Kubeconfig>(&text) else {
        return Ok(false);
    };
    let certificate = kubeconfig
        .users
        .into_iter()
        .find_map(|named| named.user.client_certificate);
    match certificate {
        Some(path) => files.exists(Path::new(&path)),
        None => Ok(false),
    }
}

#[async_trait]
impl Step for RequestJoin<'_> {
    type Output = Membership;

    fn name(&self) -> &'static str {
        "request_join"
    }

    fn title(&self) -> String {
        format!("Join {}", self.context.config.server.address)
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<Membership>, StepFailure> {
        Ok(match self.needed().map_err(RequestJoinError::File)? {
            None => Check::Satisfied(Membership::Old),
            Some(reason) => {
                let token = Change::new(
                    Subject::Membership,
                    paths::AGENT_TOKEN,
                    Action::Request,
                    format!("is to be asked for: {reason}"),
                );
                Check::Needed(vec![token].into())
            }
        })
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<Membership, StepFailure> {
        self.ask(report).await?;
        Ok(Membership::New)
    }

    fn planned(&self) -> Membership {
        Membership::New
    }
}

#[cfg(test)]
mod tests {
    use orch_contract::{
        ClusterKeys, JOIN_SCHEMA, JoinResponse, JoinToken, NodeConfig, RefusalReason,
    };
    use orch_contract::{Event, JoinRefusal};
    use orch_runner::{Recorder, Runner};
    use orch_ssh::keys::ensure_cluster_keys;
    use orch_ssh::server::{
        Audit, AuditEvent, FactsSource, Grantor, JoinService, KeySource, Limits,
    };
    use orch_ssh::{AuthorizedKeys, PrivateKey};
    use std::sync::Mutex;
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing::{Machine, agent_config};

    /// Not ready the first time, then grants.
    #[derive(Default)]
    struct SlowServer(Mutex<u32>);

    #[async_trait]
    impl Grantor for SlowServer {
        async fn grant(&self, node: &NodeName) -> JoinResponse {
            let mut asked = self.0.lock().unwrap();
            *asked += 1;
            if *asked == 1 {
                return JoinResponse::Refused(JoinRefusal::new(
                    RefusalReason::NotReady,
                    "K3s is starting",
                ));
            }
            JoinResponse::Granted(JoinGrant {
                schema: JOIN_SCHEMA,
                node: node.clone(),
                server_url: "https://127.0.0.1:6443".to_owned(),
                token: JoinToken::parse("K10abc::id.topsecret").unwrap(),
                expires_at: Timestamp::now() + SignedDuration::from_secs(600),
            })
        }
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

    struct NoFacts;

    #[async_trait]
    impl FactsSource for NoFacts {
        async fn facts(&self) -> Result<Vec<u8>, String> {
            Err("no facts".to_owned())
        }
    }

    struct NoAudit;

    impl Audit for NoAudit {
        fn record(&self, _: AuditEvent) {}
    }

    /// A real join service on the loopback interface, and an agent's configuration for it.
    async fn serve(directory: &Path) -> (NodeConfig, tokio::task::JoinHandle<()>) {
        let layout = ClusterKeys::new(directory);
        let node: NodeName = "agent".parse().unwrap();
        ensure_cluster_keys(&layout, std::slice::from_ref(&node)).unwrap();
        let text = std::fs::read_to_string(layout.authorized_keys()).unwrap();
        let service = JoinService::new(
            Limits::default(),
            Arc::new(SlowServer::default()),
            Arc::new(NoFacts),
            Arc::new(Keys(
                read_private_key(&layout.host_key()).unwrap(),
                AuthorizedKeys::parse(&text).unwrap(),
            )),
            Arc::new(NoAudit),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = agent_config();
        config.server.address = "127.0.0.1".parse().unwrap();
        config.server.join_port = listener.local_addr().unwrap().port();
        config.join.client_key = layout.client_key(&node);
        config.join.known_host = layout.host_public_key();
        (config, tokio::spawn(service.run(listener)))
    }

    #[tokio::test]
    async fn the_token_is_asked_for_until_the_server_is_ready_and_never_reported() {
        let directory = tempfile::tempdir().unwrap();
        let (config, _server) = serve(directory.path()).await;
        let machine = Machine::fit();
        let recorder = Recorder::default();
        let step = RequestJoin {
            context: machine.context(&config),
        };
        let membership = Runner::new(&recorder, false).run(&step).await.unwrap();
        assert_eq!(membership, Membership::New);
        assert_eq!(
            machine.files.text(paths::AGENT_TOKEN).unwrap(),
            "K10abc::id.topsecret"
        );
        let mode = machine.files.mode(Path::new(paths::AGENT_TOKEN)).unwrap();
        assert_eq!(mode, Some(0o600));
        let events = recorder.events();
        assert!(events.iter().any(|event| matches!(
            event,
            Event::Waiting { observed, .. } if observed.contains("K3s is starting")
        )));
        assert!(
            !serde_json::to_string(&events)
                .unwrap()
                .contains("topsecret")
        );
    }

    #[tokio::test]
    async fn another_server_key_is_final_and_names_both() {
        let directory = tempfile::tempdir().unwrap();
        let (mut config, _server) = serve(directory.path()).await;
        let other = ClusterKeys::new(directory.path().join("other"));
        ensure_cluster_keys(&other, &[]).unwrap();
        config.join.known_host = other.host_public_key();
        let machine = Machine::fit();
        let recorder = Recorder::default();
        let step = RequestJoin {
            context: machine.context(&config),
        };
        let failure = Runner::new(&recorder, false).run(&step).await.unwrap_err();
        assert_eq!(failure.exit_code, ExitCode::Join);
        let message = error_chain(failure.error()).join(": ");
        assert_eq!(message.matches("SHA256:").count(), 2, "{message}");
        assert_eq!(machine.files.text(paths::AGENT_TOKEN), None);
    }

    #[test]
    fn a_service_that_wants_to_be_left_alone_is() {
        let refused = |reason, seconds| JoinError::Refused {
            reason,
            message: "again later".to_owned(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let mut patience = Patience::default();
        let now = Instant::now();
        assert_eq!(patience.hold(now), None);
        let said = patience.judge(&refused(RefusalReason::RateLimited, 7), now);
        assert!(said.unwrap().contains("again later"));
        assert!(patience.hold(now + Duration::from_secs(6)).is_some());
        assert_eq!(patience.hold(now + Duration::from_secs(7)), None);
        // Not for ever, and not for a reason that time does not change.
        patience.judge(&refused(RefusalReason::RateLimited, u64::MAX), now);
        assert_eq!(patience.hold(now + LONGEST_RETRY_AFTER), None);
        assert_eq!(
            patience.judge(&refused(RefusalReason::WrongNode, 7), now),
            None
        );
    }

    #[tokio::test]
    async fn a_node_that_has_joined_does_not_ask_again() {
        let machine = Machine::fit();
        let config = agent_config();
        let step = RequestJoin {
            context: machine.context(&config),
        };
        machine.files.put(paths::AGENT_TOKEN, "t", 0o600);
        machine.files.put(
            paths::KUBELET_KUBECONFIG,
            "users:\n- name: default\n  user:\n    client-certificate: /data/client-kubelet.crt\n",
            0o600,
        );
        // The kubeconfig alone is written before the server has answered.
        assert!(step.needed().unwrap().is_some());
        machine.files.put("/data/client-kubelet.crt", "cert", 0o600);
        assert_eq!(step.needed().unwrap(), None);
        machine.files.put(paths::AGENT_TOKEN, "t", 0o644);
        assert!(step.needed().unwrap().unwrap().contains("read by others"));
    }
}
