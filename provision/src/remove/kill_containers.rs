//! Ends the containers that K3s leaves running when it stops.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::{Action, Change, Subject};
use orch_runner::{Check, Probe, Step, StepFailure, StepReport, Wait};

use super::RemoveError;
use crate::system::{FileError, Invocation, System};

/// What K3s's shims have in their command line, and nobody else's.
const SHIM: &str = "containerd-shim";
const SOCKET: &str = "/run/k3s/containerd/containerd.sock";
const END_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct KillContainers<'a> {
    pub(crate) system: System<'a>,
}

impl KillContainers<'_> {
    /// The shims and all their descendants, parents first.
    fn processes(&self) -> Result<Vec<u32>, FileError> {
        let files = self.system.files;
        let mut all = Vec::new();
        for path in files.list(Path::new("/proc"))? {
            let id = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse::<u32>().ok());
            let Some(id) = id else { continue };
            // A process that ends while it is looked at is one less to end.
            let command = files.read_text(&path.join("cmdline")).ok().flatten();
            let stat = files.read_text(&path.join("stat")).ok().flatten();
            if let (Some(command), Some(parent)) = (command, stat.as_deref().and_then(parent_of)) {
                all.push((id, parent, is_shim(&command)));
            }
        }
        let mut chosen: Vec<u32> = all
            .iter()
            .filter(|(_, _, is_shim)| *is_shim)
            .map(|(id, _, _)| *id)
            .collect();
        let mut next = 0;
        while next < chosen.len() {
            let parent = chosen[next];
            let children = all
                .iter()
                .filter(|(id, of, _)| *of == parent && !chosen.contains(id));
            let children: Vec<u32> = children.map(|(id, _, _)| *id).collect();
            chosen.extend(children);
            next += 1;
        }
        Ok(chosen)
    }

    async fn kill_once(&self) -> Result<Probe<()>, RemoveError> {
        let processes = self.processes()?;
        if processes.is_empty() {
            return Ok(Probe::Met(()));
        }
        let arguments =
            std::iter::once("-KILL".to_owned()).chain(processes.iter().map(ToString::to_string));
        // One that has ended meanwhile makes kill fail and is no trouble.
        self.system
            .commands
            .run(&Invocation::new("kill", arguments))
            .await?;
        Ok(Probe::Pending(format!("{} processes", processes.len())))
    }

    async fn kill(&self, report: &StepReport<'_>) -> Result<(), RemoveError> {
        let wait = Wait {
            condition: "containers ended".to_owned(),
            timeout: END_TIMEOUT,
            interval: Duration::from_millis(300),
        };
        let outcome = wait.until(report, || self.kill_once()).await;
        match outcome {
            Ok(result) => result,
            Err(_) => Err(RemoveError::StillRunning {
                processes: self.processes()?.iter().map(ToString::to_string).collect(),
            }),
        }
    }
}

fn is_shim(command: &str) -> bool {
    command
        .split('\0')
        .next()
        .is_some_and(|program| program.contains(SHIM))
        && command.contains(SOCKET)
}

/// The fourth field of /proc/<id>/stat; the second is a name in parentheses that may hold blanks.
fn parent_of(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[async_trait]
impl Step for KillContainers<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "kill_containers"
    }

    fn title(&self) -> String {
        "End the containers".to_owned()
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let processes = self.processes().map_err(RemoveError::File)?;
        let changes = processes.into_iter().map(|process| {
            let name = process.to_string();
            Change::new(Subject::Process, name, Action::Stop, "runs in a container")
        });
        Ok(Check::of(changes.collect(), || ()))
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.kill(report).await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Machine;

    #[test]
    fn only_k3ss_shims_and_their_children_are_chosen() {
        let machine = Machine::fit();
        let shim = "/var/lib/rancher/k3s/data/x/bin/containerd-shim-runc-v2\0-namespace\0k8s.io\0-address\0/run/k3s/containerd/containerd.sock\0";
        let docker =
            "/usr/bin/containerd-shim-runc-v2\0-address\0/run/docker/containerd/containerd.sock\0";
        for (id, parent, command) in [
            ("10", "1", shim),
            ("11", "10", "/pause\0"),
            ("12", "11", "sh\0"),
            ("20", "1", docker),
            ("21", "20", "sh\0"),
            ("30", "1", "tail\0/run/k3s/containerd/containerd.sock\0"),
        ] {
            machine
                .files
                .put(&format!("/proc/{id}/cmdline"), command, 0o444);
            let stat = format!("{id} (a (b) c) S {parent} 0 0");
            machine.files.put(&format!("/proc/{id}/stat"), &stat, 0o444);
            machine.files.put(&format!("/proc/{id}"), "", 0o555);
        }
        let step = KillContainers {
            system: machine.system(),
        };
        assert_eq!(step.processes().unwrap(), [10, 11, 12]);
    }
}
