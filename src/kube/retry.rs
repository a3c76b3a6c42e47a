//! Patience with an API server that is still settling, for a bounded time.

use std::time::Duration;

use tokio::time::Instant;

use super::error::{Cause, chain};
use super::{ApplyEvent, KubeError, Reporter};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// One request's own limit: a connection that hangs counts as no answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Until when requests are made again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settle {
    started: Instant,
    limit: Duration,
}

impl Settle {
    pub(super) fn within(limit: Duration) -> Self {
        Self {
            started: Instant::now(),
            limit,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.started.elapsed() >= self.limit
    }

    /// Makes a request until it is answered. The answer may be an error that another try would not change.
    pub(super) async fn request<T>(
        &self,
        operation: &str,
        reporter: &dyn Reporter,
        mut request: impl AsyncFnMut() -> kube::Result<T>,
    ) -> Result<kube::Result<T>, KubeError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match tokio::time::timeout(REQUEST_TIMEOUT, request()).await {
                Ok(Err(error)) if is_transient(&error) => error,
                Ok(answer) => return Ok(answer),
                Err(elapsed) => kube::Error::Service(elapsed.into()),
            };
            let cause = Cause::from(error);
            if self.is_over() {
                return Err(KubeError::Unreachable {
                    operation: operation.to_owned(),
                    waited: self.started.elapsed(),
                    source: cause,
                });
            }
            reporter.report(ApplyEvent::Retrying {
                operation: operation.to_owned(),
                reason: cause.to_string(),
            });
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Whether the same request may succeed a little later.
pub(super) fn is_transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => match status.code {
            // Server-side apply answers a field that the schema does not have with 500.
            500 => !status.message.contains("typed patch object"),
            // A starting API server denies until it has created its own cluster roles.
            403 => status.message.contains("not found"),
            code => code == 429 || code > 500,
        },
        kube::Error::Service(_) | kube::Error::HyperError(_) => {
            !chain(error).any(|cause| cause.contains("certificate"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use kube::core::Status;

    use super::*;

    struct Count(AtomicU32);

    impl Reporter for Count {
        fn report(&self, event: ApplyEvent) {
            assert!(matches!(event, ApplyEvent::Retrying { .. }));
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn api_error(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure(message, "reason").with_code(code)))
    }

    #[tokio::test]
    async fn a_settling_server_is_asked_again_and_each_time_is_told() {
        let told = Count(AtomicU32::new(0));
        let mut left = 3;
        let answer = Settle::within(Duration::from_secs(60))
            .request("apply", &told, async || {
                left -= 1;
                if left > 0 {
                    Err(api_error(503, "starting"))
                } else {
                    Ok(5)
                }
            })
            .await;
        assert_eq!(answer.unwrap().unwrap(), 5);
        assert_eq!(told.0.into_inner(), 2);
    }

    #[tokio::test]
    async fn patience_ends() {
        let told = Count(AtomicU32::new(0));
        let answer = Settle::within(Duration::from_millis(300))
            .request("apply", &told, async || {
                kube::Result::<()>::Err(api_error(503, "starting"))
            })
            .await;
        assert!(matches!(answer, Err(KubeError::Unreachable { .. })));
    }

    #[tokio::test]
    async fn a_definite_answer_is_not_asked_for_again() {
        let told = Count(AtomicU32::new(0));
        for code in [400, 401, 403, 404, 409, 422] {
            let answer = Settle::within(Duration::from_secs(60))
                .request("apply", &told, async || {
                    kube::Result::<()>::Err(api_error(code, "no"))
                })
                .await;
            assert!(answer.unwrap().is_err());
        }
        let unknown_field =
            "failed to create typed patch object: .dta: field not declared in schema";
        assert!(!is_transient(&api_error(500, unknown_field)));
        assert_eq!(told.0.into_inner(), 0);
    }
}
