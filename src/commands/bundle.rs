//! `orch bundle`: what a cluster is made from, carried to where there is no network.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::bundle_collect::{self, Source};
use super::images_exit::coded_while;
use super::{Context, alone, create};
use crate::bundle::contents::Contents;
use crate::bundle::read::{self, Announced};
use crate::bundle::unpack::{self, Watch};
use crate::bundle::unpacked::Unpacked;
use crate::bundle::write::{Writer, Written};
use crate::bundle::{BundleError, layout};
use crate::cli::CreateArgs;
use crate::cli::bundle::{BundleCreateArgs, BundleInstallArgs, BundleListArgs};
use crate::exit::{Exit, WithExit as _};
use crate::images::event::Reporter;
use crate::images::registry::retry::Policy;
use crate::images::take::{self, TakeError};
use crate::progress::Progress as _;
use crate::ui::{Step, Ui};

const MIB: u64 = 1024 * 1024;

/// The result of `doing`; a bundle or an input that is wrong is not this host's fault.
pub(super) fn coded<T>(result: Result<T, BundleError>, doing: &str) -> anyhow::Result<T> {
    result.or_else(|error| {
        let exit = match &error {
            BundleError::Damaged { .. }
            | BundleError::Format { .. }
            | BundleError::Refused { .. }
            | BundleError::Occupied { .. } => Exit::Input,
            BundleError::Stopped => Exit::Interrupted,
            BundleError::Changed { .. } | BundleError::InUse { .. } | BundleError::Io { .. } => {
                Exit::Host
            }
        };
        Err(error).exit(exit, doing)
    })
}

/// `orch bundle create`.
pub(super) async fn create(context: &Context, arguments: &BundleCreateArgs) -> anyhow::Result<()> {
    let step = context.ui.step("bundle");
    let collected = bundle_collect::collect(context, arguments, &step).await?;
    let contents = &collected.contents;
    for left_out in &contents.left_out {
        step.say(left_out);
    }
    for kept in &contents.kept {
        step.say(&format!(
            "{kept} is named without a digest and not put in: the nodes must have it"
        ));
    }
    if arguments.dry_run {
        step.done("nothing was written");
        show(&context.ui, contents, json!({"dry_run": true}));
        return Ok(());
    }
    let target = arguments
        .output_file
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{}.orch.tar.zst", context.cluster())));
    let making = "making the bundle";
    let mut writer = coded(Writer::create(&target, contents), making)?;
    let total: u64 = contents.members.iter().map(|member| member.size).sum();
    let mut done = 0;
    while let Some(member) = coded(writer.begin(), making)? {
        match collected.sources.get(&member.path) {
            Some(Source::Bytes(bytes)) => {
                coded(writer.data(bytes).and_then(|()| writer.end()), making)?
            }
            Some(Source::File(path)) => coded(writer.file(path), making)?,
            Some(Source::Blob(registry, repository)) => {
                let digest = format!("sha256:{}", member.sha256);
                let patience = (Policy::default(), step.as_ref() as &dyn Reporter);
                let blob = (digest.as_str(), member.size);
                let mut sent = done;
                let keep = |bytes: &[u8]| {
                    sent += bytes.len() as u64;
                    step.bytes(&member.path, sent, Some(total));
                    Ok(writer.data(bytes)?)
                };
                let taken = take::blob(registry.as_ref(), repository, blob, patience, keep).await;
                match taken {
                    Ok(()) => coded(writer.end(), making)?,
                    Err(TakeError::Image(error)) => {
                        coded_while("taking the images from their registries", Err(error))?;
                    }
                    Err(error) => return Err(error).exit(Exit::Host, making),
                }
            }
            None => anyhow::bail!("{} was announced and has no source", member.path),
        }
        done += member.size;
        step.bytes(&member.path, done, Some(total));
    }
    let written = coded(writer.finish(), making)?;
    step.done(&format!(
        "{}: {} MiB, {} images",
        target.display(),
        written.size / MIB,
        contents.images.len()
    ));
    show(&context.ui, contents, written_json(&target, &written));
    Ok(())
}

fn written_json(target: &Path, written: &Written) -> serde_json::Value {
    json!({
        "bundle": target,
        "size": written.size,
        "sha256": written.sha256,
        "id": written.id,
    })
}

/// `orch bundle list`.
pub(super) async fn list(ui: &Ui, arguments: &BundleListArgs) -> anyhow::Result<()> {
    let step = ui.step("bundle");
    let announced = verified(&arguments.bundle, &step).await?;
    step.done("every checksum is right");
    show(
        ui,
        &announced.contents,
        json!({"bundle": arguments.bundle, "id": announced.id}),
    );
    Ok(())
}

