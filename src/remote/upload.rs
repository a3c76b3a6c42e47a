//! A file of this computer onto a node: only if it is not there yet, whole or not at all.

use std::path::Path;

use super::command::{Command, Exit};
use super::connection::Connection;
use super::error::{Reason, RemoteError};
use super::privilege::Privilege;

/// A file that another user owns may change after it was looked at.
const LOOK: &str = r#"if [ -f "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]; then
    sum=$(sha256sum < "$1")
    if [ "${sum%% *}" = "$3" ]; then chmod -- "$2" "$1" && echo same; exit; fi
fi
echo other"#;
/// The status of a sum that is not the expected one; sysexits' EX_DATAERR.
const WRONG_SUM: u32 = 65;
const WRITE: &str = r#"set -eu
umask 077
[ ! -d "$1" ] || { echo "$1 is a directory" >&2; exit 1; }
directory=$(dirname -- "$1")
name=$(basename -- "$1")
(umask 022; mkdir -p -- "$directory")
# What a node that lost its power left behind.
find "$directory" -maxdepth 1 -name ".$name.orch-*" -mmin +60 -exec rm -f {} + 2>/dev/null || :
new=$(mktemp "$directory/.$name.orch-XXXXXX")
trap 'rm -f "$new"' EXIT
# PIPE, too: who would have read the answer may be gone.
trap 'exit 1' HUP INT TERM PIPE
cat > "$new"
sum=$(sha256sum < "$new")
sum=${sum%% *}
[ "$sum" = "$3" ] || { echo "$sum"; exit 65; }
chmod -- "$2" "$new"
sync "$new" 2>/dev/null || sync
mv -f -- "$new" "$1"
sync "$directory" 2>/dev/null || sync"#;

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there already.
    Unchanged,
    Written,
}

impl Connection {
    /// Brings `file`, whose SHA-256 is given in hex, to the absolute path `remote`. The node checks the sum before anything
    /// is replaced; a connection that breaks leaves what was there.
    pub async fn upload_if_changed(
        &self,
        privilege: &Privilege,
        file: &Path,
        sha256: &str,
        remote: &str,
        mode: u32,
    ) -> Result<Uploaded, RemoteError> {
        let sha256 = sha256.to_ascii_lowercase();
        if !remote.starts_with('/') || remote.ends_with('/') {
            return Err(self.error(Reason::Invalid {
                what: "the path on the node",
                value: remote.to_owned(),
                why: "it is not the absolute path of a file",
            }));
        }
        let mode = format!("{:04o}", mode & 0o7777);
        let arguments = [remote, &mode, &sha256];
        let look = Command::script(LOOK, &arguments).shown_as(format!("sha256sum {remote}"));
        let found = self.succeed(&look.as_root(privilege)).await?;
        if found.text() == "same" {
            return Ok(Uploaded::Unchanged);
        }
        let write = Command::script(WRITE, &arguments).shown_as(format!("cat > {remote}"));
        let write = write.input_file(file.to_owned()).as_root(privilege);
        let written = self.run_within(&write, self.limits.stream).await?;
        match written.exit {
            Exit::Status(0) => Ok(Uploaded::Written),
            Exit::Status(WRONG_SUM) => Err(self.error(Reason::WrongSum {
                path: remote.to_owned(),
                expected: sha256,
                actual: written
                    .text()
                    .chars()
                    .filter(char::is_ascii_hexdigit)
                    .take(64)
                    .collect(),
            })),
            _ => Err(self.failed(&write, &written)),
        }
    }
}
