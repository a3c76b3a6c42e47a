//! Looks for signatures at images.

use futures::future::try_join_all;
use serde::Serialize;

use super::Pipeline;
use crate::images::ImageError;
use crate::images::attest::key::PublicKey;
use crate::images::lock::Lock;
use crate::images::pin;
use crate::images::select::select;

/// What a registry and a key say about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The key's owner vouches for this digest.
    Signed,
    /// Others do.
    OtherKey,
    /// Nobody does.
    Unsigned,
}

/// An image that a [`Verdict`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The component.
    pub component: String,
    /// `repository:tag@digest`.
    pub reference: String,
    /// What was found.
    pub verdict: Verdict,
}

impl Pipeline {
    /// Looks for signatures by `key` at the images that the lock lists.
    pub async fn verify(&self, key: &PublicKey) -> Result<Vec<Verified>, ImageError> {
        let settings = &self.settings;
        let lock = Lock::read(&settings.lock)?;
        let manifests = pin::read(&settings.manifests)?;
        let ours = self.ours(&lock)?;
        let selection = select(
            &settings.components,
            &settings.folder,
            &settings.names,
            &manifests,
            &ours,
        )?;
        let registry = self.registry(&selection)?;
        let tasks = selection.published.iter().map(|name| {
            let (lock, registry) = (&lock, registry.as_ref());
            async move {
                let entry = self.locked(lock, name)?;
                let store = self.store(name, registry);
                let found = store.verify(&entry.digest, key);
                Ok::<_, ImageError>(Verified {
                    component: name.clone(),
                    reference: entry.pinned(),
                    verdict: match found.await? {
                        Some(true) => Verdict::Signed,
                        Some(false) => Verdict::OtherKey,
                        None => Verdict::Unsigned,
                    },
                })
            }
        });
        try_join_all(tasks).await
    }
}
