//! Waits until every workload's rollout is complete, and says why when one will not be.
//!
//! All workloads are watched at once. A trouble that time may heal gets some [`Patience`]; one that
//! outlasts it ends the wait before the timeout, with the pod's own reason and its last log lines.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use serde::Serialize;
use tokio::time::Instant;

use super::diagnose::{Cause, Symptom};
use super::redact::Redactor;
use super::rollout::{Progress, Workload};
use super::watch::{self, Assessment, View};
use super::{ApplyEvent, Desired, Reporter};

/// Lines of a crashed container's log that are shown.
const LOG_LINES: i64 = 20;
/// Longest piece of a log that is fetched, in bytes.
const LOG_BYTES: i64 = 16 * 1024;
/// Symptoms age while nothing changes.
const TICK: Duration = Duration::from_millis(500);

/// How long each trouble may last before it counts as definite.
#[derive(Debug, Clone)]
pub struct Patience {
    /// The registry says that it has no such image.
    pub image_missing: Duration,
    /// The image cannot be pulled for another reason, such as a registry that still starts.
    pub image_pull: Duration,
    /// A container crashes again and again, perhaps until its database is up.
    pub crash_loop: Duration,
    /// A Secret or ConfigMap is missing, or the container cannot be made.
    pub configuration: Duration,
    /// A volume cannot be mounted.
    pub mount: Duration,
    /// No node takes the pod; another node may still be joining.
    pub unschedulable: Duration,
    /// The controller is not allowed to create the pod.
    pub creation: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            image_missing: Duration::from_secs(8),
            image_pull: Duration::from_secs(30),
            crash_loop: Duration::from_secs(45),
            configuration: Duration::from_secs(15),
            mount: Duration::from_secs(60),
            unschedulable: Duration::from_secs(45),
            creation: Duration::from_secs(20),
        }
    }
}

impl Patience {
    /// `None`: never definite, only the timeout ends it.
    fn with(&self, cause: Cause) -> Option<Duration> {
        match cause {
            Cause::InvalidImage => Some(Duration::ZERO),
            Cause::ImageMissing => Some(self.image_missing),
            Cause::ImagePull => Some(self.image_pull),
            Cause::CrashLoop => Some(self.crash_loop),
            Cause::Configuration => Some(self.configuration),
            Cause::Mount => Some(self.mount),
            Cause::Unschedulable => Some(self.unschedulable),
            Cause::Creation => Some(self.creation),
            // A failed pod is replaced by its controller, a starting one takes its time.
            Cause::PodFailed | Cause::Crashed | Cause::NotReady => None,
        }
    }
}

/// A workload that did not become ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StuckWorkload {
    pub workload: Workload,
    /// What was waited for.
    pub condition: String,
    /// What was seen last.
    pub observed: String,
    /// The pod's or controller's own reason, with log lines where a container crashed.
    pub reason: Option<String>,
}

impl fmt::Display for StuckWorkload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: waited for {}; {}",
            self.workload, self.condition, self.observed
        )?;
        for line in self.reason.iter().flat_map(|reason| reason.lines()) {
            write!(formatter, "\n    {line}")?;
        }
        Ok(())
    }
}

fn list(workloads: &[StuckWorkload]) -> String {
    workloads
        .iter()
        .map(|workload| format!("\n  {workload}"))
        .collect()
}

/// Why a rollout is not complete.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    #[error("the rollout cannot succeed:{}", list(workloads))]
    Failed { workloads: Vec<StuckWorkload> },
    #[error("the rollout is not complete after {} s; what was applied stays, `orch apply` waits again:{}", timeout.as_secs(), list(workloads))]
    TimedOut {
        timeout: Duration,
        workloads: Vec<StuckWorkload>,
    },
    #[error("this kubeconfig's user may not watch the rollout: {message}")]
    Forbidden { message: String },
}

/// How to wait.
#[derive(Debug, Clone)]
pub struct WaitOptions {
    /// For all workloads together.
    pub timeout: Duration,
    /// How long everything must have been ready without a break. After a start of the machines the API
    /// server first shows what was true before the stop, until the kubelets correct it seconds later.
    pub hold: Duration,
    pub patience: Patience,
}

