//! A [`Registry`] around another one: what is done about every request is said once, and not once for each kind of request.

use async_trait::async_trait;

use super::{
    Blob, BlobStream, Descriptor, Mount, RawManifest, Registry, RegistryError, Session, Stored,
};

/// What surrounds the requests to another registry.
pub(super) trait Around: Send + Sync {
    type Inner: Registry;

    fn inner(&self) -> &Self::Inner;

    /// Makes a request that may be repeated as it is.
    fn ask<T: Send, F: Future<Output = Result<T, RegistryError>> + Send>(
        &self,
        request: impl Fn() -> F + Send + Sync,
    ) -> impl Future<Output = Result<T, RegistryError>> + Send;

    /// Makes a request that may not: the registry may have kept part of it.
    fn ask_once<T: Send>(
        &self,
        request: impl Future<Output = Result<T, RegistryError>> + Send,
    ) -> impl Future<Output = Result<T, RegistryError>> + Send;
}

#[async_trait]
impl<A: Around> Registry for A {
    async fn head_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<String>, RegistryError> {
        self.ask(|| self.inner().head_manifest(repository, reference))
            .await
    }

    async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<RawManifest>, RegistryError> {
        self.ask(|| self.inner().get_manifest(repository, reference))
            .await
    }

    async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: &RawManifest,
    ) -> Result<Stored, RegistryError> {
        self.ask(|| self.inner().put_manifest(repository, reference, manifest))
            .await
    }

    async fn referrers(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        self.ask(|| self.inner().referrers(repository, digest))
            .await
    }

    async fn head_blob(&self, repository: &str, digest: &str) -> Result<bool, RegistryError> {
        self.ask(|| self.inner().head_blob(repository, digest))
            .await
    }

    async fn get_blob(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<BlobStream>, RegistryError> {
        self.ask(|| self.inner().get_blob(repository, digest)).await
    }

    async fn mount_blob(
        &self,
        repository: &str,
        digest: &str,
        from: &str,
    ) -> Result<Mount, RegistryError> {
        self.ask(|| self.inner().mount_blob(repository, digest, from))
            .await
    }

    async fn start_upload(&self, repository: &str) -> Result<Session, RegistryError> {
        self.ask(|| self.inner().start_upload(repository)).await
    }

    async fn patch_upload(
        &self,
        session: &Session,
        blob: &Blob,
        offset: u64,
        length: u64,
    ) -> Result<Session, RegistryError> {
        self.ask_once(self.inner().patch_upload(session, blob, offset, length))
            .await
    }

    async fn upload_status(
        &self,
        session: &Session,
    ) -> Result<Option<(Session, u64)>, RegistryError> {
        self.ask(|| self.inner().upload_status(session)).await
    }

    async fn finish_upload(
        &self,
        session: &Session,
        blob: &Blob,
        with_body: bool,
    ) -> Result<(), RegistryError> {
        self.ask_once(self.inner().finish_upload(session, blob, with_body))
            .await
    }

    async fn list_tags(&self, repository: &str) -> Result<Option<Vec<String>>, RegistryError> {
        self.ask(|| self.inner().list_tags(repository)).await
    }

    async fn delete_manifest(&self, repository: &str, digest: &str) -> Result<bool, RegistryError> {
        self.ask(|| self.inner().delete_manifest(repository, digest))
            .await
    }
}
