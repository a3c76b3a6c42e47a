//! Small secret files onto a node, in one round trip: 0600 from their first moment, each whole or absent.

use std::fmt;

use zeroize::Zeroizing;

use super::command::Command;
use super::connection::Connection;
use super::error::{Reason, RemoteError};
use super::privilege::Privilege;

/// A tar's unit.
const BLOCK: usize = 512;
/// All of them are staged in a directory that only the owner can enter; nothing is moved before all have arrived.
const WRITE: &str = r#"set -eu
umask 077
directory=$1
shift
(umask 022; mkdir -p -- "$(dirname -- "$directory")")
[ -d "$directory" ] || mkdir -m 700 -- "$directory"
stage=$(mktemp -d "$directory/.orch-XXXXXX")
trap 'rm -rf "$stage"' EXIT
# PIPE, too: who would have read the answer may be gone.
trap 'exit 1' HUP INT TERM PIPE
tar -x -o -f - -C "$stage"
for name; do
    [ -f "$stage/$name" ] && [ ! -L "$stage/$name" ] || { echo "$name did not arrive" >&2; exit 1; }
    [ ! -d "$directory/$name" ] || { echo "$directory/$name is a directory" >&2; exit 1; }
    chmod 600 "$stage/$name"
    sync "$stage/$name" 2>/dev/null || sync
done
for name; do mv -f -- "$stage/$name" "$directory/$name"; done
sync "$directory" 2>/dev/null || sync"#;

/// A file's name in the directory, and what is in it.
pub struct PrivateFile {
    pub name: String,
    pub content: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for PrivateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.content.len())
    }
}

impl Connection {
    /// Writes the files into a directory of the node, replacing those of the same names. A directory that is not there is made
    /// with mode 0700.
    pub async fn write_private(
        &self,
        privilege: &Privilege,
        files: &[PrivateFile],
        directory: &str,
    ) -> Result<(), RemoteError> {
        if files.is_empty() {
            return Ok(());
        }
        if !directory.starts_with('/') {
            return Err(self.error(Reason::Invalid {
                what: "the directory on the node",
                value: directory.to_owned(),
                why: "it is not an absolute path",
            }));
        }
        let archive = self.private_archive(files)?;
        let mut arguments = vec![directory];
        arguments.extend(files.iter().map(|file| file.name.as_str()));
        let command = Command::script(WRITE, &arguments)
            .shown_as(format!("tar -x -C {directory}"))
            .secret_input(archive)
            .as_root(privilege);
        self.succeed(&command).await?;
        Ok(())
    }

    /// The files as a tar, for the input of a command that unpacks them itself.
    pub fn private_archive(
        &self,
        files: &[PrivateFile],
    ) -> Result<Zeroizing<Vec<u8>>, RemoteError> {
        let invalid = |name: &str, why| {
            self.error(Reason::Invalid {
                what: "the name of a file",
                value: name.to_owned(),
                why,
            })
        };
        for file in files {
            if let Some(why) = wrong_with(&file.name) {
                return Err(invalid(&file.name, why));
            }
        }
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        archive(files).map_err(|_| invalid(&names.join(", "), "no archive can be made of it"))
    }
}

fn wrong_with(name: &str) -> Option<&'static str> {
    // Dots in front would meet the directory they are staged in.
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 100 {
        return Some("it is empty or longer than 100 characters");
    }
    if name.starts_with(['.', '-']) || !name.chars().all(plain) {
        return Some("it may have letters, digits, - _ and . in it and begin with no dot or dash");
    }
    None
}

fn archive(files: &[PrivateFile]) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let padded = |file: &PrivateFile| BLOCK + file.content.len().next_multiple_of(BLOCK);
    // The whole room at once: growing would leave copies of secrets behind.
    let room = files.iter().map(padded).sum::<usize>() + 2 * BLOCK;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let mut builder = tar::Builder::new(&mut *bytes);
    for file in files {
        let mut header = tar::Header::new_ustar();
        header.set_path(&file.name)?;
        header.set_size(file.content.len() as u64);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        builder.append(&header, file.content.as_slice())?;
    }
    builder.finish()?;
    drop(builder);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_directory() {
        for name in ["", ".", "..", "a/b", "/a", "-a", ".orch-x", "a b", "a\n"] {
            assert!(wrong_with(name).is_some(), "{name:?}");
        }
        assert_eq!(wrong_with("node.json"), None);
    }

    #[test]
    fn the_archive_has_its_room_from_the_start() {
        let file = |length| PrivateFile {
            name: format!("f{length}"),
            content: Zeroizing::new(vec![7; length]),
        };
        let files = [file(0), file(1), file(512), file(513)];
        let bytes = archive(&files).unwrap();
        assert_eq!(bytes.len(), 512 * (2 + 4 + 1 + 1 + 2));
        assert_eq!(bytes.capacity(), bytes.len());
        assert!(!format!("{files:?}").contains('7'));
    }
}
