//! etcd's snapshots on servers: made by K3s, found and fetched as files, and what it takes on each server to go back to one.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::node::Node;
use super::session::Session;
use super::{Host, NodeError, Options, Watcher, fleet};
use crate::process::Stream;
use crate::remote::Command;

/// Where K3s keeps them unless its configuration says otherwise.
pub const DIRECTORY: &str = "/var/lib/rancher/k3s/server/db/snapshots";
/// A server's data.
const SERVER_DATA: &str = "/var/lib/rancher/k3s/server";
/// Bytes that are fetched at a time; less than a command's output may have.
const PIECE: u64 = 512 * 1024;
/// Lines of K3s that an error shows.
const SHOWN: usize = 10;

/// K3s adds the node and the time to the name.
const SAVE: &str = r#"set -eu
/usr/local/bin/k3s etcd-snapshot save --name "$1" >&2
name=$(ls -t -- "$2" | grep -m 1 -F -- "$1")
sum=$(sha256sum < "$2/$name")
stat -c "%n	%s	%Y	${sum%% *}" -- "$2/$name"
"#;
const LIST: &str = r#"[ -d "$1" ] || exit 0
find "$1" -maxdepth 1 -type f ! -name '.*' -printf '%p\t%s\t%Ts\t\n' | sort
"#;
const PIECE_OF: &str = r#"tail -c "+$2" -- "$1" | head -c "$3""#;
/// What a server has of a cluster.
const HOLDING: &str = r#"[ ! -d "$1/db/etcd/member" ] || echo etcd
[ ! -s "$1/token" ] || echo token
"#;
/// A machine that was made anew has no K3s to stop.
const STOP: &str = r#"systemctl cat k3s.service >/dev/null 2>&1 || exit 0
systemctl stop k3s.service
"#;
/// A member of the old cluster must not come up beside the restored one. A server that made the cluster is configured to make one
/// where it finds none: until it has been told to join, it must not start by itself.
const SET_ASIDE: &str = r#"set -eu
if systemctl cat k3s.service >/dev/null 2>&1; then
    systemctl disable --quiet k3s.service
    systemctl stop k3s.service
fi
[ -d "$1/db/etcd" ] || exit 0
rm -rf "$1/db/etcd-before-restore"
mv "$1/db/etcd" "$1/db/etcd-before-restore"
"#;
/// K3s resets no server that its configuration tells to join another one. A flag is left where a reset was cut off. One that
/// hangs, or whose connection is cut, ends by itself.
const RESET: &str = r#"set -eu
umask 077
[ -f "$1" ] || { echo "there is no $1" >&2; exit 1; }
systemctl stop k3s.service
config=$(mktemp /run/orch-restore-XXXXXX)
trap 'rm -f "$config"' EXIT
grep -v -e '^server:' -e '^token-file:' -e '^cluster-init:' /etc/rancher/k3s/config.yaml > "$config"
rm -f /var/lib/rancher/k3s/server/db/reset-flag
K3S_CONFIG_FILE=$config timeout --kill-after=30 900 \
    /usr/local/bin/k3s server --cluster-reset --cluster-reset-restore-path="$1" \
    --token-file=/var/lib/rancher/k3s/server/token 2>&1
"#;
/// Snapshots are what is left when all else is lost, also those in a folder of their own below.
const WIPE: &str = r#"set -eu
if systemctl cat k3s.service >/dev/null 2>&1; then
    systemctl disable --quiet k3s.service
    systemctl stop k3s.service
