//! One node: a connection, what is there, what travels, what `orch-provision` says.

use std::sync::Mutex;

use orch_contract::{Event, EventLine, ExitCode, Outcome, Role, node_paths};
use zeroize::Zeroizing;

use super::deliver::{Load, SUMS, SURVEY, Survey};
use super::report::PlannedStep;
use super::{Delivery, Host, NodeError, NodeEvent, NodeReport, Options, Watcher};
use crate::remote::{self, Command, Connection, Exit, Limits, Privilege, Stream};

/// Where K3s puts the administrator's kubeconfig.
const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
/// An event may carry what a file is to become, and the end of a journal.
const EVENT_BYTES: usize = 512 * 1024;
/// Lines of a program's standard error that are kept for an error.
const SAID: usize = 10;

/// A folder for a plan's own files, gone when the plan is made: in memory, unless programs may not be run from there.
const STAGE: &str = r#"
umask 077
for parent in /run /tmp /var/tmp; do
    folder=$(mktemp -d "$parent/orch-plan.XXXXXX" 2>/dev/null) || continue
    printf '#!/bin/sh\n' > "$folder/probe" && chmod 700 "$folder/probe"
    if "$folder/probe" 2>/dev/null; then
        rm "$folder/probe"
        printf %s "$folder"
        exit
    fi
    rm -r "$folder"
done
echo 'programs may be run from none of /run, /tmp and /var/tmp' >&2
exit 1
"#;

/// Removes what was delivered. Volumes stay: they are the user's data.
const TAKE_BACK: &str = r#"
rm -rf /etc/orch /var/lib/orch/artifacts /var/lib/orch/uploads /var/lib/orch/uploads.sums /usr/local/bin/orch-provision
[ ! -d /var/lib/orch ] || rmdir --ignore-fail-on-non-empty /var/lib/orch
"#;

/// One node and who watches it.
pub(super) struct Node<'a> {
    host: &'a Host,
    options: &'a Options,
    watcher: &'a dyn Watcher,
}

/// A node that was logged in to.
pub(super) struct Session {
    connection: Connection,
    privilege: Privilege,
}

/// What a run of `orch-provision` said.
#[derive(Debug, Default)]
struct Heard {
    steps: Vec<PlannedStep>,
    outcome: Option<Outcome>,
    k3s: Option<String>,
    failure: Option<(String, String, Vec<String>)>,
    said: Vec<String>,
}

impl<'a> Node<'a> {
    pub(super) fn new(host: &'a Host, options: &'a Options, watcher: &'a dyn Watcher) -> Self {
        Self {
            host,
            options,
            watcher,
        }
    }

    pub(super) async fn plan(self, delivery: &Delivery) -> NodeReport {
        let mut report = NodeReport::new(&self.host.name, self.host.role);
        match self.try_plan(delivery, &mut report).await {
            Ok(()) => report,
            Err(error) => report.failed(error),
        }
    }

    pub(super) async fn up(self, delivery: &Delivery) -> NodeReport {
        let mut report = NodeReport::new(&self.host.name, self.host.role);
        match self.try_up(delivery, &mut report).await {
            Ok(()) => report,
            Err(error) => report.failed(error),
        }
    }

    pub(super) async fn reset(self, delivery: &Delivery) -> NodeReport {
        let mut report = NodeReport::new(&self.host.name, self.host.role);
        match self.try_reset(delivery, &mut report).await {
            Ok(()) => report,
            Err(error) => report.failed(error),
        }
    }