/// `orch bundle install`.
pub(super) async fn install(ui: &Ui, arguments: &BundleInstallArgs) -> anyhow::Result<()> {
    let reading = "reading the bundle";
    let announced = coded(read::peek(&arguments.bundle), reading)?;
    if let Some(wanted) = arguments
        .id
        .as_ref()
        .filter(|wanted| **wanted != announced.id)
    {
        return Err(anyhow::anyhow!(
            "{} has id {}, and {wanted} was asked for",
            arguments.bundle.display(),
            announced.id
        ))
        .exit(Exit::Input, reading);
    }
    let here = crate::images::component::host_platform();
    if announced.contents.platform != here {
        ui.note(&format!(
            "the bundle is for nodes of {}, and this computer is {here}",
            announced.contents.platform
        ));
    }
    let root = arguments
        .into
        .clone()
        .unwrap_or_else(|| PathBuf::from(&announced.contents.cluster));
    let file = root.join(crate::config::FILE_NAME);
    let is_there = present(&root, &announced)?;
    if arguments.dry_run {
        let step = ui.step("bundle");
        verified(&arguments.bundle, &step).await?;
        step.done("every checksum is right");
        if is_there {
            return create::run(&Context::load(&file, ui)?, &create_arguments(arguments)).await;
        }
        let folder = root.display();
        ui.result(&format!("bundle     would be unpacked into {folder}"));
        ui.result(&format!(
            "create     would make the cluster {} from it",
            announced.contents.cluster
        ));
        return Ok(());
    }
    let step = ui.step("bundle");
    if is_there {
        // It was whole when it got its name; this is for what has happened since.
        let folder = root.clone();
        let checked = tokio::task::spawn_blocking(move || match Unpacked::find(&folder)? {
            Some(unpacked) => unpacked.check_all(),
            None => Ok(()),
        });
        coded(checked.await?, "checking what was unpacked before")?;
        step.done(&format!("{} holds it already", root.display()));
    } else {
        let (bundle, target) = (arguments.bundle.clone(), root.clone());
        let unpacked = watched(&step, move |watch| unpack::unpack(&bundle, &target, watch));
        coded(unpacked.await?, "unpacking the bundle")?;
        step.done(&format!("unpacked into {}", root.display()));
    }
    if arguments.unpack {
        let answer = json!({"project": file, "id": announced.id});
        if ui.is_json() {
            ui.result_json(&answer);
        } else {
            ui.result(&format!("orch --file {} create", file.display()));
        }
        return Ok(());
    }
    let context =
        Context::load(&file, ui).exit(Exit::Input, "reading the cluster's description")?;
    let _lock = alone(&context).await?;
    create::run(&context, &create_arguments(arguments)).await
}

const fn create_arguments(arguments: &BundleInstallArgs) -> CreateArgs {
    CreateArgs {
        dry_run: arguments.dry_run,
        timeout: arguments.timeout,
    }
}

/// Whether the folder holds this bundle already. One that holds anything else is left alone.
fn present(root: &Path, announced: &Announced) -> anyhow::Result<bool> {
    let choosing = "choosing the project's folder";
    if let Some(unpacked) = coded(Unpacked::find(root), choosing)? {
        if unpacked.announced.id == announced.id {
            return Ok(true);
        }
        let what = format!("holds the bundle {}", unpacked.announced.id);
        let folder = root.to_owned();
        return coded(Err(BundleError::Occupied { folder, what }), choosing);
    }
    let is_free = match std::fs::read_dir(root) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_free {
        return Ok(false);
    }
    let what = "is there and holds something else".to_owned();
    let folder = root.to_owned();
    coded(Err(BundleError::Occupied { folder, what }), choosing)
}

async fn verified(bundle: &Path, step: &Arc<Step>) -> anyhow::Result<Announced> {
    let bundle = bundle.to_owned();
    let verified = watched(step, move |watch| unpack::verify(&bundle, watch)).await?;
    coded(verified, "verifying the bundle")
}

/// Does work that only computes, writes and reads, and ends it when nobody waits for it any more.
async fn watched<T: Send + 'static>(
    step: &Arc<Step>,
    work: impl FnOnce(&Watch<'_>) -> T + Send + 'static,
) -> anyhow::Result<T> {
    struct Ending(Arc<AtomicBool>);
    impl Drop for Ending {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let ending = Ending(Arc::default());
    let (stop, progress) = (Arc::clone(&ending.0), Arc::clone(step));
    let working = tokio::task::spawn_blocking(move || {
        work(&Watch {
            progress: progress.as_ref(),
            stop: &stop,
        })
    });
    Ok(working.await?)
}

fn show(ui: &Ui, contents: &Contents, about: serde_json::Value) {
    if ui.is_json() {
        let mut answer = about;
        if let Some(fields) = answer.as_object_mut() {
            fields.insert("contents".to_owned(), json!(contents));
        }
        ui.result_json(&answer);
        return;
    }
    let total: u64 = contents.members.iter().map(|member| member.size).sum();
    let kind = if contents.k3s.standin {
        "stand-in for K3s"
    } else {
        "K3s"
    };
    ui.result(&format!(
        "cluster  {}, for {}",
        contents.cluster, contents.platform
    ));
    ui.result(&format!("{kind}  {}", contents.k3s.version));
    for image in &contents.images {
        let tag = image
            .tag
            .as_ref()
            .map_or_else(String::new, |tag| format!(" ({tag})"));
        ui.result(&format!("image    {}{tag}", layout::name(image)));
    }
    for text in &contents.left_out {
        ui.result(&format!("not in   {text}"));
    }
    ui.result(&format!(
        "{} files, {} MiB",
        contents.members.len(),
        total / MIB
    ));
    for key in ["bundle", "size", "sha256", "id"] {
        match about.get(key) {
            Some(serde_json::Value::String(text)) => ui.result(&format!("{key:<8} {text}")),
            Some(value) => ui.result(&format!("{key:<8} {value}")),
            None => {}
        }
    }
}
