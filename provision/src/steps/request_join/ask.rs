//! Asks the servers' join services in their order, round after round: the first that grants is joined.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orch_contract::{Join, JoinGrant, NodeName, Server};
use orch_runner::{Probe, error_chain};
use orch_ssh::client::{self, JoinError, request_join};
use orch_ssh::keys::{KeyError, read_known_host, read_private_key};

/// A node that was just added may ask before a server has been told of its key.
const UNKNOWN_KEY_PATIENCE: Duration = Duration::from_secs(20);
/// Rounds in which a server must not have been there to count as one that has no cluster: a restart is shorter.
const UNSEEN_ROUNDS: u32 = 3;
/// A service that asks for more time than this is not believed.
pub(super) const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What the servers' answers come to.
#[derive(Debug)]
pub(super) enum Decision {
    /// One of them grants; the second is its URL.
    Join(JoinGrant, String),
    /// None of them has a cluster: this server makes it.
    Found,
}

/// When a server that has no data may make the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Founding {
    Never,
    /// When every other server has answered that it has no cluster.
    Unanimous,
    /// Also where nobody listens at a server's address, round after round: the host has never seen this cluster, or it is this
    /// server's own.
    Unseen,
}

/// Nobody lets this node in, and asking again would not change that.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("this node may not join")]
    One(#[source] JoinError),
    #[error("no server lets this node join:\n{}", reasons.join("\n"))]
    All { reasons: Vec<String> },
}

/// What one server said this time.
#[derive(Debug)]
enum Said {
    /// It has no cluster.
    NoCluster(String),
    /// Nobody answers there.
    Nothing(String),
    Later(String),
    /// The others would say the same.
    LaterAnywhere(String),
    Never(JoinError),
}

/// A server, and what its earlier answers say about the next question.
struct Asked {
    name: String,
    url: String,
    service: client::Server,
    patience: Mutex<Patience>,
}

/// The servers that a node asks.
pub(super) struct Servers {
    node: NodeName,
    founding: Founding,
    /// Rounds in which nobody spoke against a new cluster, and not everybody spoke.
    unseen: AtomicU32,
    all: Vec<Asked>,
}

impl Servers {
    pub(super) fn new<'a>(
        node: &NodeName,
        join: &Join,
        servers: impl Iterator<Item = &'a Server>,
        founding: Founding,
    ) -> Result<Self, KeyError> {
        let client_key = Arc::new(read_private_key(&join.client_key)?);
        let server_keys = read_known_host(&join.known_host)?;
        let all = servers.map(|server| Asked {
            name: server.name.to_string(),
            url: server.url(),
            service: client::Server {
                address: SocketAddr::new(server.address, server.join_port),
                server_keys: server_keys.clone(),
                client_key: Arc::clone(&client_key),
            },
            patience: Mutex::default(),
        });
        Ok(Self {
            node: node.clone(),
            founding,
            unseen: AtomicU32::new(0),
            all: all.collect(),
        })
    }

    pub(super) fn addresses(&self) -> String {
        let all = self.all.iter();
        let addresses: Vec<_> = all.map(|asked| asked.service.address.to_string()).collect();
        addresses.join(" or ")
    }

    /// Asks each once, until one grants or speaks for all.
    pub(super) async fn ask(&self) -> Result<Probe<Decision>, Refused> {
        let mut said = Vec::new();
        for asked in &self.all {
            match asked.ask(&self.node).await {
                Ok(grant) => return Ok(Probe::Met(Decision::Join(grant, asked.url.clone()))),
                Err(Said::LaterAnywhere(text)) => {
                    return Ok(Probe::Pending(self.attributed(asked, &text)));
                }
                Err(other) => said.push(other),
            }
        }
        self.judge(said)
    }

    fn judge(&self, mut said: Vec<Said>) -> Result<Probe<Decision>, Refused> {
        let has_none = |said: &Said| match said {
            Said::NoCluster(_) => true,
            Said::Nothing(_) => self.founding == Founding::Unseen,
            Said::Later(_) | Said::LaterAnywhere(_) | Said::Never(_) => false,
        };
        if self.founding != Founding::Never && said.iter().all(has_none) {
            let has_said = |said: &Said| matches!(said, Said::NoCluster(_));
            let unseen = 1 + self.unseen.fetch_add(1, Ordering::Relaxed);
            if said.iter().all(has_said) || unseen >= UNSEEN_ROUNDS {
                return Ok(Probe::Met(Decision::Found));
            }
        } else {
            self.unseen.store(0, Ordering::Relaxed);
        }
        let is_over = said.iter().all(|said| matches!(said, Said::Never(_)));
        if is_over
            && said.len() == 1
            && let Some(Said::Never(error)) = said.pop()
        {
            return Err(Refused::One(error));
        }
        let reasons: Vec<_> = self
            .all
            .iter()
            .zip(&said)
            .map(|(asked, said)| self.attributed(asked, &said.text()))
            .collect();
        if is_over {
            return Err(Refused::All { reasons });
        }
        Ok(Probe::Pending(reasons.join("; ")))
    }

    /// Where there is one server, everybody knows whose words these are.
    fn attributed(&self, asked: &Asked, text: &str) -> String {
        match self.all.len() {
            1 => text.to_owned(),
            _ => format!("{}: {text}", asked.name),
        }
    }
}

impl Asked {
    /// Asks once, unless the service has said when to ask again.
    async fn ask(&self, node: &NodeName) -> Result<JoinGrant, Said> {
        let patience = || self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = patience().hold(Instant::now()) {
            return Err(held.into_said());
        }
        let error = match request_join(&self.service, node).await {
            Ok(grant) => return Ok(grant),
            Err(error) => error,
        };
        let Some(said) = patience().judge(&error, Instant::now()) else {
            return Err(Said::Never(error));
        };
        Err(if error.is_no_cluster() {
            Said::NoCluster(said)
        } else if error.is_unreachable() {
            Said::Nothing(said)
        } else if error.is_for_all_servers() {
            Said::LaterAnywhere(said)
        } else {
            Said::Later(said)
        })
    }
}

