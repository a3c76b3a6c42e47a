//! A [`Registry`] that makes no more than so many requests at once.

use tokio::sync::Semaphore;

use super::around::Around;
use super::{Registry, RegistryError};

/// The decorator.
pub struct Limited<R> {
    inner: R,
    permits: Semaphore,
}

impl<R: Registry> Limited<R> {
    /// At most `limit` requests to `inner` are under way at any time.
    pub fn new(inner: R, limit: usize) -> Self {
        Self {
            inner,
            permits: Semaphore::new(limit),
        }
    }
}

impl<R: Registry> Around for Limited<R> {
    type Inner = R;

    fn inner(&self) -> &R {
        &self.inner
    }

    async fn ask<T: Send, F: Future<Output = Result<T, RegistryError>> + Send>(
        &self,
        request: impl Fn() -> F + Send + Sync,
    ) -> Result<T, RegistryError> {
        self.ask_once(request()).await
    }

    async fn ask_once<T: Send>(
        &self,
        request: impl Future<Output = Result<T, RegistryError>> + Send,
    ) -> Result<T, RegistryError> {
        // The semaphore is never closed, so there is always one to come.
        let _permit = self.permits.acquire().await;
        request.await
    }
}