    async fn try_plan(
        &self,
        delivery: &Delivery,
        report: &mut NodeReport,
    ) -> Result<(), NodeError> {
        let session = self.open().await?;
        let load = Load::read(self.host, delivery)?;
        let survey = self.survey(&session, &load, "look").await?;
        report.delivers(&load.parcels(&survey));
        let mut arguments = vec!["plan"];
        let staged = if !load.private.iter().any(|file| survey.lacks(file))
            && load.has_provisioner(&survey)
        {
            None
        } else {
            Some(self.stage(&session, &load, &survey, delivery).await?)
        };
        let program = match &staged {
            Some(folder) if !load.has_provisioner(&survey) => format!("{folder}/orch-provision"),
            _ => node_paths::PROVISIONER.to_owned(),
        };
        if let Some(folder) = &staged {
            arguments.extend(["--staged", folder.as_str()]);
        }
        let heard = self.provision(&session, &program, &arguments).await;
        let removed = match &staged {
            Some(folder) => {
                let remove = Command::script(r#"rm -rf -- "$1""#, &[folder]);
                session.succeed(remove).await.map(drop)
            }
            None => Ok(()),
        };
        // Why there is no plan says more than that its folder stayed, which has the same cause then.
        self.conclude(heard?, Outcome::Planned, report)?;
        removed?;
        session.close().await;
        Ok(())
    }

    async fn try_up(&self, delivery: &Delivery, report: &mut NodeReport) -> Result<(), NodeError> {
        let session = self.open().await?;
        self.deliver(&session, delivery, report).await?;
        let heard = self
            .provision(&session, node_paths::PROVISIONER, &["up"])
            .await?;
        self.conclude(heard, Outcome::Changed, report)?;
        if self.host.role == Role::Server {
            let read = Command::program(["cat", KUBECONFIG]);
            let output = session.succeed(read).await?;
            report.kubeconfig = Some(Zeroizing::new(output.stdout));
        }
        session.close().await;
        Ok(())
    }

    async fn try_reset(
        &self,
        delivery: &Delivery,
        report: &mut NodeReport,
    ) -> Result<(), NodeError> {
        let session = self.open().await?;
        let load = Load::provisioner_only(delivery);
        let survey = self.survey(&session, &load, "look").await?;
        self.send_shared(&session, &load, &survey).await?;
        let command = Command::program([node_paths::PROVISIONER, "reset", "--output", "json"]);
        let heard = self.listen(&session, command).await?;
        self.conclude(heard, Outcome::Changed, report)?;
        let take_back = Command::new(TAKE_BACK).shown_as("take back what was delivered");
        session.succeed(take_back).await?;
        session.close().await;
        Ok(())
    }

    pub(super) async fn open(&self) -> Result<Session, NodeError> {
        let target = remote::resolve(&self.host.wanted).await?;
        for note in &target.notes {
            self.say(note);
        }
        let limits = Limits {
            line: EVENT_BYTES,
            ..Limits::default()
        };
        let connection = remote::connect(&target, &limits).await?;
        let password = self.options.sudo_password.as_ref();
        let privilege = connection.privilege(password).await?;
        Ok(Session {
            connection,
            privilege,
        })
    }

    async fn survey(
        &self,
        session: &Session,
        load: &Load,
        record: &str,
    ) -> Result<Survey, NodeError> {
        let paths = load.paths();
        let mut arguments = vec![record, SUMS];
        arguments.extend(paths.iter().map(String::as_str));
        let survey = Command::script(SURVEY, &arguments).shown_as("look at what is there");
        let output = session.succeed(survey).await?;
        Survey::parse(&output.text()).map_err(|problem| self.misunderstood(problem))
    }

    pub(super) fn misunderstood(&self, problem: String) -> NodeError {
        NodeError::Answer {
            node: self.host.name.clone(),
            problem,
        }
    }

    /// Sends what the node lacks, and nothing else.
    async fn deliver(
        &self,
        session: &Session,
        delivery: &Delivery,
        report: &mut NodeReport,
    ) -> Result<(), NodeError> {
        let mut load = Load::read(self.host, delivery)?;
        let survey = self.survey(session, &load, "record").await?;
        report.delivers(&load.parcels(&survey));
        self.send_shared(session, &load, &survey).await?;
        load.private.retain(|file| survey.lacks(file));
        let (privilege, folder) = (&session.privilege, node_paths::CONFIG_DIRECTORY);
        session
            .connection
            .write_private(privilege, &load.private, folder)
            .await?;
        Ok(())
    }

    async fn send_shared(
        &self,
        session: &Session,
        load: &Load,
        survey: &Survey,
    ) -> Result<(), NodeError> {
        for (path, file, mode) in load.missing_shared(survey) {
            self.say(&format!("uploading {path}"));
            session
                .connection
                .upload_if_changed(&session.privilege, &file.path, &file.sha256, path, *mode)
                .await?;
        }
        Ok(())
    }

    /// The node's own files, and the provisioner where the node has another one, in a folder of the plan's.
    async fn stage(
        &self,
        session: &Session,
        load: &Load,
        survey: &Survey,
        delivery: &Delivery,
    ) -> Result<String, NodeError> {
        let stage = Command::new(STAGE).shown_as("make a folder for the plan");
        let made = session.succeed(stage).await?;
        let folder = made.text();
        session
            .connection
            .write_private(&session.privilege, &load.private, &folder)
            .await?;
        if !load.has_provisioner(survey) {
            let provisioner = &delivery.provisioner;
            let path = format!("{folder}/orch-provision");
            session
                .connection
                .upload_if_changed(
                    &session.privilege,
                    &provisioner.path,
                    &provisioner.sha256,
                    &path,
                    0o700,
                )
                .await?;
        }
        Ok(folder)
    }

    async fn provision(
        &self,
        session: &Session,
        program: &str,
        arguments: &[&str],
    ) -> Result<Heard, NodeError> {
        let role = self.host.role.as_str();
        let mut words = vec![program];
        words.extend(arguments);
        words.extend(["--role", role, "--config", node_paths::NODE_CONFIG]);
        words.extend(["--output", "json"]);
        self.listen(session, Command::program(words)).await
    }

    /// Runs a command of `orch-provision` and takes in its events.
    async fn listen(&self, session: &Session, command: Command) -> Result<Heard, NodeError> {
        let heard = Mutex::new(Heard::default());
        let command = command.as_root(&session.privilege);
        let exit = session
            .connection
            .stream(&command, |stream, line| {
                let Ok(mut heard) = heard.lock() else { return };
                match (stream, EventLine::parse(line)) {
                    (Stream::Stdout, Ok(event)) => {
                        heard.take(&event.event);
                        self.watcher.watch(NodeEvent::Line(Box::new(event)));
                    }
                    _ => heard.say(line),
                }
            })
            .await?;
        let heard = heard.into_inner().unwrap_or_default();
        let expected = [ExitCode::Success, ExitCode::Changes].map(|code| u32::from(code.code()));
        let is_fine = matches!(exit, Exit::Status(status) if expected.contains(&status));
        if is_fine || heard.failure.is_some() {
            return Ok(heard);
        }
        Err(NodeError::Ended {
            node: self.host.name.clone(),
            how: exit.to_string(),
            said: heard.said,
        })
    }

    /// `done` is what a run comes to in which only files travelled.
    fn conclude(
        &self,
        heard: Heard,
        done: Outcome,
        report: &mut NodeReport,
    ) -> Result<(), NodeError> {
        report.steps.extend(heard.steps);
        report.k3s = heard.k3s;
        if let Some((step, reason, causes)) = heard.failure {
            return Err(NodeError::Step {
                node: self.host.name.clone(),
                step,
                reason,
                causes,
            });
        }
        report.outcome = match heard.outcome {
            Some(Outcome::Unchanged) if report.is_changed() => done,
            Some(outcome) => outcome,
            None => {
                let problem = "orch-provision ended without a summary";
                return Err(self.misunderstood(problem.to_owned()));
            }
        };
        Ok(())
    }

    fn say(&self, text: &str) {
        self.watcher.watch(NodeEvent::Said {
            node: self.host.name.clone(),
            text: text.to_owned(),
        });
    }
}

impl Session {
    pub(super) async fn close(self) {
        self.connection.close().await;
    }

    pub(super) async fn succeed(
        &self,
        command: Command,
    ) -> Result<remote::Output, remote::RemoteError> {
        let command = command.as_root(&self.privilege);
        self.connection.succeed(&command).await
    }
}

impl Heard {
    fn take(&mut self, event: &Event) {
        match event {
            Event::StepPlanned {
                step,
                reason,
                changes,
            }
            | Event::StepApplied {
                step,
                reason,
                changes,
                ..
            } => self.steps.push(PlannedStep {
                step: step.clone(),
                reason: reason.clone(),
                changes: changes.clone(),
            }),
            Event::StepFailed {
                step,
                reason,
                causes,
                ..
            } => self.failure = Some((step.clone(), reason.clone(), causes.clone())),
            Event::NodeReady { k3s_version, .. } => self.k3s = Some(k3s_version.clone()),
            Event::Summary { outcome, .. } => self.outcome = Some(*outcome),
            _ => {}
        }
    }

    fn say(&mut self, line: &str) {
        if line.trim().is_empty() {
            return;
        }
        if self.said.len() == SAID {
            self.said.remove(0);
        }
        self.said.push(line.to_owned());
    }
}
