//! Programs: run without a shell, with a time limit, with an error that can be pasted.

use std::fmt;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use zeroize::Zeroizing;

use crate::redact::redact;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of a failed program's output goes into the error.
const SHOWN_OUTPUT_BYTES: usize = 2000;

/// A program and its arguments. Arguments are visible to every process of the machine: nothing
/// secret goes here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) stdin: Option<Vec<u8>>,
    pub(crate) timeout: Duration,
}

impl Invocation {
    pub(crate) fn new<A: Into<String>>(
        program: impl Into<String>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            stdin: None,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(crate) fn stdin(mut self, stdin: Vec<u8>) -> Self {
        self.stdin = Some(stdin);
        self
    }
}

/// As it would be typed.
impl fmt::Display for Invocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.program)?;
        for argument in &self.arguments {
            let plain = !argument.is_empty()
                && argument
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&b));
            if plain {
                write!(formatter, " {argument}")?;
            } else {
                write!(formatter, " '{}'", argument.replace('\'', r"'\''"))?;
            }
        }
        Ok(())
    }
}

/// How a program ended. Its output may hold a token, so it is wiped when dropped.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    /// Exit status; 128 + signal where a signal ended it.
    pub(crate) status: i32,
    pub(crate) stdout: Zeroizing<Vec<u8>>,
    pub(crate) stderr: String,
}

impl Finished {
    pub(crate) fn success(&self) -> bool {
        self.status == 0
    }

    pub(crate) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(String::from_utf8_lossy(&self.stdout).into_owned())
    }
}

/// A program that could not be run or did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("cannot run `{command}`")]
    Start { command: String, source: io::Error },
    #[error("`{command}` did not end within {} s", timeout.as_secs())]
    Timeout { command: String, timeout: Duration },
    #[error("`{command}` exited with {status}: {output}")]
    Status {
        command: String,
        status: i32,
        output: String,
    },
}

impl CommandError {
    /// Whether the program is not on this machine.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, CommandError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Runs programs.
#[async_trait]
pub(crate) trait Commands: Send + Sync {
    /// A status other than 0 is not an error here.
    async fn run(&self, invocation: &Invocation) -> Result<Finished, CommandError>;
}

impl dyn Commands + '_ {
    /// Runs a program that must succeed.
    pub(crate) async fn run_ok(&self, invocation: &Invocation) -> Result<Finished, CommandError> {
        let finished = self.run(invocation).await?;
        if finished.success() {
            return Ok(finished);
        }
        let text = finished.text();
        let output = [finished.stderr.trim(), text.trim()].join("\n");
        let output = output.trim();
        let mut start = output.len().saturating_sub(SHOWN_OUTPUT_BYTES);
        while !output.is_char_boundary(start) {
            start += 1;
        }
        Err(CommandError::Status {
            command: invocation.to_string(),
            status: finished.status,
            output: redact(&output[start..]),
        })
    }
}

/// Real processes. Ended with this one, so that an interrupted run leaves no child behind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processes;

#[async_trait]
impl Commands for Processes {
    async fn run(&self, invocation: &Invocation) -> Result<Finished, CommandError> {
        let start = |source| CommandError::Start {
            command: invocation.to_string(),
            source,
        };
        let mut child = Command::new(&invocation.program)
            .args(&invocation.arguments)
            // Messages are matched in places; they must not depend on the machine's language.
            .env("LC_ALL", "C")
            .stdin(match invocation.stdin {
                Some(_) => Stdio::piped(),
                None => Stdio::null(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let stdin = child.stdin.take();
        let feed = async {
            if let (Some(mut pipe), Some(content)) = (stdin, &invocation.stdin) {
                // A program that does not read its input says why by its exit status.
                let _ = pipe.write_all(content).await;
            }
        };
        let work = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output = tokio::time::timeout(invocation.timeout, work)
            .await
            .map_err(|_| CommandError::Timeout {
                command: invocation.to_string(),
                timeout: invocation.timeout,
            })?
            .map_err(start)?;
        use std::os::unix::process::ExitStatusExt;
        let status = output
            .status
            .code()
            .unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
        Ok(Finished {
            status,
            stdout: Zeroizing::new(output.stdout),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

#[cfg(test)]
pub(crate) use fake::FakeCommands;

#[cfg(test)]
mod fake {
    use std::sync::Mutex;

    use super::*;

    type Answer = (String, i32, String);

    /// Answers by the command's beginning, the last rule first; records what was asked. A command
    /// without a rule is not installed.
    #[derive(Debug, Default)]
    pub(crate) struct FakeCommands {
        rules: Mutex<Vec<Answer>>,
        asked: Mutex<Vec<Invocation>>,
    }

    impl FakeCommands {
        pub(crate) fn answer(&self, prefix: &str, status: i32, output: &str) {
            self.rules
                .lock()
                .unwrap()
                .push((prefix.to_owned(), status, output.to_owned()));
        }

        pub(crate) fn asked(&self) -> Vec<Invocation> {
            self.asked.lock().unwrap().clone()
        }

        pub(crate) fn asked_lines(&self) -> Vec<String> {
            self.asked().iter().map(ToString::to_string).collect()
        }
    }

    #[async_trait]
    impl Commands for FakeCommands {
        async fn run(&self, invocation: &Invocation) -> Result<Finished, CommandError> {
            self.asked.lock().unwrap().push(invocation.clone());
            let line = invocation.to_string();
            let rules = self.rules.lock().unwrap();
            let rule = rules
                .iter()
                .rev()
                .find(|(prefix, _, _)| line.starts_with(prefix));
            match rule {
                Some((_, status, output)) => Ok(Finished {
                    status: *status,
                    stdout: Zeroizing::new(output.clone().into_bytes()),
                    stderr: String::new(),
                }),
                None => Err(CommandError::Start {
                    command: line,
                    source: io::ErrorKind::NotFound.into(),
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let invocation = Invocation::new("k3s", ["token", "create", "it's"]);
        assert_eq!(invocation.to_string(), r"k3s token create 'it'\''s'");
    }

    #[tokio::test]
    async fn a_failure_carries_the_command_and_its_output() {
        let commands: &dyn Commands = &Processes;
        let invocation = Invocation::new("sh", ["-c", "echo out; echo err >&2; exit 3"]);
        let error = commands.run_ok(&invocation).await.unwrap_err().to_string();
        assert!(error.contains("sh -c"), "{error}");
        assert!(error.contains("exited with 3: err\nout"), "{error}");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let invocation = Invocation::new("sleep", ["600"]).timeout(Duration::from_millis(20));
        assert!(matches!(
            Processes.run(&invocation).await,
            Err(CommandError::Timeout { .. })
        ));
    }

    #[tokio::test]
    async fn a_missing_program_is_told_apart() {
        let invocation = Invocation::new("no-such-program-here", [""; 0]);
        assert!(Processes.run(&invocation).await.unwrap_err().is_missing());
    }

    #[tokio::test]
    async fn input_reaches_the_program() {
        let invocation = Invocation::new("cat", [""; 0]).stdin(b"hello".to_vec());
        let finished = Processes.run(&invocation).await.unwrap();
        assert_eq!(finished.text().as_str(), "hello");
    }
}
