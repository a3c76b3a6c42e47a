//! `orch images gc`: what the pipeline is told about files and clusters, and its answer as text.

use std::path::{Path, PathBuf};

use super::images_settings::ImageSettings;
use crate::cli::images::GcArgs;
use crate::exit::{Exit, WithExit as _};
use crate::images::execute::collect::{Collected, Request};
use crate::images::gc::GcError;
use crate::images::gc::roots::Sources;

/// What the arguments and the project's settings ask for; asks the cluster what it runs.
pub(super) async fn request(
    settings: &ImageSettings,
    arguments: GcArgs,
) -> anyhow::Result<Request> {
    let mut extra = settings.manifests.clone();
    extra.push(settings.lock.clone());
    extra.extend(state_locks(&settings.root));
    let kubeconfigs = match (arguments.no_cluster, arguments.kubeconfigs.as_slice()) {
        (true, _) => Vec::new(),
        (false, []) => settings.kubeconfig.iter().cloned().collect(),
        (false, named) => named.to_vec(),
    };
    if arguments.delete && !arguments.no_cluster && kubeconfigs.is_empty() {
        let unknown = anyhow::anyhow!(
            "what runs may be named nowhere else: name the cluster with --kubeconfig FILE, or say --no-cluster if there is none"
        );
        return Err(unknown).exit(Exit::Usage, "no cluster of this project is known here");
    }
    let mut live = Vec::new();
    for kubeconfig in kubeconfigs {
        let images = images_of(&kubeconfig).await.exit(
            Exit::Apply,
            format!(
                "asking the cluster of {} which images it needs (--no-cluster goes without it)",
                kubeconfig.display()
            ),
        )?;
        let who = format!("the cluster of {}", kubeconfig.display());
        live.extend(images.into_iter().map(|image| (who.clone(), image)));
    }
    Ok(Request {
        sources: Sources {
            root: settings.root.clone(),
            extra,
            lock: settings.lock.clone(),
            git: !arguments.no_git,
            remotes: !arguments.no_remote,
        },
        live,
        keep: arguments.protect,
        delete: arguments.delete,
    })
}

async fn images_of(kubeconfig: &Path) -> Result<Vec<String>, crate::kube::KubeError> {
    let client = crate::kube::connect(kubeconfig).await?;
    let images = crate::kube::images_in_use(&client).await?;
    Ok(images.into_iter().collect())
}

/// Locks of clusters with a description of their own, which git ignores.
fn state_locks(root: &Path) -> Vec<PathBuf> {
    let Ok(folders) = std::fs::read_dir(root.join(".orch")) else {
        return Vec::new();
    };
    folders
        .filter_map(Result::ok)
        .map(|folder| folder.path().join("images.lock"))
        .filter(|lock| lock.exists())
        .collect()
}

/// The exit code of each kind of failure.
pub(super) const fn exit_of(error: &GcError) -> Exit {
    match error {
        GcError::Keep { .. } => Exit::Usage,
        GcError::NoGit { .. }
        | GcError::Shallow { .. }
        | GcError::Behind { .. }
        | GcError::Remote { .. } => Exit::Input,
        GcError::Git { .. } | GcError::Read { .. } => Exit::Host,
    }
}

/// The answer for people: a line an image, repository by repository, and what it comes to.
pub(super) fn text(collected: &Collected) -> String {
    let verb = if collected.dry_run {
        "would delete"
    } else {
        "deleted"
    };
    let mut text = String::new();
    for item in &collected.repositories {
        let note = match item.former {
            true => ": no component has this name any more",
            false => "",
        };
        text.push_str(&format!("{}{note}\n", item.repository));
        for decision in &item.plan.kept {
            let tags = decision.tags.join(", ");
            text.push_str(&format!("  keep         {tags}: {}\n", decision.reason));
        }
        for decision in &item.plan.deleted {
            let name = if decision.tags.is_empty() {
                decision.digest.clone()
            } else {
                decision.tags.join(", ")
            };
            text.push_str(&format!("  {verb:<12} {name}: {}\n", decision.reason));
        }
        if let Some(reason) = &item.stopped {
            text.push_str(&format!("  stopped      {reason}\n"));
        }
    }
    let count = collected.deleted().count();
    let bytes: u64 = collected
        .repositories
        .iter()
        .map(|item| item.plan.bytes)
        .sum();
    let hint = match (collected.dry_run, count) {
        (true, 0) => "",
        (true, _) => "; --delete does it",
        (false, _) if collected.freed => "; the local registry freed their space",
        (false, _) => "",
    };
    text.push_str(&format!(
        "{verb} {count} images, {bytes} bytes that nothing else here uses{hint}; {} commits searched, {} names found\n",
        collected.commits, collected.named
    ));
    text
}
