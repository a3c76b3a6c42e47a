//! A [`Registry`] that asks again: after 429 and 5xx as the registry says, after a broken connection with growing pauses.
//!
//! Only requests that may be repeated as they are. The middle of an upload may not (the registry may have kept part of it);
//! [`super::upload`] asks how far it got instead.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use super::around::Around;
use super::{Registry, RegistryError};
use crate::images::event::{ImageEvent, Reporter};

/// How often and how patiently.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Attempts in all.
    pub attempts: u32,
    /// Pause before the second attempt; doubles with every further one.
    pub base: Duration,
    /// The longest pause, `Retry-After` included: a registry that wants more is an error for the caller.
    pub longest: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 6,
            base: Duration::from_millis(500),
            longest: Duration::from_secs(60),
        }
    }
}

impl Policy {
    /// The pause after failed attempt `attempt` (from 1), or nothing when it is time to give up.
    pub fn pause(&self, attempt: u32, error: &RegistryError) -> Option<Duration> {
        if attempt >= self.attempts || !error.is_transient() {
            return None;
        }
        if let Some(asked) = error.retry_after() {
            // The jitter goes on top: nobody may come before the time that was asked for.
            return (asked <= self.longest)
                .then(|| asked + self.base.mul_f64(rand::rng().random_range(0.0..1.0)));
        }
        let full = self
            .base
            .saturating_mul(2_u32.saturating_pow(attempt - 1))
            .min(self.longest);
        Some(full.mul_f64(rand::rng().random_range(0.5..1.0)))
    }

    /// Waits after a failed attempt, or gives the error back.
    pub async fn wait(
        &self,
        attempt: u32,
        error: RegistryError,
        reporter: &dyn Reporter,
    ) -> Result<(), RegistryError> {
        let Some(pause) = self.pause(attempt, &error) else {
            return Err(error);
        };
        reporter.event(ImageEvent::Retrying {
            operation: "asking the registry".to_owned(),
            reason: error.to_string(),
            seconds: pause.as_secs_f64(),
        });
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The decorator.
pub struct Retrying<R> {
    inner: R,
    policy: Policy,
    reporter: Arc<dyn Reporter>,
}

impl<R: Registry> Retrying<R> {
    /// Repeats what `inner` fails at, by `policy`.
    pub fn new(inner: R, policy: Policy, reporter: Arc<dyn Reporter>) -> Self {
        Self {
            inner,
            policy,
            reporter,
        }
    }
}

impl<R: Registry> Around for Retrying<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.inner
    }

    async fn ask<T: Send, F: Future<Output = Result<T, RegistryError>> + Send>(
        &self,
        request: impl Fn() -> F + Send + Sync,
    ) -> Result<T, RegistryError> {
        let mut attempt = 1;
        loop {
            match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let reporter = self.reporter.as_ref();
                    self.policy.wait(attempt, error, reporter).await?;
                }
            }
            attempt += 1;
        }
    }

    async fn ask_once<T: Send>(
        &self,
        request: impl Future<Output = Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        request.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> RegistryError {
        let retry_after = retry_after.map(Duration::from_secs);
        RegistryError::Status {
            operation: "x".to_owned(),
            status,
            message: String::new(),
            retry_after,
        }
    }

    #[test]
    fn the_registrys_own_time_is_kept_and_never_undercut() {
        let policy = Policy::default();
        assert!(policy.pause(1, &status(429, Some(7))).unwrap() >= Duration::from_secs(7));
        assert_eq!(policy.pause(1, &status(429, Some(3600))), None);
    }

    #[test]
    fn pauses_grow_and_end() {
        let policy = Policy::default();
        assert!(policy.pause(1, &status(503, None)).unwrap() <= policy.base);
        assert!(policy.pause(4, &status(503, None)).unwrap() >= policy.base * 4);
        assert_eq!(policy.pause(policy.attempts, &status(503, None)), None);
        assert_eq!(policy.pause(1, &status(404, None)), None);
    }
}
