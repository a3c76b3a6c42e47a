//! A node that has not joined asks the servers' join services for a token, over SSH with both keys pinned.
//!
//! The first server that has no data asks, too: it makes the cluster only where no other server has one already.

mod ask;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use orch_contract::{Action, Change, ExitCode, JoinGrant, Role, Subject};
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport, Wait, WaitError};
use orch_ssh::keys::KeyError;
use serde::Deserialize;

use self::ask::{Decision, Founding, Refused, Servers};
use super::Context;
use crate::k3s::config::Place;
use crate::k3s::datastore::Datastore;
use crate::k3s::paths;
use crate::system::{FileError, Files};

const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Certificates and tokens tolerate less than this.
const TOLERATED_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(60);

/// Why this node has no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestJoinError {
    #[error("this node's join keys cannot be used; provision it from the host, which uploads them")]
    Keys(#[from] KeyError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the server granted no token in time; is it provisioned and up?")]
    Wait(#[source] WaitError),
    #[error(
        "this server has no data, and whether another one has the cluster cannot be told: making a second one would split \
         it; bring the other servers up, or replace those that are gone for good in orch.yaml by others; if no server has \
         the cluster any more, delete k3s.yaml beside orch.yaml, and the next `orch create` or `up` makes a new one"
    )]
    Undecided(#[source] WaitError),
    #[error(
        "this server has a cluster of its own, in SQLite, which joining would lose; list it first in orch.yaml, and its \
         data becomes the cluster's where the other servers have none, or run `orch-provision reset` on it"
    )]
    OwnCluster,
    #[error(
        "this server has a cluster of its own, in SQLite, which becomes everybody's only where no other server has one, and that \
         cannot be told; bring the other servers up, or replace those that are gone for good in orch.yaml by others"
    )]
    Undisputed(#[source] WaitError),
    #[error(
        "the join service grants the token of a {granted}, this node is a {wanted}; provision both from the host"
    )]
    OtherRole { granted: Role, wanted: Role },
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for RequestJoinError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Join
    }
}

/// How this node belongs to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    /// It holds a token that K3s has not used yet.
    pub(crate) is_new: bool,
    pub(crate) place: Place,
}

impl Membership {
    /// An only server's: it joins nobody.
    pub(crate) const FOUNDER: Self = Self {
        is_new: false,
        place: Place::Founder,
    };
}

/// What there is to do.
enum Situation {
    Member(Place),
    /// Why this node must ask.
    Asks(String),
    /// It has joined, and others can read its token.
    Open,
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

/// The part of K3s's config.yaml that says whom this node joined.
#[derive(Deserialize)]
struct JoinedThrough {
    server: Option<String>,
}

pub(crate) struct RequestJoin<'a> {
    pub(crate) context: Context<'a>,
    /// No server of this cluster has been up before, as far as the host knows.
    pub(crate) is_new_cluster: bool,
}

