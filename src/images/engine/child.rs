//! Running a program to its end, with its last words in the error and nothing left running when nobody waits any more.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use super::EngineError;
use crate::process::{self, Finished};

/// A program in a process group of its own, which is killed as a whole when this is dropped before the program ended.
struct Group {
    child: Child,
    id: Option<Pid>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // It may have ended this very moment.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}

/// Runs `command`, passing every line of stdout and stderr to `line` as it comes.
pub async fn lines(
    mut command: Command,
    mut line: impl FnMut(&str),
) -> Result<Finished, EngineError> {
    let text = describe(&command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let child = spawn(command)?;
    let id = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    let mut group = Group { child, id };
    let finished = process::read_lines(&mut group.child, |_, text| line(text.trim_end()))
        .await
        .map_err(|source| EngineError::Read {
            command: text,
            source,
        })?;
    group.id = None;
    Ok(finished)
}

/// Runs `command` and gives its stdout; a failure quotes its stderr.
pub async fn output(mut command: Command) -> Result<String, EngineError> {
    let text = describe(&command);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let child = spawn(command)?;
    let output = child
        .wait_with_output()
        .await
        .map_err(|source| EngineError::Read {
            command: text.clone(),
            source,
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(EngineError::Failed {
        command: text,
        status: output.status.to_string(),
        output: words,
    })
}

/// Runs `command` like [`lines`]; anything but success is an error with the last lines.
pub async fn succeed(command: Command, line: impl FnMut(&str)) -> Result<(), EngineError> {
    let text = describe(&command);
    let finished = lines(command, line).await?;
    if finished.status.success() {
        return Ok(());
    }
    let output = Vec::from(finished.last_lines).join("\n");
    Err(EngineError::Failed {
        command: text,
        status: finished.status.to_string(),
        output,
    })
}

pub(crate) fn spawn(mut command: Command) -> Result<Child, EngineError> {
    let program = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    command
        .spawn()
        .map_err(|source| EngineError::Start { program, source })
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_carries_the_last_lines_of_both_streams() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "for i in $(seq 30); do echo line $i; done; echo broken >&2; exit 3",
        ]);
        let error = succeed(command, |_| {}).await.unwrap_err().to_string();
        assert!(
            error.contains("line 30") && error.contains("broken") && !error.contains("line 5\n"),
            "{error}"
        );
        assert!(error.contains("exit status: 3"), "{error}");
    }

    #[tokio::test]
    async fn a_dropped_future_takes_the_grandchildren_along() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("pid");
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!(
                "sh -c 'echo $$ > {}; sleep 600; true' & wait",
                mark.display()
            ),
        ]);
        let mut running = Box::pin(lines(command, |_| {}));
        let pid = loop {
            let pause = std::time::Duration::from_millis(10);
            tokio::select! { _ = &mut running => panic!("it ended"), () = tokio::time::sleep(pause) => {} }
            if let Some(pid) = std::fs::read_to_string(&mark)
                .ok()
                .and_then(|text| text.trim().parse().ok())
            {
                break Pid::from_raw(pid).unwrap();
            }
        };
        drop(running);
        for _ in 0..500 {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
                .unwrap_or_default();
            if status.is_empty() || status.contains(") Z ") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the grandchild is still there");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = output(Command::new("no-such-program-here"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"));
    }
}
