//! Running commands: each on a channel of its own, its output bounded, its end known or an error.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use russh::{ChannelMsg, Sig};

use super::command::{Command, Exit, Output};
use super::connection::Connection;
use super::error::{Reason, RemoteError};
use super::feed::Feed;
use super::lines::Lines;
use crate::process::Stream;

/// SSH's number for stderr.
const STDERR: u32 = 1;
/// How long output may still come after a command has ended: a child that it left behind may hold it open for good.
const AFTER_EXIT: Duration = Duration::from_secs(5);
/// Lines of output that an error shows.
const TAIL: usize = 20;
/// Characters of each.
const TAIL_LINE: usize = 500;

impl Connection {
    /// Runs a command to its end and keeps the beginning of its output.
    pub async fn run(&self, command: &Command) -> Result<Output, RemoteError> {
        self.run_within(command, self.limits.command).await
    }

    pub(super) async fn run_within(
        &self,
        command: &Command,
        limit: Duration,
    ) -> Result<Output, RemoteError> {
        let (mut stdout, mut stderr, mut omitted) = (Vec::new(), Vec::new(), 0);
        let most = self.limits.output;
        let keep = |stream, data: &[u8]| {
            let kept: &mut Vec<u8> = match stream {
                Stream::Stdout => &mut stdout,
                Stream::Stderr => &mut stderr,
            };
            let room = most.saturating_sub(kept.len()).min(data.len());
            let (head, rest) = data.split_at(room);
            kept.extend_from_slice(head);
            omitted += rest.len() as u64;
        };
        let exit = self.execute(command, limit, keep).await?;
        Ok(Output {
            exit,
            stdout,
            stderr,
            omitted,
        })
    }

    /// Runs a command that must succeed, and whose output must be there whole.
    pub async fn succeed(&self, command: &Command) -> Result<Output, RemoteError> {
        let output = self.run(command).await?;
        if !output.exit.success() {
            return Err(self.failed(command, &output));
        }
        if output.omitted > 0 {
            return Err(self.error(Reason::TooMuchOutput {
                command: command.shown(),
                limit: self.limits.output,
            }));
        }
        Ok(output)
    }

    /// The error of a command that should have ended otherwise.
    pub fn failed(&self, command: &Command, output: &Output) -> RemoteError {
        let said = if output.stderr.trim_ascii().is_empty() {
            &output.stdout
        } else {
            &output.stderr
        };
        self.error(Reason::Failed {
            command: command.shown(),
            exit: output.exit.clone(),
            tail: tail(said),
        })
    }

    /// Runs a command and gives each line of its output as it comes. Dropping the future ends the command's channel.
    pub async fn stream(
        &self,
        command: &Command,
        mut on_line: impl FnMut(Stream, &str) + Send,
    ) -> Result<Exit, RemoteError> {
        let mut stdout = Lines::new(self.limits.line);
        let mut stderr = Lines::new(self.limits.line);
        let give = |stream, data: &[u8]| match stream {
            Stream::Stdout => stdout.push(data, |line| on_line(Stream::Stdout, line)),
            Stream::Stderr => stderr.push(data, |line| on_line(Stream::Stderr, line)),
        };
        let result = self.execute(command, self.limits.stream, give).await;
        stdout.finish(|line| on_line(Stream::Stdout, line));
        stderr.finish(|line| on_line(Stream::Stderr, line));
        result
    }

    async fn execute(
        &self,
        command: &Command,
        limit: Duration,
        on_data: impl FnMut(Stream, &[u8]) + Send,
    ) -> Result<Exit, RemoteError> {
        let running = self.exchange(command, on_data);
        let ended = tokio::time::timeout(limit, running)
            .await
            .unwrap_or_else(|_| {
                Err(Reason::Silent {
                    what: format!("`{}` did not end", command.shown()),
                    after: limit,
                })
            });
        ended.map_err(|reason| self.error(reason))
    }

    async fn exchange(
        &self,
        command: &Command,
        mut on_data: impl FnMut(Stream, &[u8]) + Send,
    ) -> Result<Exit, Reason> {
        let ended = || Reason::Ended {
            during: format!("while `{}` ran", command.shown()),
            why: self.session.ended.why(),
        };
        let opening = self.session.handle.channel_open_session();
        let opened = tokio::time::timeout(self.limits.answer, opening).await;
        let silent = || Reason::Silent {
            what: format!("it did not start `{}`", command.shown()),
            after: self.limits.answer,
        };
        let channel = opened
            .map_err(|_| silent())?
            .map_err(|source| match source {
                russh::Error::ChannelOpenFailure(_) => Reason::NoSession {
                    command: command.shown(),
                    source: Box::new(source),
                },
                _ => ended(),
            })?;
        let (mut read, write) = channel.split();
        let feed = Feed::new(write, &self.session.handle, self.limits.stall);
        feed.start(&command.line).await.map_err(|_| ended())?;
        let mut sending = pin!(feed.send(command));
        let mut state = State::Starting;
        let mut exit = None;
        loop {
            let patience = match (state, &exit) {
                (State::Starting, _) => Some(self.limits.answer),
                (_, Some(_)) => Some(AFTER_EXIT),
                _ => None,
            };
            let waiting = async {
                match patience {
                    Some(patience) => tokio::time::sleep(patience).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = read.wait() => match message {
                    Some(ChannelMsg::Success) => state = State::Running,
                    Some(ChannelMsg::Failure) if state == State::Starting => {
                        return Err(Reason::NotExecuted { command: command.shown() });
                    }
                    Some(ChannelMsg::Data { data }) => on_data(Stream::Stdout, &data),
                    Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => on_data(Stream::Stderr, &data),
                    Some(ChannelMsg::ExitStatus { exit_status }) => exit = Some(Exit::Status(exit_status)),
                    Some(ChannelMsg::ExitSignal { signal_name, .. }) => exit = Some(Exit::Signal(name_of(&signal_name))),
                    Some(ChannelMsg::Close) | None => break,
                    Some(_) => {}
                },
                sent = &mut sending, if state == State::Running => {
                    sent?;
                    state = State::Fed;
                }
                () = waiting => match exit {
                    Some(exit) => return Ok(exit),
                    None => return Err(silent()),
                },
            }
        }
        exit.ok_or_else(ended)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Starting,
    Running,
    /// It has all of its input.
    Fed,
}

fn name_of(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.chars().filter(|c| !c.is_control()).take(40).collect(),
        known => format!("{known:?}"),
    }
}

/// The last lines of an output, as an error shows them: without what a terminal would act on.
fn tail(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let mut last: VecDeque<&str> = VecDeque::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if last.len() == TAIL {
            last.pop_front();
        }
        last.push_back(line);
    }
    let shown = last.iter().map(|line| {
        let line: String = line
            .chars()
            .filter(|c| !c.is_control())
            .take(TAIL_LINE)
            .collect();
        format!("\n    {line}")
    });
    shown.collect()
}
