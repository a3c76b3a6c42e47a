//! Runs other programs: captured, streamed line by line, or handed the terminal.
//!
//! Boundary: knows no program by name. A failure carries the command as it can be pasted into a
//! shell and the last lines it printed. Children end with the future that waits for them, so that
//! Ctrl-C leaves none behind: at once, or, where that would leave half a machine or half a package,
//! in their own time, for which [`settle`] waits.

mod lines;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncWriteExt;

pub use self::lines::{Finished, Stream, read_lines};

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot run `{command}`: is {program} installed? `orch doctor` tells")]
    Spawn {
        command: String,
        program: String,
        source: std::io::Error,
    },
    #[error("`{command}` {status}{tail}")]
    Failed {
        command: String,
        status: ExitStatus,
        /// The last lines of output, each on a line of its own.
        tail: String,
    },
    #[error("lost contact with `{command}`")]
    Wait {
        command: String,
        source: std::io::Error,
    },
}

/// What happens to a program that nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// It is killed.
    Kill,
    /// It and all that it has started are killed before any of them can undo what was done.
    KillGroup,
    /// It is sent SIGINT, once, and may clean up.
    Interrupt,
    /// It runs to its end.
    Finish,
}

/// Programs that were cancelled and have not ended yet.
static ENDING: Mutex<Vec<tokio::process::Child>> = Mutex::new(Vec::new());

/// Whether [`settle`] would have to wait.
pub fn is_ending() -> bool {
    ENDING.lock().is_ok_and(|ending| !ending.is_empty())
}

/// Waits for cancelled programs to end, and kills those that take longer than `patience`, or that
/// are left when this future is dropped.
pub async fn settle(patience: Duration) {
    let ending = ENDING
        .lock()
        .map(|mut ending| std::mem::take(&mut *ending))
        .unwrap_or_default();
    let wait = futures::future::join_all(ending.into_iter().map(async |mut child| {
        // An error says that it is gone already.
        let _ = child.wait().await;
    }));
    let _ = tokio::time::timeout(patience, wait).await;
}

/// A child whose future may be dropped before it ends.
struct Guarded {
    child: Option<tokio::process::Child>,
    on_cancel: OnCancel,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else {
            return;
        };
        if self.on_cancel == OnCancel::Kill {
            return;
        }
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id.and_then(Pid::from_raw) {
            // It may have ended this very moment.
            let _ = match self.on_cancel {
                OnCancel::KillGroup => kill_process_group(id, Signal::KILL),
                OnCancel::Interrupt => kill_process(id, Signal::INT),
                OnCancel::Kill | OnCancel::Finish => Ok(()),
            };
        }
        if let Ok(mut ending) = ENDING.lock() {
            ending.push(child);
        }
    }
}

/// A program and its arguments. Nothing secret belongs in here: arguments are readable by every user.
#[derive(Debug, Clone)]
pub struct Program {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Option<Vec<u8>>,
    on_cancel: OnCancel,
}

