//! `orch apply`, and the apply step of `create`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use orch_contract::{VolumeDirectory, node_paths};

use super::Context;
use super::apply::{self, ApplyError, ApplyOutcome, ApplySettings, StackSettings};
use crate::cli::apply::ApplyArguments;
use crate::exit::{Exit, WithExit as _};
use crate::images::pin::Kept;
use crate::kube::Patience;
use crate::manifests::Stack;
use crate::ui::Step;

/// How long a fresh API server may say that it is not ready.
const SETTLE: Duration = Duration::from_secs(120);
/// How long everything may take to run again after a start.
const START_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) fn stacks(context: &Context) -> Vec<StackSettings> {
    let stack = |stack: &crate::config::Stack| StackSettings {
        name: stack.name.clone(),
        manifests: context.path(&stack.manifests),
        namespace: stack.namespace.clone(),
    };
    context.config.stacks.iter().map(stack).collect()
}

fn settings(
    context: &Context,
    timeout: Duration,
    keep: &[String],
) -> anyhow::Result<ApplySettings> {
    let keep = [&context.config.images.keep, keep].concat();
    let kept = Kept::new(&keep).exit(Exit::Input, "reading which images may stay unpinned")?;
    Ok(ApplySettings {
        stacks: stacks(context),
        kubeconfig: context.project.kubeconfig(),
        storage_class: context.config.storage.class.clone(),
        kept,
        dry_run: false,
        force_conflicts: false,
        timeout,
        settle: SETTLE,
        patience: Patience::default(),
    })
}

fn coded<T>(result: Result<T, ApplyError>, doing: &str) -> anyhow::Result<T> {
    result.or_else(|error| {
        let exit = match error.exit_code() {
            3 => Exit::Input,
            130 => Exit::Interrupted,
            _ => Exit::Apply,
        };
        Err(error).exit(exit, doing)
    })
}

async fn run_in_step(step: &Arc<Step>, settings: &ApplySettings) -> anyhow::Result<ApplyOutcome> {
    coded(
        apply::run(settings, step.as_ref()).await,
        "applying the manifests",
    )
}

/// `orch apply`.
pub(super) async fn run(context: &Context, arguments: &ApplyArguments) -> anyhow::Result<()> {
    let mut settings = settings(context, arguments.timeout, &arguments.keep)?;
    if let Some(kubeconfig) = &arguments.kubeconfig {
        settings.kubeconfig.clone_from(kubeconfig);
    }
    if let Some(manifests) = &arguments.manifests {
        settings.stacks = vec![StackSettings {
            name: manifests
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            manifests: manifests.clone(),
            namespace: arguments.namespace.clone(),
        }];
    } else if !arguments.stack.is_empty() {
        for name in &arguments.stack {
            if !settings.stacks.iter().any(|stack| stack.name == *name) {
                let known: Vec<_> = settings
                    .stacks
                    .iter()
                    .map(|stack| stack.name.as_str())
                    .collect();
                return Err(anyhow::anyhow!(
                    "orch.yaml has no stack {name:?}; it has: {}",
                    known.join(", ")
                ))
                .exit(Exit::Input, "choosing stacks");
            }
        }
        settings
            .stacks
            .retain(|stack| arguments.stack.contains(&stack.name));
    }
    settings.dry_run = arguments.dry_run;
    settings.force_conflicts = arguments.force_conflicts;
    let step = context.ui.step("apply");
    let outcome = run_in_step(&step, &settings).await?;
    step.done("done");
    if context.ui.is_json() {
        context.ui.result_json(&outcome);
    } else {
        context.ui.result(outcome.to_string().trim_end());
    }
    Ok(())
}

/// The apply step of `create`.
pub(super) async fn apply_all(context: &Context, timeout: u64) -> anyhow::Result<()> {
    let step = context.ui.step("apply");
    let settings = settings(context, Duration::from_secs(timeout), &[])?;
    let outcome = run_in_step(&step, &settings).await?;
    let text = outcome.to_string();
    step.done(
        &text
            .lines()
            .filter(|line| line.starts_with("stack "))
            .collect::<Vec<_>>()
            .join("; "),
    );
    Ok(())
}

/// The directories that the stacks' volumes expect on the nodes.
pub(super) fn volume_directories(context: &Context) -> anyhow::Result<Vec<VolumeDirectory>> {
    let root = Path::new(node_paths::VOLUMES);
    let mut directories = Vec::new();
    for stack in stacks(context) {
        let found =
            Stack::load(&stack.manifests).and_then(|loaded| loaded.volume_directories(root));
        directories.extend(found.exit(Exit::Input, "reading the manifests' volumes")?);
    }
    Ok(directories)
}

/// Waits, after a start, until everything that was applied runs again.
pub(super) async fn wait_all(context: &Context) -> anyhow::Result<()> {
    let step = context.ui.step("rollouts");
    let settings = settings(context, START_TIMEOUT, &[])?;
    let waited = apply::wait(&settings, step.as_ref()).await;
    let ready = coded(waited, "waiting for the rollouts")?;
    step.done(&format!("{} workloads ready", ready.len()));
    Ok(())
}
