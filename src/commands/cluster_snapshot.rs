//! `orch cluster snapshot`: etcd's snapshots, made by K3s on a server, and the way back to one.
//!
//! Going back makes one server the only member of a new etcd with the snapshot's state; the others lose theirs and join it
//! again, as servers that were made anew do.

use std::path::Path;
use std::sync::Arc;

use orch_contract::Role;

use super::cluster_nodes::{self, Shown};
use super::{Context, artifacts, cluster, idle, reach};
use crate::cli::cluster::{
    Access, SnapshotCommand, SnapshotListArgs, SnapshotRestoreArgs, SnapshotSaveArgs,
};
use crate::exit::{Exit, WithExit as _};
use crate::nodes::snapshot::{self, Holding, Snapshot};
use crate::nodes::{Host, NodeError, Options};
use crate::ui::Step;

/// What a snapshot that an upgrade makes is called.
const BEFORE_UPGRADE: &str = "before-upgrade";

pub(super) async fn run(context: &Context, command: &SnapshotCommand) -> anyhow::Result<Exit> {
    let access = match command {
        SnapshotCommand::Save(arguments) => &arguments.access,
        SnapshotCommand::List(arguments) => &arguments.access,
        SnapshotCommand::Restore(arguments) => &arguments.access,
    };
    refuse_sqlite(context, access).await?;
    match command {
        SnapshotCommand::Save(arguments) => save(context, arguments).await,
        SnapshotCommand::List(arguments) => list(context, arguments).await,
        SnapshotCommand::Restore(arguments) => restore(context, arguments).await,
    }
}

/// The only server that is left of several has its state in etcd still, whatever orch.yaml says.
async fn refuse_sqlite(context: &Context, access: &Access) -> anyhow::Result<()> {
    if context.config.uses_etcd() {
        return Ok(());
    }
    let (hosts, options) = servers(context, access)?;
    let shown = Shown(context.ui.step("state"));
    let mut held = snapshot::holdings(&hosts, &options, &shown)
        .await
        .into_iter();
    if held.any(|held| held.is_ok_and(|held| held.etcd)) {
        return Ok(());
    }
    Err(anyhow::anyhow!(
        "the only server of cluster {} keeps its state in SQLite, of which K3s makes no snapshots",
        context.cluster()
    ))
    .exit(
        Exit::Input,
        "`k3s.etcd: true` in orch.yaml and `orch cluster up` move it to etcd, once and for good",
    )
}

/// A file name of its own for K3s's setting, or K3s's default.
fn directory(context: &Context) -> &str {
    let set = context.config.k3s.config.get("etcd-snapshot-dir");
    set.and_then(serde_json::Value::as_str)
        .unwrap_or(snapshot::DIRECTORY)
}

fn servers(context: &Context, access: &Access) -> anyhow::Result<(Vec<Host>, Options)> {
    let mut hosts = reach::hosts(context)?;
    hosts.retain(|host| host.role == Role::Server);
    Ok((hosts, reach::options(context, access)?))
}

/// Before a server gets another K3s: the way back is the old K3s with this.
pub(super) async fn before_upgrade(
    context: &Context,
    host: &Host,
    options: &Options,
    step: &Arc<Step>,
) -> anyhow::Result<()> {
    if !context.config.uses_etcd() {
        return Ok(());
    }
    let shown = Shown(Arc::clone(step));
    let mut others = reach::hosts(context)?;
    others.retain(|other| other.role == Role::Server && other.name != host.name);
    let mut failed = Vec::new();
    // All have the same state; the K3s of the one that is due may be what the upgrade is to mend.
    for server in std::iter::once(host).chain(&others) {
        match snapshot::save(server, options, &shown, BEFORE_UPGRADE, directory(context)).await {
            Ok(saved) => {
                step.say(&format!("{}: snapshot {}", saved.server, saved.name));
                return Ok(());
            }
            Err(error) => failed.push(error),
        }
    }
    Err(all(failed)).exit(Exit::Machine, "making a snapshot before the upgrade")
}