impl Program {
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: None,
            input: None,
            on_cancel: OnCancel::Kill,
        }
    }

    /// What Ctrl-C does to it. Unless that is [`OnCancel::Kill`], a terminal's own signal does not reach it any more, and it
    /// must not be a program that may ask for a password at the terminal.
    #[must_use]
    pub fn on_cancel(mut self, on_cancel: OnCancel) -> Self {
        self.on_cancel = on_cancel;
        self
    }

    #[must_use]
    pub fn args<I, S>(mut self, arguments: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.arguments
            .extend(arguments.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Bytes for the program's standard input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Runs it and returns what it printed to standard output.
    pub async fn output(&self) -> Result<String, RunError> {
        let mut text = String::new();
        self.lines(|stream, line| {
            if stream == Stream::Stdout {
                text.push_str(line);
                text.push('\n');
            }
        })
        .await?;
        Ok(text)
    }

    /// Runs it and discards its output, which an error still shows.
    pub async fn run(&self) -> Result<(), RunError> {
        self.lines(|_, _| {}).await
    }

    /// Whether it ran and ended with status 0.
    pub async fn succeeds(&self) -> bool {
        self.run().await.is_ok()
    }

    /// Runs it and gives each line as it comes.
    pub async fn lines(&self, on_line: impl FnMut(Stream, &str)) -> Result<(), RunError> {
        let mut command = self.command();
        command
            .stdin(if self.input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if self.on_cancel != OnCancel::Kill {
            command.process_group(0);
        }
        let mut child = command.spawn().map_err(|source| self.spawn_error(source))?;
        if let (Some(input), Some(mut stdin)) = (self.input.clone(), child.stdin.take()) {
            // A program that does not read all of its input says why on stderr and in its status.
            tokio::spawn(async move { stdin.write_all(&input).await });
        }
        let mut guarded = Guarded {
            child: Some(child),
            on_cancel: self.on_cancel,
        };
        let lost = |source| RunError::Wait {
            command: self.pasteable(),
            source,
        };
        let Finished { status, last_lines } = match guarded.child.as_mut() {
            Some(child) => read_lines(child, on_line).await.map_err(lost)?,
            None => return Err(lost(std::io::ErrorKind::NotFound.into())),
        };
        guarded.child = None;
        if status.success() {
            return Ok(());
        }
        Err(RunError::Failed {
            command: self.pasteable(),
            status,
            tail: last_lines
                .iter()
                .map(|line| format!("\n    {line}"))
                .collect(),
        })
    }

    /// Runs it on this terminal and returns its status.
    pub async fn interactive(&self) -> Result<ExitStatus, RunError> {
        let mut child = self
            .command()
            .spawn()
            .map_err(|source| self.spawn_error(source))?;
        child.wait().await.map_err(|source| RunError::Wait {
            command: self.pasteable(),
            source,
        })
    }

    /// The command as it can be pasted into a shell.
    pub fn pasteable(&self) -> String {
        std::iter::once(&self.program)
            .chain(&self.arguments)
            .map(|word| quote(&word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    fn spawn_error(&self, source: std::io::Error) -> RunError {
        RunError::Spawn {
            command: self.pasteable(),
            program: self.program.to_string_lossy().into_owned(),
            source,
        }
    }
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The first file of that name in `PATH` that this user may execute.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps a daemon's binary where an ordinary user's PATH does not look.
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|directory| directory.join(name))
        .find(|candidate| rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_stdout_only() {
        let text = Program::new("sh")
            .args(["-c", "echo out; echo err >&2"])
            .output()
            .await
            .unwrap();
        assert_eq!(text, "out\n");
    }

    #[tokio::test]
    async fn a_failure_carries_the_command_and_its_last_lines() {
        let error = Program::new("sh")
            .args(["-c", "echo it broke >&2; exit 3"])
            .run()
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`sh -c 'echo it broke >&2; exit 3'`"),
            "{error}"
        );
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.ends_with("\n    it broke"), "{error}");
    }

    #[tokio::test]
    async fn input_reaches_the_program() {
        let text = Program::new("cat").input("hello").output().await.unwrap();
        assert_eq!(text, "hello\n");
    }

    /// Runs the Perl script until it has written its first line, drops it, and gives what is in the file `$ARGV[0]` afterwards.
    async fn dropped(script: &str, on_cancel: OnCancel) -> String {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        // Not a shell: one that is started with SIGINT ignored, as in the background, cannot trap it.
        let program = Program::new("perl")
            .args(["-e", script])
            .args([&mark])
            .on_cancel(on_cancel);
        let (sender, mut started) = tokio::sync::mpsc::unbounded_channel();
        let running = program.lines(move |_, _| sender.send(()).unwrap());
        tokio::select! {
            result = running => panic!("it ended: {result:?}"),
            _ = started.recv() => {}
        }
        settle(Duration::from_secs(20)).await;
        if on_cancel == OnCancel::KillGroup {
            // A child that lives on would write by then.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::fs::read_to_string(&mark).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_cancelled_program_is_killed_interrupted_or_left_to_finish() {
        let script = r#"sub say_it { open(F, ">", $ARGV[0]); print F "$_[0]\n"; close(F); exit 1 }
            $SIG{INT} = sub { say_it("cleaned") };
            $| = 1;
            print "started\n";
            select(undef, undef, undef, 0.5);
            say_it("finished");"#;
        assert_eq!(dropped(script, OnCancel::Interrupt).await, "cleaned\n");
        assert_eq!(dropped(script, OnCancel::Finish).await, "finished\n");
        assert_eq!(dropped(script, OnCancel::Kill).await, "");
        let with_child = r#"$| = 1;
            if (!fork()) { select(undef, undef, undef, 0.5); open(F, ">", $ARGV[0]); print F "child\n"; close(F); exit 0 }
            print "started\n";
            wait();"#;
        assert_eq!(dropped(with_child, OnCancel::Finish).await, "child\n");
        assert_eq!(dropped(with_child, OnCancel::KillGroup).await, "");
    }

    #[tokio::test]
    async fn a_missing_program_says_what_to_do() {
        let error = Program::new("orch-no-such-program")
            .run()
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("is orch-no-such-program installed?")
        );
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote("--flag=1"), "--flag=1");
    }
}
