//! `orch apply`: manifests, Secrets, server-side apply, rollouts.
//!
//! Boundary: composes `manifests` and `kube`; decides nothing that either of them could. What may stay without a digest is
//! what `images` leaves without one.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::images::pin::Kept;
use crate::kube::status::Pin;
use crate::kube::{
    self, Applied, ApplyOptions, ApplyResult, Desired, KubeError, Patience, Plan, PlannedAction,
    Reporter, RolloutError, WaitOptions, Workload, WorkloadKind,
};
use crate::manifests::{self, ManifestError, Pinned, SecretsError, SecretsOutcome, Stack};

/// What to apply, and how.
#[derive(Debug, Clone)]
pub struct ApplySettings {
    pub stacks: Vec<StackSettings>,
    pub kubeconfig: PathBuf,
    /// Instead of the directory that the nodes share, see [`manifests::SHARED_STORAGE_CLASS`].
    pub storage_class: Option<String>,
    /// Images of others that need no digest.
    pub kept: Kept,
    pub dry_run: bool,
    pub force_conflicts: bool,
    /// For all rollouts together.
    pub timeout: Duration,
    /// How long the API server may answer that it is not ready.
    pub settle: Duration,
    pub patience: Patience,
}

impl ApplySettings {
    fn wait(&self, hold: Duration) -> WaitOptions {
        WaitOptions {
            timeout: self.timeout,
            hold,
            patience: self.patience.clone(),
        }
    }
}

/// One stack.
#[derive(Debug, Clone)]
pub struct StackSettings {
    pub name: String,
    pub manifests: PathBuf,
    /// For objects that name no namespace.
    pub namespace: String,
}

/// Why nothing, or not everything, was applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Cluster(#[from] KubeError),
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    #[error("interrupted; what was applied stays, `orch apply` goes on from there")]
    Interrupted,
}

impl ApplyError {
    /// The process's exit status, as `orch apply --help` documents it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Manifests(_) | Self::Secrets(_) => 3,
            Self::Cluster(_) | Self::Rollout(_) => 8,
            Self::Interrupted => 130,
        }
    }
}

/// What was done, or would be.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum ApplyOutcome {
    Planned {
        stacks: Vec<StackPlan>,
    },
    Applied {
        stacks: Vec<StackReport>,
        ready: Vec<Workload>,
    },
}

/// One stack's dry run.
#[derive(Debug, Serialize)]
pub struct StackPlan {
    pub stack: String,
    /// The file with generated Secrets that an apply would write first; its objects are not in the plan.
    pub generates: Option<PathBuf>,
    #[serde(flatten)]
    pub plan: Plan,
}

/// One applied stack.
#[derive(Debug, Serialize)]
pub struct StackReport {
    pub stack: String,
    /// The file with Secrets that was generated.
    pub generated: Option<PathBuf>,
    pub objects: Vec<Applied>,
    /// Milliseconds that the apply calls took, without the rollouts.
    pub milliseconds: u128,
}

/// A stack that is ready to be sent.
struct Prepared {
    stack: String,
    generated: Option<PathBuf>,
    options: ApplyOptions,
    waves: Vec<Vec<Desired>>,
}

/// Applies every stack and waits for all rollouts, or plans it. Ends early on Ctrl-C.
pub async fn run(
    settings: &ApplySettings,
    reporter: &dyn Reporter,
) -> Result<ApplyOutcome, ApplyError> {
    tokio::select! {
        outcome = apply(settings, reporter) => outcome,
        _ = tokio::signal::ctrl_c() => Err(ApplyError::Interrupted),
    }
}

/// How long everything has to stay ready after something was changed: a container without a readiness
/// probe counts as ready until it crashes.
const HOLD_AFTER_CHANGE: Duration = Duration::from_secs(2);
/// How long everything has to stay ready after the machines were started, see [`WaitOptions::hold`].
const HOLD_AFTER_START: Duration = Duration::from_secs(8);

