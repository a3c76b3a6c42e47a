//! What is to run on a node, with what input, and how it ended.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::privilege::{Privilege, SudoPassword};
use super::shell;

/// Characters of a command that an error shows.
const SHOWN: usize = 200;

/// A command for a POSIX shell, and its input. Nothing secret belongs into the command: arguments are readable by every
/// user of the node. Secrets go through the input.
#[derive(Debug, Clone)]
pub struct Command {
    /// What the user's login shell is given.
    pub(super) line: String,
    shown: String,
    pub(super) password: Option<Arc<SudoPassword>>,
    pub(super) input: Input,
}

/// What a command reads.
#[derive(Clone)]
pub(super) enum Input {
    Bytes(Bytes),
    /// Streamed, never whole in memory.
    File(PathBuf),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Input::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Input::File(path) => path.fmt(f),
        }
    }
}

impl Command {
    /// A script, for `/bin/sh` whatever the user logs in with.
    pub fn new(script: &str) -> Self {
        Self::script(script, &[])
    }

    /// A program and its arguments, quoted.
    pub fn program<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Self {
        Self::new(&shell::words(words))
    }

    /// A script that finds these as `$1` and so on.
    pub fn script(script: &str, arguments: &[&str]) -> Self {
        let first = script.trim().lines().next().unwrap_or_default();
        Self {
            line: shell::script(script, arguments),
            shown: first.chars().take(SHOWN).collect(),
            password: None,
            input: Input::Bytes(Bytes::new()),
        }
    }

    /// What errors call it, instead of its first line.
    #[must_use]
    pub fn shown_as(mut self, shown: impl Into<String>) -> Self {
        self.shown = shown.into();
        self
    }

    /// Bytes for its standard input.
    #[must_use]
    pub fn input(mut self, input: impl Into<Bytes>) -> Self {
        self.input = Input::Bytes(input.into());
        self
    }

    /// Secret bytes for its standard input, which are gone from memory when they were sent.
    #[must_use]
    pub fn secret_input(self, input: Zeroizing<Vec<u8>>) -> Self {
        self.input(Bytes::from_owner(input))
    }

    #[must_use]
    pub(super) fn input_file(mut self, path: PathBuf) -> Self {
        self.input = Input::File(path);
        self
    }

    /// The same as root. Its input stays its own, also when sudo reads a password before.
    #[must_use]
    pub fn as_root(mut self, privilege: &Privilege) -> Self {
        self.line = privilege.wrap(&self.line);
        self.password = privilege.password();
        self
    }

    pub(super) fn shown(&self) -> String {
        self.shown.clone()
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    Status(u32),
    Signal(String),
}

impl Exit {
    pub fn success(&self) -> bool {
        *self == Exit::Status(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Status(0) => f.write_str("succeeded"),
            Exit::Status(status) => write!(f, "exited with status {status}"),
            Exit::Signal(signal) => write!(f, "was ended by the signal {signal}"),
        }
    }
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct Output {
    pub exit: Exit,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// Bytes past [`super::Limits::output`], of both together. What is kept is the beginning.
    pub omitted: u64,
}

impl Output {
    /// Stdout as text, without white space at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}