async fn save(context: &Context, arguments: &SnapshotSaveArgs) -> anyhow::Result<Exit> {
    let (hosts, options) = servers(context, &arguments.access)?;
    let step = context.ui.step("snapshot");
    let shown = Shown(Arc::clone(&step));
    let mut failed = Vec::new();
    for host in &hosts {
        let saved =
            snapshot::save(host, &options, &shown, &arguments.name, directory(context)).await;
        let saved = match saved {
            Ok(saved) => saved,
            Err(error) => {
                failed.push(error);
                continue;
            }
        };
        if let Some(file) = &arguments.output_file {
            snapshot::download(host, &options, &shown, &saved, file)
                .await
                .exit(Exit::Machine, "fetching the snapshot")?;
        }
        step.done(&format!("{} on {}", saved.name, saved.server));
        show_saved(context, &saved, arguments.output_file.as_deref())?;
        return Ok(Exit::Success);
    }
    Err(all(failed)).exit(Exit::Machine, "making a snapshot")
}

fn show_saved(context: &Context, saved: &Snapshot, file: Option<&Path>) -> anyhow::Result<()> {
    if context.ui.is_json() {
        let mut value = serde_json::to_value(saved)?;
        value["file"] = serde_json::json!(file);
        context.ui.result_json(&value);
        return Ok(());
    }
    let sum = saved.sha256.as_deref().unwrap_or_default();
    context.ui.result(&match file {
        Some(file) => format!("{sum}  {}", file.display()),
        None => format!("{sum}  {}:{}", saved.server, saved.path),
    });
    Ok(())
}

async fn list(context: &Context, arguments: &SnapshotListArgs) -> anyhow::Result<Exit> {
    let (hosts, options) = servers(context, &arguments.access)?;
    let step = context.ui.step("snapshots");
    let shown = Shown(Arc::clone(&step));
    let listed = snapshot::list(&hosts, &options, &shown, directory(context)).await;
    let (found, failed): (Vec<_>, Vec<_>) = listed.into_iter().partition(Result::is_ok);
    let found: Vec<Snapshot> = found.into_iter().flatten().flatten().collect();
    let failed: Vec<NodeError> = failed.into_iter().filter_map(Result::err).collect();
    step.done(&format!("{} on {} servers", found.len(), hosts.len()));
    if context.ui.is_json() {
        context
            .ui
            .result_json(&serde_json::json!({"snapshots": found}));
    } else {
        for line in table(&found) {
            context.ui.result(&line);
        }
    }
    if failed.is_empty() {
        return Ok(Exit::Success);
    }
    Err(all(failed)).exit(Exit::Machine, "listing the snapshots")
}

fn table(found: &[Snapshot]) -> Vec<String> {
    let width = |of: fn(&Snapshot) -> &String, title: &str| {
        let lengths = found.iter().map(|snapshot| of(snapshot).len());
        lengths.max().unwrap_or(0).max(title.len())
    };
    let (server, name) = (width(|s| &s.server, "SERVER"), width(|s| &s.name, "NAME"));
    let title = format!(
        "{:server$}  {:name$}  {:>12}  MADE",
        "SERVER", "NAME", "BYTES"
    );
    let lines = found.iter().map(|snapshot| {
        let made = jiff::Timestamp::from_second(snapshot.modified).unwrap_or_default();
        format!(
            "{:server$}  {:name$}  {:>12}  {made}",
            snapshot.server, snapshot.name, snapshot.bytes
        )
    });
    std::iter::once(title).chain(lines).collect()
}

async fn restore(context: &Context, arguments: &SnapshotRestoreArgs) -> anyhow::Result<Exit> {
    if !arguments.yes {
        return Err(anyhow::anyhow!(
            "the state of cluster {} would be replaced by that of {}; what it took in since then would be lost",
            context.cluster(),
            arguments.snapshot
        ))
        .exit(Exit::Input, "`--yes` does it");
    }
    let (mut hosts, options) = servers(context, &arguments.access)?;
    let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    idle::refuse(context, &names).await?;
    let artifacts = artifacts::step(context).await?;
    let step = context.ui.step("restore");
    let shown = Shown(Arc::clone(&step));
    let (index, path) = locate(context, &arguments.snapshot, &hosts, &options, &step).await?;
    let server = hosts.remove(index);
    // Every one of them: a majority that went on would be a cluster beside the restored one.
    let everyone: Vec<Host> = hosts.iter().chain([&server]).cloned().collect();
    let stopped = snapshot::stop(&everyone, &options, &shown).await;
    none_failed(stopped).exit(
        Exit::Machine,
        "stopping K3s on every server; replace one that is gone for good in orch.yaml by another; `orch cluster up` starts them again",
    )?;
    step.say("K3s is stopped on every server");
    let again = again(&server.name, hosts.is_empty());
    let aside = snapshot::set_aside(&hosts, &options, &shown).await;
    none_failed(aside).exit(Exit::Machine, again.as_str())?;
    snapshot::reset(&server, &options, &shown, &path)
        .await
        .exit(Exit::Machine, again.as_str())?;
    step.say(&format!("{}: has the snapshot's state", server.name));
    let wiped = snapshot::wipe(&hosts, &options, &shown, directory(context)).await;
    none_failed(wiped).exit(Exit::Machine, again.as_str())?;
    step.done(&format!("{path} on {}", server.name));
    // The others have no data now: each joins, the first one as well.
    cluster_nodes::run(context, &artifacts, &arguments.access).await?;
    cluster::finish(context, "snapshot restored");
    Ok(Exit::Success)
}