/// Waits for the stacks' workloads without applying anything. Ends early on Ctrl-C.
pub async fn wait(
    settings: &ApplySettings,
    reporter: &dyn Reporter,
) -> Result<Vec<Workload>, ApplyError> {
    let mut workloads = Vec::new();
    for stack in &settings.stacks {
        let loaded = Stack::load(&stack.manifests)?;
        workloads.extend(
            loaded
                .manifests
                .iter()
                .filter_map(|manifest| workload_of(manifest, stack)),
        );
    }
    let client = kube::connect(&settings.kubeconfig).await?;
    let options = settings.wait(HOLD_AFTER_START);
    tokio::select! {
        done = kube::wait_for_rollouts(&client, &workloads, &[], &options, reporter) => done?,
        _ = tokio::signal::ctrl_c() => return Err(ApplyError::Interrupted),
    }
    Ok(workloads)
}

/// The images that a stack's manifests pin, for `orch status` to compare with what runs.
pub fn pins(stack: &StackSettings) -> Result<Vec<Pin>, ManifestError> {
    let loaded = Stack::load(&stack.manifests)?;
    let mut pins = Vec::new();
    for manifest in &loaded.manifests {
        let Some(workload) = workload_of(manifest, stack) else {
            continue;
        };
        pins.extend(manifest.images.iter().map(|used| Pin {
            workload: workload.clone(),
            container: used.container.clone(),
            image: used.image.clone(),
        }));
    }
    Ok(pins)
}

fn workload_of<State>(
    manifest: &manifests::Manifest<State>,
    stack: &StackSettings,
) -> Option<Workload> {
    let kind = WorkloadKind::parse(&manifest.kind)?;
    let namespace = manifest.namespace.as_ref().unwrap_or(&stack.namespace);
    Some(Workload::new(kind, namespace, &manifest.name))
}

async fn apply(
    settings: &ApplySettings,
    reporter: &dyn Reporter,
) -> Result<ApplyOutcome, ApplyError> {
    let mut prepared = Vec::new();
    for stack in &settings.stacks {
        prepared.push(prepare(stack, settings)?);
    }
    let client = kube::connect(&settings.kubeconfig).await?;
    if settings.dry_run {
        let mut stacks = Vec::new();
        for stack in prepared {
            stacks.push(StackPlan {
                plan: kube::plan(&client, &stack.waves, &stack.options, reporter).await?,
                stack: stack.stack,
                generates: stack.generated,
            });
        }
        return Ok(ApplyOutcome::Planned { stacks });
    }

    let mut stacks = Vec::new();
    let mut workloads = Vec::new();
    let mut sent = Vec::new();
    for stack in prepared {
        sent.extend(stack.waves.iter().flatten().cloned());
        let started = Instant::now();
        let objects = kube::apply(&client, stack.waves, &stack.options, reporter).await?;
        workloads.extend(objects.iter().filter_map(workload));
        stacks.push(StackReport {
            stack: stack.stack,
            generated: stack.generated,
            objects,
            milliseconds: started.elapsed().as_millis(),
        });
    }
    let changed = stacks
        .iter()
        .flat_map(|stack: &StackReport| &stack.objects)
        .any(|object| object.result != ApplyResult::Unchanged);
    let hold = if changed {
        HOLD_AFTER_CHANGE
    } else {
        Duration::ZERO
    };
    let options = settings.wait(hold);
    kube::wait_for_rollouts(&client, &workloads, &sent, &options, reporter).await?;
    Ok(ApplyOutcome::Applied {
        stacks,
        ready: workloads,
    })
}

/// Everything that can go wrong without a cluster goes wrong here, before anything is sent.
fn prepare(stack: &StackSettings, settings: &ApplySettings) -> Result<Prepared, ApplyError> {
    let generated = if settings.dry_run {
        manifests::secrets_needed(&stack.manifests)
    } else {
        match manifests::ensure_secrets(&stack.manifests)? {
            SecretsOutcome::Generated(path) => Some(path),
            SecretsOutcome::Present(_) | SecretsOutcome::NotNeeded => None,
        }
    };
    let mut loaded = Stack::load(&stack.manifests)?;
    if let Some(class) = &settings.storage_class {
        loaded = loaded.with_storage_class(class);
    }
    Ok(Prepared {
        stack: stack.name.clone(),
        generated,
        options: ApplyOptions {
            namespace: stack.namespace.clone(),
            force_conflicts: settings.force_conflicts,
            settle: settings.settle,
        },
        waves: desired(loaded.pinned(|image| settings.kept.keeps(image))?),
    })
}