fi
[ -d "$1/db" ] || exit 0
kept=${2#"$1/db/"}
kept=${kept%%/*}
find "$1/db" -mindepth 1 -maxdepth 1 ! -name snapshots ! -name "$kept" -exec rm -rf {} +
"#;

/// One snapshot, a file on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    pub server: String,
    pub name: String,
    pub path: String,
    pub bytes: u64,
    /// Seconds since 1970, by the server's clock.
    pub modified: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Snapshot {
    fn parse(server: &str, line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        let path = fields.next()?;
        Some(Self {
            server: server.to_owned(),
            name: path.rsplit('/').next()?.to_owned(),
            path: path.to_owned(),
            bytes: fields.next()?.parse().ok()?,
            modified: fields.next()?.parse().ok()?,
            sha256: fields
                .next()
                .filter(|sum| !sum.is_empty())
                .map(str::to_owned),
        })
    }
}

/// Has K3s make one on this server.
pub async fn save(
    host: &Host,
    options: &Options,
    watcher: &dyn Watcher,
    name: &str,
    directory: &str,
) -> Result<Snapshot, NodeError> {
    let node = Node::new(host, options, watcher);
    let session = node.open().await?;
    let command = Command::script(SAVE, &[name, directory]).shown_as("k3s etcd-snapshot save");
    let output = session.succeed(command).await?;
    session.close().await;
    let text = output.text();
    Snapshot::parse(&host.name, &text)
        .ok_or_else(|| node.misunderstood(format!("{text:?} describes no snapshot")))
}

/// Those on every server, or why one could not be asked.
pub async fn list(
    hosts: &[Host],
    options: &Options,
    watcher: &dyn Watcher,
    directory: &str,
) -> Vec<Result<Vec<Snapshot>, NodeError>> {
    fleet::each(hosts, options, |host| async move {
        let session = Node::new(host, options, watcher).open().await?;
        let command = Command::script(LIST, &[directory]).shown_as("list the snapshots");
        let output = session.succeed(command).await?;
        session.close().await;
        let text = output.text();
        let lines = text.lines();
        Ok(lines
            .filter_map(|line| Snapshot::parse(&host.name, line))
            .collect())
    })
    .await
}

/// Fetches one into a file that only this user can read, whole or not at all. Its sum must be the one that the server named.
pub async fn download(
    host: &Host,
    options: &Options,
    watcher: &dyn Watcher,
    snapshot: &Snapshot,
    to: &Path,
) -> Result<(), NodeError> {
    let node = Node::new(host, options, watcher);
    let local = |source| NodeError::Local {
        node: host.name.clone(),
        path: to.to_owned(),
        source,
    };
    let partial = to.with_added_extension("partial");
    let _ = std::fs::remove_file(&partial);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(local)?;
    let session = node.open().await?;
    let (mut sum, mut offset) = (Sha256::new(), 0);
    while offset < snapshot.bytes {
        let piece = piece(&session, &snapshot.path, offset).await?;
        if piece.is_empty() {
            break;
        }
        sum.update(&piece);
        file.write_all(&piece).map_err(local)?;
        offset += piece.len() as u64;
    }
    session.close().await;
    let sum = hex::encode(sum.finalize());
    if snapshot.sha256.as_ref().is_some_and(|named| *named != sum) {
        let _ = std::fs::remove_file(&partial);
        return Err(node.misunderstood(format!(
            "{} changed while it was fetched; save another one",
            snapshot.path
        )));
    }
    file.sync_all()
        .and_then(|()| std::fs::rename(&partial, to))
        .map_err(local)
}

async fn piece(session: &Session, path: &str, offset: u64) -> Result<Vec<u8>, NodeError> {
    let (from, count) = ((offset + 1).to_string(), PIECE.to_string());
    let command = Command::script(PIECE_OF, &[path, &from, &count]).shown_as("fetch the snapshot");
    Ok(session.succeed(command).await?.stdout)
}

/// Brings a snapshot of this computer to the server.
pub async fn upload(
    host: &Host,
    options: &Options,
    watcher: &dyn Watcher,
    file: &Path,
    sha256: &str,
    to: &str,
) -> Result<(), NodeError> {
    let session = Node::new(host, options, watcher).open().await?;
    session.upload(file, sha256, to, 0o600).await?;
    session.close().await;
    Ok(())
}

/// What a server has of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    /// Its state in etcd.
    pub etcd: bool,
    /// The server's token, without which no snapshot can be read.
    pub token: bool,
}

impl Holding {
    fn parse(text: &str) -> Self {
        let has = |word| text.lines().any(|line| line == word);
        Self {
            etcd: has("etcd"),
            token: has("token"),
        }
    }
}

/// What each server has, or why it could not be asked.
pub async fn holdings(
    hosts: &[Host],
    options: &Options,
    watcher: &dyn Watcher,
) -> Vec<Result<Holding, NodeError>> {
    let said = each(
        hosts,
        options,
        watcher,
        HOLDING,
        &[SERVER_DATA],
        "look for the state",
    )
    .await;
    said.into_iter()
        .map(|said| said.map(|text| Holding::parse(&text)))
        .collect()
}

/// Stops K3s on every server: a majority that goes on would be another cluster.
pub async fn stop(
    hosts: &[Host],
    options: &Options,
    watcher: &dyn Watcher,
) -> Vec<Result<String, NodeError>> {
    each(hosts, options, watcher, STOP, &[], "stop K3s").await
}

/// Puts the members of servers that are to join again where K3s does not find them, and a person does.
pub async fn set_aside(
    hosts: &[Host],
    options: &Options,
    watcher: &dyn Watcher,
) -> Vec<Result<String, NodeError>> {
    let shown = "put the old state aside";
    each(hosts, options, watcher, SET_ASIDE, &[SERVER_DATA], shown).await
}

/// Takes the cluster's state from servers that are to join again, but for their snapshots.
pub async fn wipe(
    hosts: &[Host],
    options: &Options,
    watcher: &dyn Watcher,
    directory: &str,
) -> Vec<Result<String, NodeError>> {
    let arguments = [SERVER_DATA, directory];
    each(
        hosts,
        options,
        watcher,
        WIPE,
        &arguments,
        "wipe the old state",
    )
    .await
}

async fn each(
    hosts: &[Host],
    options: &Options,
    watcher: &dyn Watcher,
    script: &str,
    arguments: &[&str],
    shown: &str,
) -> Vec<Result<String, NodeError>> {
    fleet::each(hosts, options, |host| async move {
        let session = Node::new(host, options, watcher).open().await?;
        let command = Command::script(script, arguments).shown_as(shown);
        let output = session.succeed(command).await?;
        session.close().await;
        Ok(output.text())
    })
    .await
}

/// Makes this server the only member of a cluster with the snapshot's state. K3s does not run afterwards.
pub async fn reset(
    host: &Host,
    options: &Options,
    watcher: &dyn Watcher,
    path: &str,
) -> Result<(), NodeError> {
    let node = Node::new(host, options, watcher);
    let session = node.open().await?;
    let command = Command::script(RESET, &[path]).shown_as("k3s server --cluster-reset");
    let (exit, said) = session.listen(command, SHOWN).await?;
    session.close().await;
    if exit.success() {
        return Ok(());
    }
    Err(NodeError::Ended {
        node: host.name.clone(),
        how: format!("`k3s server --cluster-reset` {exit}"),
        said,
    })
}

impl Session {
    /// The last lines of what a long command says, whichever way it says them.
    async fn listen(
        &self,
        command: Command,
        lines: usize,
    ) -> Result<(crate::remote::Exit, Vec<String>), NodeError> {
        let said = std::sync::Mutex::new(Vec::new());
        let exit = self
            .stream(command, |_: Stream, line: &str| {
                if let Ok(mut said) = said.lock() {
                    if said.len() == lines {
                        said.remove(0);
                    }
                    said.push(line.to_owned());
                }
            })
            .await?;
        Ok((exit, said.into_inner().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_snapshot_or_nothing() {
        let line = "/snap/on-demand-one-1700000000\t2048\t1700000000\tabc";
        let snapshot = Snapshot::parse("one", line).unwrap();
        assert_eq!(snapshot.name, "on-demand-one-1700000000");
        assert_eq!((snapshot.bytes, snapshot.modified), (2048, 1_700_000_000));
        assert_eq!(snapshot.sha256.as_deref(), Some("abc"));
        let listed = Snapshot::parse("one", "/snap/a b\t1\t2\t").unwrap();
        assert_eq!((listed.name.as_str(), listed.sha256), ("a b", None));
        for other in ["", "/snap/x", "/snap/x\tmany\t1\t"] {
            assert_eq!(Snapshot::parse("one", other), None, "{other}");
        }
    }

    /// As the shell of a server runs them.
    #[test]
    fn the_scripts_are_shell() {
        for script in [SAVE, LIST, PIECE_OF, HOLDING, STOP, SET_ASIDE, RESET, WIPE] {
            let checked = std::process::Command::new("sh")
                .args(["-n", "-c", script])
                .status()
                .unwrap();
            assert!(checked.success(), "{script}");
        }
    }

    /// Runs a script as a server would; `systemctl` says that there is a K3s, or that there is none.
    fn run(script: &str, has_k3s: bool, arguments: &[&str]) -> String {
        let status = if has_k3s { 0 } else { 5 };
        let script = format!("systemctl() {{ return {status}; }}\n{script}");
        let output = std::process::Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn servers_that_join_again_lose_their_state_in_two_steps_and_never_their_snapshots() {
        let folder = tempfile::tempdir().unwrap();
        let (server, db) = (folder.path(), folder.path().join("db"));
        let data = server.to_str().unwrap();
        let all = |has_k3s| {
            let own = format!("{data}/db/own/snapshots");
            run(STOP, has_k3s, &[]);
            run(SET_ASIDE, has_k3s, &[data]);
            let aside = db.join("etcd-before-restore/member").is_dir();
            assert!(!db.join("etcd").exists());
            run(WIPE, has_k3s, &[data, &own]);
            aside
        };
        // Made anew: neither K3s nor data.
        assert!(!all(false));
        assert_eq!(
            Holding::parse(&run(HOLDING, false, &[data])),
            Holding::default()
        );
        for kept in ["etcd/member", "snapshots/a", "own/snapshots/b", "tls"] {
            std::fs::create_dir_all(db.join(kept)).unwrap();
        }
        std::fs::write(server.join("token"), "t").unwrap();
        let holding = Holding::parse(&run(HOLDING, true, &[data]));
        assert!(holding.etcd && holding.token);
        assert!(all(true));
        let mut left: Vec<_> = std::fs::read_dir(&db)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["own", "snapshots"]);
        assert!(Holding::parse(&run(HOLDING, true, &[data])).token);
    }
}