/// What to do when it was cut off, and the way back where the snapshot is the trouble.
fn again(server: &str, is_only: bool) -> String {
    let mut text = "restoring the snapshot; K3s is stopped, run this again to go on".to_owned();
    if !is_only {
        text.push_str(&format!(
            ", and neither `up` nor a reboot before; to give it up, move db/etcd-before-restore below /var/lib/rancher/k3s/server \
             back to db/etcd on every server but {server}, there the db/etcd-old-... that K3s kept if it has one, and run `orch cluster up`"
        ));
    }
    text
}

/// The server that has the snapshot, and where. A file of this computer is brought to the first server that has the token: its
/// bootstrap data is encrypted with that.
async fn locate(
    context: &Context,
    snapshot: &str,
    hosts: &[Host],
    options: &Options,
    step: &Arc<Step>,
) -> anyhow::Result<(usize, String)> {
    let shown = Shown(Arc::clone(step));
    let file = Path::new(snapshot);
    if file.is_file() {
        let reading = || format!("reading {}", file.display());
        let sum = crate::files::sha256_of(file).exit(Exit::Input, reading())?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let path = format!("{}/{name}", directory(context));
        let held = snapshot::holdings(hosts, options, &shown).await;
        let has_token =
            |held: &Result<Holding, NodeError>| held.as_ref().is_ok_and(|held| held.token);
        let Some(index) = held.iter().position(has_token) else {
            let failed: Vec<_> = held.into_iter().filter_map(Result::err).collect();
            return Err(match failed.is_empty() {
                true => anyhow::anyhow!(
                    "no server has /var/lib/rancher/k3s/server/token, with which a snapshot is encrypted; put the old one back"
                ),
                false => all(failed),
            })
            .exit(Exit::Machine, "looking for a server with the cluster's token");
        };
        let first = &hosts[index];
        snapshot::upload(first, options, &shown, file, &sum, &path)
            .await
            .exit(
                Exit::Machine,
                format!("bringing {} to {}", file.display(), first.name),
            )?;
        return Ok((index, path));
    }
    let listed = snapshot::list(hosts, options, &shown, directory(context)).await;
    let mut servers = listed.iter().enumerate();
    let found = servers.find_map(|(index, found)| {
        let mut found = found.as_ref().ok()?.iter();
        let found = found.find(|one| one.name == snapshot)?;
        Some((index, found.path.clone()))
    });
    if let Some(found) = found {
        return Ok(found);
    }
    let failed: Vec<_> = listed.into_iter().filter_map(Result::err).collect();
    if !failed.is_empty() {
        return Err(all(failed)).exit(
            Exit::Machine,
            format!("looking for the snapshot {snapshot:?}, which no other server has"),
        );
    }
    Err(anyhow::anyhow!(
        "{snapshot:?} is neither a file of this computer nor a snapshot that a server has"
    ))
    .exit(
        Exit::Input,
        "looking for the snapshot; `orch cluster snapshot list` names them",
    )
}

fn none_failed<T>(results: Vec<Result<T, NodeError>>) -> anyhow::Result<()> {
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(all(failed))
}

/// Every node's reason.
fn all(failed: Vec<NodeError>) -> anyhow::Error {
    let lines: Vec<_> = failed
        .iter()
        .map(|error| crate::nodes::chain(error))
        .collect();
    anyhow::anyhow!("{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_snapshots() {
        let snapshot = Snapshot {
            server: "one".to_owned(),
            name: "on-demand-one-1".to_owned(),
            path: String::new(),
            bytes: 4096,
            modified: 0,
            sha256: None,
        };
        insta::assert_snapshot!(table(&[snapshot]).join("\n"), @r"
        SERVER  NAME                    BYTES  MADE
        one     on-demand-one-1          4096  1970-01-01T00:00:00Z
        ");
    }
}