/// Only a pinned stack gets across.
fn desired(stack: Stack<Pinned>) -> Vec<Vec<Desired>> {
    let convert = |manifest: manifests::Manifest<Pinned>| Desired {
        api_version: manifest.api_version.clone(),
        kind: manifest.kind.clone(),
        namespace: manifest.namespace.clone(),
        name: manifest.name.clone(),
        origin: manifest.origin.to_string(),
        object: manifest.into_object(),
    };
    stack
        .into_waves()
        .into_iter()
        .map(|wave| wave.manifests.into_iter().map(convert).collect())
        .collect()
}

fn workload(applied: &Applied) -> Option<Workload> {
    let kind = WorkloadKind::parse(&applied.kind)?;
    Some(Workload::new(
        kind,
        applied.namespace.as_deref()?,
        &applied.name,
    ))
}

impl fmt::Display for ApplyOutcome {
    /// The result for people; the last line sums up.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned { stacks } => stacks
                .iter()
                .try_for_each(|stack| write_plan(formatter, stack)),
            Self::Applied { stacks, ready } => {
                for report in stacks {
                    write_report(formatter, report)?;
                }
                writeln!(formatter, "{} workloads ready", ready.len())
            }
        }
    }
}

fn write_plan(formatter: &mut fmt::Formatter<'_>, stack: &StackPlan) -> fmt::Result {
    if let Some(path) = &stack.generates {
        writeln!(formatter, "generate    {}", path.display())?;
    }
    let mut counts = [0; 4];
    for object in &stack.plan.objects {
        let action = match object.action {
            PlannedAction::Create => "create",
            PlannedAction::Configure => "configure",
            PlannedAction::Unchanged => "unchanged",
            PlannedAction::Conflict => "conflict",
        };
        counts[object.action as usize] += 1;
        let mut line = format!("{action:<11} {} {}", object.kind, object.name);
        if !object.validated {
            line.push_str(" (not checked: what it depends on is part of this plan)");
        }
        for change in &object.changes {
            let value = |value: &Option<serde_json::Value>| {
                value.as_ref().map_or("-".to_owned(), ToString::to_string)
            };
            match (&change.before, &change.after) {
                (None, None) => write!(line, "\n              {}", change.field)?,
                (before, after) => write!(
                    line,
                    "\n              {}: {} -> {}",
                    change.field,
                    value(before),
                    value(after)
                )?,
            }
        }
        for conflict in &object.conflicts {
            write!(
                line,
                "\n              {:?} owns {}",
                conflict.manager,
                conflict.fields.join(", ")
            )?;
        }
        writeln!(formatter, "{line}")?;
    }
    let [create, configure, unchanged, conflict] = counts;
    writeln!(
        formatter,
        "stack {}: {create} to create, {configure} to configure, {unchanged} unchanged, {conflict} in conflict",
        stack.stack
    )
}

fn write_report(formatter: &mut fmt::Formatter<'_>, report: &StackReport) -> fmt::Result {
    if let Some(path) = &report.generated {
        writeln!(formatter, "generated  {}", path.display())?;
    }
    for object in &report.objects {
        writeln!(
            formatter,
            "{:<10} {} {}",
            object.result, object.kind, object.name
        )?;
    }
    let count = |result| {
        report
            .objects
            .iter()
            .filter(|object| object.result == result)
            .count()
    };
    writeln!(
        formatter,
        "stack {}: {} created, {} configured, {} unchanged",
        report.stack,
        count(ApplyResult::Created),
        count(ApplyResult::Configured),
        count(ApplyResult::Unchanged)
    )
}
