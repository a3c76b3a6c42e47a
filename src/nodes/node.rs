//! One node: a connection, what is there, what travels, what `orch-provision` says.

use std::sync::Mutex;

use orch_contract::{Event, EventLine, ExitCode, Outcome, Role, node_paths};
use zeroize::Zeroizing;

use super::deliver::{Load, SUMS, SURVEY, Survey};
use super::report::PlannedStep;
use super::session::Session;
use super::{Delivery, Host, NodeError, NodeEvent, NodeReport, Options, SharedFile, Watcher};
use crate::remote::{self, Command, Exit, Limits, Stream};

/// Where K3s puts the administrator's kubeconfig.
pub(super) const KUBECONFIG: &str = "/etc/rancher/k3s/k3s.yaml";
/// An event may carry what a file is to become, and the end of a journal.
const EVENT_BYTES: usize = 512 * 1024;
/// Lines of a program's standard error that are kept for an error.
const SAID: usize = 10;

/// Runs a plan, `$2...`, with the files of its input in a folder of its own. They are secret and stay in memory, and go with
/// this command however it ends; so does `$1`, the folder of a program that came for the plan. What a node that lost its power
/// kept of earlier ones goes first.
const PLAN: &str = r#"
umask 077
program=$1; shift
stage=
trap 'rm -rf -- "$stage" "$program"' EXIT
# PIPE, too: who would have read the answer may be gone.
trap 'exit 129' HUP INT TERM PIPE
for parent in /run /tmp /var/tmp; do
    find "$parent" -maxdepth 1 -type d -name 'orch-plan.*' -user 0 -mmin +60 -exec rm -rf {} + 2>/dev/null
done
stage=$(mktemp -d /run/orch-plan.XXXXXX) && tar -x -o -f - -C "$stage" || exit 1
"$@" --staged "$stage"
"#;

/// Makes a folder for the program of a plan: in memory, unless programs may not be run from there.
const PROGRAM_FOLDER: &str = r#"
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

    /// Brings the node its keys and nothing else.
    pub(super) async fn renew_keys(self) -> NodeReport {
        let mut report = NodeReport::new(&self.host.name, self.host.role);
        match self.try_renew_keys(&mut report).await {
            Ok(()) => report,
            Err(error) => report.failed(error),
        }
    }

    async fn try_renew_keys(&self, report: &mut NodeReport) -> Result<(), NodeError> {
        let session = self.open().await?;
        let mut load = Load::keys(self.host)?;
        let survey = self.survey(&session, &load, "look").await?;
        report.delivers(&load.parcels(&survey));
        load.private.retain(|file| survey.lacks(file));
        self.send_private(&session, &load).await?;
        if report.is_changed() {
            report.outcome = Outcome::Changed;
        }
        session.close().await;
        Ok(())
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
        let has_program = load.has_provisioner(&survey);
        let command = if has_program && !load.private.iter().any(|file| survey.lacks(file)) {
            Command::program(self.words(node_paths::PROVISIONER, "plan"))
        } else {
            let folder = if has_program {
                String::new()
            } else {
                self.bring_program(&session, &delivery.provisioner).await?
            };
            let program = match folder.as_str() {
                "" => node_paths::PROVISIONER.to_owned(),
                folder => format!("{folder}/orch-provision"),
            };
            let mut arguments = vec![folder.as_str()];
            arguments.extend(self.words(&program, "plan"));
            let files = session.connection.private_archive(&load.private)?;
            Command::script(PLAN, &arguments)
                .shown_as("orch-provision plan")
                .secret_input(files)
        };
        let heard = self.listen(&session, command).await?;
        self.conclude(heard, Outcome::Planned, report)?;
        session.close().await;
        Ok(())
    }

    async fn try_up(&self, delivery: &Delivery, report: &mut NodeReport) -> Result<(), NodeError> {
        let session = self.open().await?;
        self.deliver(&session, delivery, report).await?;
        let mut words = self.words(node_paths::PROVISIONER, "up").to_vec();
        if self.options.is_new_cluster && self.host.role == Role::Server {
            words.push("--new-cluster");
        }
        let heard = self.listen(&session, Command::program(words)).await?;
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
        self.send_private(session, &load).await
    }

    async fn send_private(&self, session: &Session, load: &Load) -> Result<(), NodeError> {
        let (privilege, folder) = (&session.privilege, node_paths::CONFIG_DIRECTORY);
        let connection = &session.connection;
        connection
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

    /// Brings the program that a plan runs where the node has another one, and says in which folder it is.
    async fn bring_program(
        &self,
        session: &Session,
        program: &SharedFile,
    ) -> Result<String, NodeError> {
        let make = Command::new(PROGRAM_FOLDER).shown_as("make a folder for the plan");
        let folder = session.succeed(make).await?.text();
        let path = format!("{folder}/orch-provision");
        let (privilege, sum) = (&session.privilege, &program.sha256);
        let brought = session
            .connection
            .upload_if_changed(privilege, &program.path, sum, &path, 0o700)
            .await;
        if let Err(error) = brought {
            // Why it did not arrive says more than that its folder stayed.
            let remove = Command::script(r#"rm -rf -- "$1""#, &[&folder]);
            let _ = session.succeed(remove).await;
            return Err(error.into());
        }
        Ok(folder)
    }

    /// The command line of `orch-provision plan` and `up`.
    fn words<'w>(&self, program: &'w str, command: &'w str) -> [&'w str; 8]
    where
        'a: 'w,
    {
        let role = self.host.role.as_str();
        let config = node_paths::NODE_CONFIG;
        [
            program, command, "--role", role, "--config", config, "--output", "json",
        ]
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