impl RequestJoin<'_> {
    fn situation(&self) -> Result<Situation, RequestJoinError> {
        match self.context.config.node.role {
            Role::Server => self.of_server(),
            Role::Agent => Ok(self.of_agent()?),
        }
    }

    fn of_agent(&self) -> Result<Situation, FileError> {
        let files = self.context.system.files;
        if !has_certificate(files)? {
            return Ok(Situation::Asks("this node has not joined yet".to_owned()));
        }
        Ok(match files.mode(Path::new(paths::JOIN_TOKEN))? {
            // K3s reads its token file at each start.
            None => Situation::Asks(format!("{} is missing", paths::JOIN_TOKEN)),
            Some(mode) if mode & 0o077 != 0 => {
                Situation::Asks(format!("{} can be read by others", paths::JOIN_TOKEN))
            }
            Some(_) => Situation::Member(self.joined_through()?),
        })
    }

    /// A server that has data goes on with it, whatever its place in the list is now: K3s reads whom to join only where
    /// there is none.
    fn of_server(&self) -> Result<Situation, RequestJoinError> {
        let files = self.context.system.files;
        let is_first = self.context.config.is_first_server();
        Ok(match Datastore::of(files)? {
            Datastore::None if is_first => Situation::Asks(
                "this server has no data: it makes the cluster, unless another server has it"
                    .to_owned(),
            ),
            Datastore::None => Situation::Asks("this server has not joined yet".to_owned()),
            Datastore::Sqlite if is_first && !self.has_others() => {
                Situation::Member(Place::Founder)
            }
            Datastore::Sqlite if is_first => Situation::Asks(
                "this server's data becomes the cluster's, unless another server has one"
                    .to_owned(),
            ),
            Datastore::Sqlite => return Err(RequestJoinError::OwnCluster),
            Datastore::Etcd => match files.mode(Path::new(paths::JOIN_TOKEN))? {
                None => Situation::Member(Place::Founder),
                Some(mode) if mode & 0o077 != 0 => Situation::Open,
                Some(_) => Situation::Member(self.joined_through()?),
            },
        })
    }

    /// What config.yaml says, as long as that is one of the servers: another one would take a restart, for nothing.
    fn joined_through(&self) -> Result<Place, FileError> {
        let files = self.context.system.files;
        let text = files.read_text(Path::new(paths::CONFIG))?;
        let written = text
            .and_then(|text| serde_saphyr::from_str::<JoinedThrough>(&text).ok())
            .and_then(|config| config.server);
        let config = self.context.config;
        let is_known = |url: &String| config.other_servers().any(|server| server.url() == *url);
        Ok(Place::Joined(
            written.filter(is_known).unwrap_or_else(|| self.first_url()),
        ))
    }

    /// Of the first server that is not this one.
    fn first_url(&self) -> String {
        let config = self.context.config;
        let server = config.other_servers().next();
        server.unwrap_or(&config.servers.first).url()
    }

    fn has_others(&self) -> bool {
        self.context.config.other_servers().next().is_some()
    }

    /// `has_own`: this server brings a cluster in SQLite. It is older than servers that are not there yet, which come up after it.
    fn founding(&self, has_own: bool) -> Founding {
        match self.context.config.is_first_server() {
            false => Founding::Never,
            true if self.is_new_cluster || has_own => Founding::Unseen,
            true => Founding::Unanimous,
        }
    }

    async fn ask(&self, report: &StepReport<'_>) -> Result<Membership, RequestJoinError> {
        let config = self.context.config;
        let files = self.context.system.files;
        let has_own =
            config.node.role == Role::Server && Datastore::of(files)? == Datastore::Sqlite;
        let founding = self.founding(has_own);
        let servers = Servers::new(
            &config.node.name,
            &config.join,
            config.other_servers(),
            founding,
        )?;
        let wait = Wait {
            condition: format!("a join token from {}", servers.addresses()),
            timeout: Duration::from_secs(config.timeouts.join_seconds),
            interval: RETRY_INTERVAL,
        };
        let decision = wait.until(report, || servers.ask()).await;
        let decision = decision.map_err(|error| match founding {
            Founding::Never => RequestJoinError::Wait(error),
            _ if has_own => RequestJoinError::Undisputed(error),
            Founding::Unanimous | Founding::Unseen => RequestJoinError::Undecided(error),
        })??;
        let (grant, url) = match decision {
            Decision::Join(..) if has_own => return Err(RequestJoinError::OwnCluster),
            Decision::Join(grant, url) => (grant, url),
            Decision::Found => {
                // One that is left from an earlier cluster would make a member of it of this server.
                files.remove(Path::new(paths::JOIN_TOKEN))?;
                return Ok(Membership::FOUNDER);
            }
        };
        if grant.role != config.node.role {
            return Err(RequestJoinError::OtherRole {
                granted: grant.role,
                wanted: config.node.role,
            });
        }
        self.warn_of_differences(&grant, &url, report);
        files.write(
            Path::new(paths::JOIN_TOKEN),
            grant.token.expose().as_bytes(),
            0o600,
        )?;
        Ok(Membership {
            is_new: true,
            place: Place::Joined(url),
        })
    }

    fn warn_of_differences(&self, grant: &JoinGrant, url: &str, report: &StepReport<'_>) {
        if grant.server_url != url {
            report.warn(format!(
                "the server calls itself {}, this node will reach it at {url}",
                grant.server_url
            ));
        }
        let Some(expires_at) = grant.expires_at else {
            return;
        };
        let ttl = self.context.config.join.token_ttl();
        let ttl = SignedDuration::try_from(ttl).unwrap_or_default();
        let difference = Timestamp::now().duration_until(expires_at - ttl).abs();
        if difference > TOLERATED_CLOCK_DIFFERENCE {
            report.warn(format!(
                "this node's clock and the server's differ by about {} s; certificates may be refused",
                difference.as_secs()
            ));
        }
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
        let servers = self.context.config.other_servers();
        let addresses: Vec<_> = servers.map(|server| server.address.to_string()).collect();
        format!("Join {}", addresses.join(" or "))
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<Membership>, StepFailure> {
        let (action, detail) = match self.situation()? {
            Situation::Member(place) => {
                return Ok(Check::Satisfied(Membership {
                    is_new: false,
                    place,
                }));
            }
            Situation::Asks(reason) => (Action::Request, format!("is to be asked for: {reason}")),
            Situation::Open => (Action::Update, "can be read by others".to_owned()),
        };
        let token = Change::new(Subject::Membership, paths::JOIN_TOKEN, action, detail);
        Ok(Check::Needed(vec![token].into()))
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<Membership, StepFailure> {
        if let Situation::Open = self.situation()? {
            let token = Path::new(paths::JOIN_TOKEN);
            let files = self.context.system.files;
            files
                .set_mode(token, 0o600)
                .map_err(RequestJoinError::File)?;
            return Ok(self.planned());
        }
        Ok(self.ask(report).await?)
    }

    fn planned(&self) -> Membership {
        match self.situation() {
            Ok(Situation::Asks(_)) if self.context.config.is_first_server() => Membership::FOUNDER,
            Ok(Situation::Asks(_)) | Err(_) => Membership {
                is_new: true,
                place: Place::Joined(self.first_url()),
            },
            Ok(Situation::Member(place)) => Membership {
                is_new: false,
                place,
            },
            Ok(Situation::Open) => Membership {
                is_new: false,
                place: self
                    .joined_through()
                    .unwrap_or_else(|_| Place::Joined(self.first_url())),
            },
        }
    }
}

#[cfg(test)]
mod tests;