impl Held {
    fn into_said(self) -> Said {
        match self.is_for_all {
            true => Said::LaterAnywhere(self.said),
            false => Said::Later(self.said),
        }
    }
}

impl Said {
    fn text(&self) -> String {
        match self {
            Said::NoCluster(text)
            | Said::Nothing(text)
            | Said::Later(text)
            | Said::LaterAnywhere(text) => text.clone(),
            Said::Never(error) => error_chain(error).join(": "),
        }
    }
}

/// What a service said that wants to be left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    said: String,
    /// The others would say the same.
    is_for_all: bool,
}

/// What earlier questions of one run say about the next.
#[derive(Debug, Default)]
pub(super) struct Patience {
    unknown_since: Option<Instant>,
    /// The service wants to be left alone until then, and had this to say.
    not_before: Option<(Instant, Held)>,
}

impl Patience {
    /// What there is to wait for without asking.
    pub(super) fn hold(&self, now: Instant) -> Option<Held> {
        let (until, held) = self.not_before.as_ref()?;
        (now < *until).then(|| held.clone())
    }

    /// What to wait for after an answer that may still come right; None: it will not.
    pub(super) fn judge(&mut self, error: &JoinError, now: Instant) -> Option<String> {
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
        self.not_before = error.retry_after().map(|wait| {
            let held = Held {
                said: said.clone(),
                is_for_all: error.is_for_all_servers(),
            };
            (now + wait.min(LONGEST_RETRY_AFTER), held)
        });
        Some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(count: usize, founding: Founding) -> Servers {
        let directory = tempfile::tempdir().unwrap();
        let layout = orch_contract::ClusterKeys::new(directory.path());
        let node: NodeName = "me".parse().unwrap();
        orch_ssh::keys::ensure_cluster_keys(&layout, std::slice::from_ref(&node)).unwrap();
        let join = Join {
            client_key: layout.client_key(&node),
            known_host: layout.known_host(),
            ..Join::default()
        };
        let all: Vec<Server> = (0..count)
            .map(|index| Server {
                name: format!("s{index}").parse().unwrap(),
                address: "192.0.2.1".parse().unwrap(),
                api_port: 6443,
                join_port: 6222,
            })
            .collect();
        Servers::new(&node, &join, all.iter(), founding).unwrap()
    }

    fn no() -> Said {
        Said::NoCluster("no cluster".to_owned())
    }

    fn nothing() -> Said {
        Said::Nothing("refused".to_owned())
    }

    fn never() -> Said {
        let address = "192.0.2.1:6222".parse().unwrap();
        let fingerprint = "SHA256:x".to_owned();
        Said::Never(JoinError::KeyRejected {
            address,
            fingerprint,
        })
    }

    #[test]
    fn a_cluster_is_made_only_where_every_other_server_has_none() {
        let found = |founding, said: Vec<Said>| {
            let judged = servers(2, founding).judge(said);
            matches!(judged, Ok(Probe::Met(Decision::Found)))
        };
        assert!(found(Founding::Unanimous, vec![no(), no()]));
        assert!(found(Founding::Unseen, vec![no(), no()]));
        // A server that is away may have the cluster.
        assert!(!found(Founding::Unanimous, vec![no(), nothing()]));
        for other in [Said::Later("K3s is not up".to_owned()), never()] {
            assert!(!found(Founding::Unseen, vec![no(), other]));
        }
        assert!(!found(Founding::Never, vec![no(), no()]));
    }

    #[test]
    fn who_is_away_has_no_cluster_only_after_several_rounds_in_a_row() {
        let two = servers(2, Founding::Unseen);
        let found = |other: Said| {
            let judged = two.judge(vec![no(), other]);
            matches!(judged, Ok(Probe::Met(Decision::Found)))
        };
        assert!(!found(nothing()) && !found(nothing()));
        assert!(!found(Said::Later("K3s is not up".to_owned())));
        assert!(!found(nothing()) && !found(nothing()) && found(nothing()));
    }

    #[test]
    fn only_the_turn_of_another_server_holds_for_all_of_them() {
        let now = Instant::now();
        let held = |reason| {
            let mut patience = Patience::default();
            let refused = JoinError::Refused {
                reason,
                message: "later".to_owned(),
                retry_after: Some(Duration::from_secs(5)),
            };
            patience.judge(&refused, now);
            patience.hold(now).unwrap().is_for_all
        };
        assert!(held(orch_contract::RefusalReason::InTurn));
        assert!(!held(orch_contract::RefusalReason::RateLimited));
    }

    #[test]
    fn each_server_is_named_with_its_reason() {
        let two = servers(2, Founding::Never);
        let Ok(Probe::Pending(text)) = two.judge(vec![never(), nothing()]) else {
            panic!("the second may still come");
        };
        assert!(
            text.starts_with("s0: ") && text.ends_with("; s1: refused"),
            "{text}"
        );
        let refused = two.judge(vec![never(), never()]).unwrap_err().to_string();
        assert!(
            refused.contains("\ns0: ") && refused.contains("\ns1: "),
            "{refused}"
        );
        let one = servers(1, Founding::Never);
        assert!(matches!(one.judge(vec![never()]), Err(Refused::One(_))));
        let Ok(Probe::Pending(text)) = one.judge(vec![nothing()]) else {
            panic!("it may still come");
        };
        assert_eq!(text, "refused");
    }
}
