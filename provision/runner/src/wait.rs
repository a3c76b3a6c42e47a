//! Waits: a named condition, a limit, and what was last seen.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::StepReport;

/// One look at a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe<T> {
    Met(T),
    /// Not yet; this is the state that was seen.
    Pending(String),
}

/// A wait that is to be reported by its name.
#[derive(Debug, Clone)]
pub struct Wait {
    /// Such as `node agent Ready`.
    pub condition: String,
    pub timeout: Duration,
    pub interval: Duration,
}

/// The condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("waited {} s for: {condition}; last seen: {observed}", timeout.as_secs())]
pub struct WaitError {
    pub condition: String,
    pub timeout: Duration,
    pub observed: String,
}

/// How often a wait that sees no change says that it still waits.
const REMINDER: Duration = Duration::from_secs(15);

impl Wait {
    /// Probes until the condition is met or the time is up. A probe that hangs is cut off at the
    /// end of the wait. Changes in what is observed are reported as they happen.
    ///
    /// The outer error is the wait's, the inner one a probe's that made further waiting pointless.
    pub async fn until<T, E, F>(
        &self,
        report: &StepReport<'_>,
        mut probe: impl FnMut() -> F,
    ) -> Result<Result<T, E>, WaitError>
    where
        F: Future<Output = Result<Probe<T>, E>>,
    {
        let started = Instant::now();
        let deadline = started + self.timeout;
        let mut observed = "nothing yet".to_owned();
        let mut reported: Option<(String, Instant)> = None;
        loop {
            match timeout_at(deadline, probe()).await {
                Ok(Ok(Probe::Met(value))) => return Ok(Ok(value)),
                Ok(Err(error)) => return Ok(Err(error)),
                Ok(Ok(Probe::Pending(state))) => observed = state,
                Err(_) => {}
            }
            let now = Instant::now();
            if now + self.interval >= deadline {
                return Err(WaitError {
                    condition: self.condition.clone(),
                    timeout: self.timeout,
                    observed,
                });
            }
            let due = reported
                .as_ref()
                .is_none_or(|(last, at)| *last != observed || now - *at >= REMINDER);
            if due {
                report.waiting(&self.condition, &observed, now - started, self.timeout);
                reported = Some((observed.clone(), now));
            }
            sleep(self.interval).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use orch_contract::Event;

    use super::*;
    use crate::Recorder;

    fn wait(timeout: Duration) -> Wait {
        Wait {
            condition: "lamp lit".to_owned(),
            timeout,
            interval: Duration::from_millis(1),
        }
    }

    #[tokio::test]
    async fn what_is_seen_is_reported_once_per_change() {
        let recorder = Recorder::default();
        let report = StepReport::new(&recorder, "s");
        let mut looks = 0;
        let value = wait(Duration::from_secs(3600))
            .until(&report, || {
                looks += 1;
                std::future::ready(Ok::<_, Infallible>(match looks {
                    1..=3 => Probe::Pending("dark".to_owned()),
                    4 => Probe::Pending("flickering".to_owned()),
                    _ => Probe::Met(looks),
                }))
            })
            .await
            .unwrap()
            .unwrap();
        assert_eq!(value, 5);
        let seen: Vec<_> = recorder
            .events()
            .into_iter()
            .map(|event| match event {
                Event::Waiting { observed, .. } => observed,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen, ["dark", "flickering"]);
    }

    #[tokio::test]
    async fn a_timeout_names_the_condition_and_the_last_state() {
        let recorder = Recorder::default();
        let report = StepReport::new(&recorder, "s");
        let error = wait(Duration::from_millis(20))
            .until(&report, || async {
                Ok::<_, Infallible>(Probe::<()>::Pending("dark".to_owned()))
            })
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "waited 0 s for: lamp lit; last seen: dark"
        );
    }

    #[tokio::test]
    async fn a_probe_that_hangs_does_not_outlive_the_wait() {
        let recorder = Recorder::default();
        let report = StepReport::new(&recorder, "s");
        let error = wait(Duration::from_millis(20))
            .until(&report, || {
                std::future::pending::<Result<Probe<()>, Infallible>>()
            })
            .await
            .unwrap_err();
        assert_eq!(error.observed, "nothing yet");
    }
}
