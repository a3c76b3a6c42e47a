//! Root's rights on a node: had already, given by sudo, or given by sudo for a password.
//!
//! A password goes through the command's input, before that input begins, and nowhere else.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::command::{Command, Exit, Output};
use super::connection::Connection;
use super::error::{Reason, RemoteError};
use super::shell;

/// Stands between the password and the command's own input, so that a sudo that asks for no password leaves none behind.
const INPUT_BEGINS: &str = "orch: the input begins";
/// Run by root: passes over what sudo has not read, then becomes the command.
const PASS_OVER: &str = r#"while IFS= read -r line; do [ "$line" = "orch: the input begins" ] && exec /bin/sh -c "$1"; done
echo "orch: the input did not arrive" >&2; exit 125"#;
const LOOK: &str = r#"if [ "$(id -u)" = 0 ]; then echo root
elif ! command -v sudo >/dev/null 2>&1; then echo none
elif LC_ALL=C sudo -k -n true; then echo free
else echo asks; fi"#;
const TRY: &str = "LC_ALL=C exec sudo -k -S -p '' true";

/// A password for sudo. Gone from memory when it is dropped, and in no message.
#[derive(Clone)]
pub struct SudoPassword(Zeroizing<String>);

/// What no password can have in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a password for sudo is one line of text and not empty")]
pub struct SudoPasswordError;

impl SudoPassword {
    pub fn new(text: Zeroizing<String>) -> Result<Self, SudoPasswordError> {
        if text.is_empty() || text.contains(['\n', '\r', '\0']) {
            return Err(SudoPasswordError);
        }
        Ok(Self(text))
    }

    /// The password and the mark behind it.
    pub(super) fn before_input(&self) -> Bytes {
        self.lines(&[&self.0, INPUT_BEGINS])
    }

    fn alone(&self) -> Bytes {
        self.lines(&[&self.0])
    }

    fn lines(&self, lines: &[&str]) -> Bytes {
        let room = lines.iter().map(|line| line.len() + 1).sum();
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        for line in lines {
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
        }
        Bytes::from_owner(bytes)
    }
}

impl fmt::Debug for SudoPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SudoPassword(..)")
    }
}

/// How commands become root's.
#[derive(Debug, Clone)]
pub enum Privilege {
    /// Root is who logged in.
    Root,
    /// sudo asks for nothing.
    Sudo,
    SudoWithPassword(Arc<SudoPassword>),
}

impl Privilege {
    pub(super) fn wrap(&self, line: &str) -> String {
        match self {
            Privilege::Root => line.to_owned(),
            Privilege::Sudo => shell::words(["exec", "sudo", "-n", "--", "/bin/sh", "-c", line]),
            // Without -k, a password that sudo still remembers would not be read.
            Privilege::SudoWithPassword(_) => shell::words([
                "exec", "sudo", "-k", "-S", "-p", "", "--", "/bin/sh", "-c", PASS_OVER, "orch",
                line,
            ]),
        }
    }

    pub(super) fn password(&self) -> Option<Arc<SudoPassword>> {
        match self {
            Privilege::SudoWithPassword(password) => Some(Arc::clone(password)),
            Privilege::Root | Privilege::Sudo => None,
        }
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Privilege::Root => "root",
            Privilege::Sudo => "sudo",
            Privilege::SudoWithPassword(_) => "sudo with a password",
        })
    }
}

impl Connection {
    /// Finds out how to become root here. A password that is not needed is not used, and not sent.
    pub async fn privilege(
        &self,
        password: Option<&SudoPassword>,
    ) -> Result<Privilege, RemoteError> {
        let looked = self
            .run(&Command::new(LOOK).shown_as("id -u; sudo -n true"))
            .await?;
        let user = self.user.clone();
        let said = said_by_sudo(&looked);
        match (looked.text().as_str(), password) {
            ("root", _) => Ok(Privilege::Root),
            ("free", _) => Ok(Privilege::Sudo),
            ("none", _) => Err(self.error(Reason::NoSudo { user })),
            ("asks", None) => Err(self.error(Reason::SudoPasswordNeeded { user, said })),
            ("asks", Some(password)) => self.try_password(password).await,
            _ => Err(self.failed(&Command::new(LOOK).shown_as("id -u; sudo -n true"), &looked)),
        }
    }

    async fn try_password(&self, password: &SudoPassword) -> Result<Privilege, RemoteError> {
        let command = Command::new(TRY)
            .shown_as("sudo true")
            .input(password.alone());
        let tried = self.run(&command).await?;
        if tried.exit == Exit::Status(0) {
            return Ok(Privilege::SudoWithPassword(Arc::new(password.clone())));
        }
        let text = String::from_utf8_lossy(&tried.stderr).into_owned();
        let user = self.user.clone();
        let said = said_by_sudo(&tried);
        let wrong = [
            "incorrect password",
            "try again",
            "no password was provided",
        ];
        Err(
            self.error(if wrong.iter().any(|phrase| text.contains(phrase)) {
                Reason::SudoPasswordWrong { user, said }
            } else {
                Reason::SudoRefused { user, said }
            }),
        )
    }
}

/// sudo's last words; before them may be its lecture.
fn said_by_sudo(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    let clean = last.map(|line| {
        line.chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect::<String>()
    });
    clean
        .map(|line| format!("; it says: {line}"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line_and_is_not_shown() {
        let new = |text: &str| SudoPassword::new(Zeroizing::new(text.to_owned()));
        for text in ["", "a\nb", "a\0b"] {
            assert_eq!(new(text).unwrap_err(), SudoPasswordError);
        }
        let password = Arc::new(new("geheim").unwrap());
        let privilege = Privilege::SudoWithPassword(password);
        assert!(!format!("{privilege:?} {privilege}").contains("geheim"));
        assert!(!privilege.wrap("id").contains("geheim"));
    }

    #[test]
    fn the_mark_is_the_same_on_both_sides() {
        assert!(PASS_OVER.contains(INPUT_BEGINS));
    }
}