/// Waits until all of `workloads` are ready at the same time. `applied` are the objects whose Secrets
/// must not be shown.
pub async fn wait_for_rollouts(
    client: &kube::Client,
    workloads: &[Workload],
    applied: &[Desired],
    options: &WaitOptions,
    reporter: &dyn Reporter,
) -> Result<(), RolloutError> {
    let timeout = options.timeout;
    if workloads.is_empty() {
        return Ok(());
    }
    let mut redactor = Redactor::default();
    applied
        .iter()
        .for_each(|desired| redactor.learn(&desired.object));
    let (view, mut signals) = watch::start(client, workloads);
    let mut wait = Wait {
        client,
        workloads,
        patience: &options.patience,
        reporter,
        redactor,
        view,
        reported: HashMap::new(),
        troubles: HashMap::new(),
    };
    let give_up = tokio::time::sleep(timeout);
    tokio::pin!(give_up);
    let mut tick = tokio::time::interval(TICK);
    let mut ready_since: Option<Instant> = None;
    loop {
        tokio::select! {
            () = &mut give_up => {
                return Err(RolloutError::TimedOut { timeout, workloads: wait.explain(|_| true).await });
            }
            mut signal = signals.next() => {
                // A burst of changes is judged once.
                while let Some(change) = signal {
                    if let Err(error) = change && let Some(message) = refusal(&error) {
                        return Err(RolloutError::Forbidden { message });
                    }
                    signal = signals.next().now_or_never().flatten();
                }
            }
            _ = tick.tick() => {}
        }
        if wait.look() {
            if ready_since.get_or_insert_with(Instant::now).elapsed() >= options.hold {
                return Ok(());
            }
            continue;
        }
        ready_since = None;
        let definite = wait.definite(Instant::now());
        if !definite.is_empty() {
            return Err(RolloutError::Failed {
                workloads: wait.explain(|workload| definite.contains(workload)).await,
            });
        }
    }
}

/// The API server's message when it refuses to be watched; other troubles of a watch pass.
fn refusal(error: &kube::runtime::watcher::Error) -> Option<String> {
    use kube::runtime::watcher::Error;
    match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 401 | 403) =>
        {
            Some(status.message.clone())
        }
        _ => None,
    }
}

struct Wait<'a> {
    client: &'a kube::Client,
    workloads: &'a [Workload],
    patience: &'a Patience,
    reporter: &'a dyn Reporter,
    redactor: Redactor,
    view: View,
    /// What was last reported about each workload.
    reported: HashMap<Workload, ApplyEvent>,
    /// By pod and cause.
    troubles: HashMap<(String, Cause), Trouble>,
}

/// How long a trouble has been there.
struct Trouble {
    first: Instant,
    last: Instant,
}

/// A trouble that has not been seen for this long is over. A container without a readiness probe counts
/// as ready for the moment between its start and its next crash.
const OVER_AFTER: Duration = Duration::from_secs(15);

/// What counts as the same trouble over time.
fn trouble_of(symptom: &Symptom) -> (String, Cause) {
    let cause = match symptom.cause {
        Cause::Crashed => Cause::CrashLoop,
        cause => cause,
    };
    (symptom.uid.clone(), cause)
}

