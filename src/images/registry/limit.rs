//! A [`Registry`] that makes no more than so many requests at once.

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{
    Blob, BlobStream, Descriptor, Mount, RawManifest, Registry, RegistryError, Session, Stored,
};

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

/// Evaluates a call while holding a permit. The semaphore is never closed, so there is always one to come.
macro_rules! limited {
    ($self:ident, $call:expr) => {{
        let _permit = $self.permits.acquire().await;
        $call.await
    }};
}

#[async_trait]
impl<R: Registry> Registry for Limited<R> {
    async fn head_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<String>, RegistryError> {
        limited!(self, self.inner.head_manifest(repository, reference))
    }

    async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<RawManifest>, RegistryError> {
        limited!(self, self.inner.get_manifest(repository, reference))
    }

    async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: &RawManifest,
    ) -> Result<Stored, RegistryError> {
        limited!(
            self,
            self.inner.put_manifest(repository, reference, manifest)
        )
    }

    async fn referrers(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        limited!(self, self.inner.referrers(repository, digest))
    }

    async fn head_blob(&self, repository: &str, digest: &str) -> Result<bool, RegistryError> {
        limited!(self, self.inner.head_blob(repository, digest))
    }

    async fn get_blob(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<BlobStream>, RegistryError> {
        limited!(self, self.inner.get_blob(repository, digest))
    }

    async fn mount_blob(
        &self,
        repository: &str,
        digest: &str,
        from: &str,
    ) -> Result<Mount, RegistryError> {
        limited!(self, self.inner.mount_blob(repository, digest, from))
    }

    async fn start_upload(&self, repository: &str) -> Result<Session, RegistryError> {
        limited!(self, self.inner.start_upload(repository))
    }

    async fn patch_upload(
        &self,
        session: &Session,
        blob: &Blob,
        offset: u64,
        length: u64,
    ) -> Result<Session, RegistryError> {
        limited!(self, self.inner.patch_upload(session, blob, offset, length))
    }

    async fn upload_status(
        &self,
        session: &Session,
    ) -> Result<Option<(Session, u64)>, RegistryError> {
        limited!(self, self.inner.upload_status(session))
    }

    async fn finish_upload(
        &self,
        session: &Session,
        blob: &Blob,
        with_body: bool,
    ) -> Result<(), RegistryError> {
        limited!(self, self.inner.finish_upload(session, blob, with_body))
    }

    async fn list_tags(&self, repository: &str) -> Result<Option<Vec<String>>, RegistryError> {
        limited!(self, self.inner.list_tags(repository))
    }

    async fn delete_manifest(&self, repository: &str, digest: &str) -> Result<bool, RegistryError> {
        limited!(self, self.inner.delete_manifest(repository, digest))
    }
}