impl Wait<'_> {
    /// Takes in what the view shows and reports what is new; true when everything is ready.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        let mut all_ready = true;
        self.troubles
            .retain(|_, trouble| now.duration_since(trouble.last) <= OVER_AFTER);
        for workload in self.workloads {
            let Assessment { progress, symptoms } = self.view.assess(workload);
            self.remember(&symptoms, now);
            let event = match progress {
                Progress::Unknown => {
                    all_ready = false;
                    continue;
                }
                Progress::Ready => ApplyEvent::Ready {
                    workload: workload.clone(),
                },
                Progress::Waiting {
                    condition,
                    observed,
                } => {
                    all_ready = false;
                    ApplyEvent::Waiting {
                        workload: workload.clone(),
                        condition,
                        observed: self.redactor.clean(&with_symptom(observed, &symptoms)),
                    }
                }
                Progress::Failed { reason } => {
                    all_ready = false;
                    ApplyEvent::Failed {
                        workload: workload.clone(),
                        reason: self.redactor.clean(&reason),
                    }
                }
            };
            if self.reported.get(workload) != Some(&event) {
                self.reporter.report(event.clone());
                self.reported.insert(workload.clone(), event);
            }
        }
        all_ready
    }

    fn remember(&mut self, symptoms: &[Symptom], now: Instant) {
        for symptom in symptoms {
            let trouble = self.troubles.entry(trouble_of(symptom));
            trouble
                .or_insert(Trouble {
                    first: now,
                    last: now,
                })
                .last = now;
        }
    }

    /// The workloads that will not become ready.
    fn definite(&self, now: Instant) -> Vec<Workload> {
        self.workloads
            .iter()
            .filter(|workload| {
                let assessment = self.view.assess(workload);
                let outlasted = |symptom: &Symptom| {
                    let trouble = self.troubles.get(&trouble_of(symptom));
                    match (trouble, self.patience.with(symptom.cause)) {
                        (Some(trouble), Some(patience)) => {
                            now.duration_since(trouble.first) >= patience
                        }
                        _ => false,
                    }
                };
                matches!(assessment.progress, Progress::Failed { .. })
                    || assessment.symptoms.iter().any(outlasted)
            })
            .cloned()
            .collect()
    }

    /// Everything known about the workloads that are not ready; each of `failed` is reported as such.
    async fn explain(&self, failed: impl Fn(&Workload) -> bool) -> Vec<StuckWorkload> {
        let mut stuck = Vec::new();
        for workload in self.workloads {
            let Assessment { progress, symptoms } = self.view.assess(workload);
            let (condition, observed) = match progress {
                Progress::Ready => continue,
                Progress::Unknown => (
                    "the API server".to_owned(),
                    "it has not answered".to_owned(),
                ),
                Progress::Waiting {
                    condition,
                    observed,
                } => (condition, observed),
                Progress::Failed { reason } => ("its rollout".to_owned(), reason),
            };
            let mut reasons = Vec::new();
            for symptom in &symptoms {
                reasons.push(self.describe(workload, symptom).await);
            }
            let reason = (!reasons.is_empty()).then(|| self.redactor.clean(&reasons.join("\n")));
            let observed = self.redactor.clean(&observed);
            if failed(workload) {
                self.reporter.report(ApplyEvent::Failed {
                    workload: workload.clone(),
                    reason: reason.clone().unwrap_or_else(|| observed.clone()),
                });
            }
            stuck.push(StuckWorkload {
                workload: workload.clone(),
                condition,
                observed,
                reason,
            });
        }
        stuck
    }

    async fn describe(&self, workload: &Workload, symptom: &Symptom) -> String {
        let mut text = match (&symptom.container, symptom.cause) {
            (Some(container), _) => format!(
                "pod {}, container {container}: {}",
                symptom.pod, symptom.message
            ),
            (None, Cause::Creation) => format!("no pod can be created: {}", symptom.message),
            (None, _) => format!("pod {}: {}", symptom.pod, symptom.message),
        };
        if matches!(symptom.cause, Cause::CrashLoop | Cause::Crashed)
            && let Some(container) = &symptom.container
        {
            match self.last_lines(workload, &symptom.pod, container).await {
                Ok(log) if log.trim().is_empty() => text.push_str("\nit wrote nothing to its log"),
                Ok(log) => {
                    text.push_str("\nits last lines:");
                    log.lines()
                        .for_each(|line| text.push_str(&format!("\n| {line}")));
                }
                Err(error) => {
                    let cause = super::error::Cause::from(error);
                    text.push_str(&format!("\nits log cannot be read: {cause}"));
                }
            }
        }
        text
    }

    /// What the container wrote before it ended: its previous run where there is one.
    async fn last_lines(
        &self,
        workload: &Workload,
        pod: &str,
        container: &str,
    ) -> kube::Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &workload.namespace);
        let mut parameters = LogParams {
            container: Some(container.to_owned()),
            previous: true,
            tail_lines: Some(LOG_LINES),
            limit_bytes: Some(LOG_BYTES),
            ..LogParams::default()
        };
        match pods.logs(pod, &parameters).await {
            Err(kube::Error::Api(status)) if status.code == 400 => {
                parameters.previous = false;
                pods.logs(pod, &parameters).await
            }
            answer => answer,
        }
    }
}

/// Longest piece of a symptom in a progress line; the final report has all of it.
const PROGRESS_TEXT: usize = 120;

/// A wait's progress says what is wrong as soon as something is.
fn with_symptom(observed: String, symptoms: &[Symptom]) -> String {
    let Some(symptom) = symptoms.first() else {
        return observed;
    };
    let line = symptom.message.lines().next().unwrap_or_default();
    let mut text: String = line.chars().take(PROGRESS_TEXT).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    format!("{observed} ({}: {text})", symptom.pod)
}

#[cfg(test)]
mod tests {
    use super::super::rollout::WorkloadKind;
    use super::*;

    #[test]
    fn a_stuck_rollout_reads_from_the_workload_down_to_the_log() {
        let error = RolloutError::Failed {
            workloads: vec![StuckWorkload {
                workload: Workload::new(WorkloadKind::Deployment, "demo", "api"),
                condition: "1 available replicas".into(),
                observed: "0 of 1 available".into(),
                reason: Some("pod api-1, container main: CrashLoopBackOff: exit code 1\nits last lines:\n| no route".into()),
            }],
        };
        insta::assert_snapshot!(error, @r"
        the rollout cannot succeed:
          Deployment api: waited for 1 available replicas; 0 of 1 available
            pod api-1, container main: CrashLoopBackOff: exit code 1
            its last lines:
            | no route
        ");
    }
}
