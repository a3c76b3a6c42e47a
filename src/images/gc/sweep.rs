//! Deletes what a plan condemns, after looking again.
//!
//! Between plan and deletion somebody may have pushed. So the repository is read once more, and what goes is what both the
//! first look and the second condemn; right before each deletion its tags are asked for a last time.

use std::collections::BTreeSet;

use super::decide::{Decision, Plan, Roots, decide};
use super::inventory::{self, Known};
use crate::images::registry::{Registry, RegistryError};

/// What was deleted.
#[derive(Debug, Clone, Default)]
pub struct Swept {
    /// In order.
    pub deleted: Vec<Decision>,
    /// Why it stopped early, if it did.
    pub stopped: Option<String>,
}

/// Deletes.
pub async fn sweep(
    registry: &dyn Registry,
    repository: &str,
    planned: &Plan,
    roots: &Roots,
    known: &mut Known,
) -> Result<Swept, RegistryError> {
    let mut swept = Swept::default();
    known.refresh();
    let Some(now) = inventory::read(registry, repository, roots, known).await? else {
        return Ok(swept);
    };
    let announced: BTreeSet<&str> = planned
        .deleted
        .iter()
        .map(|item| item.digest.as_str())
        .collect();
    // What came since the plan was made was never announced: it stays, with all that it needs.
    let mut roots = roots.clone();
    for digest in now.manifests.keys().chain(now.tags.values()) {
        if !announced.contains(digest.as_str()) {
            let reason = "it came after the plan was made".to_owned();
            roots.digests.entry(digest.clone()).or_insert(reason);
        }
    }
    for decision in decide(&now, &roots).deleted {
        for tag in &decision.tags {
            let names = registry.head_manifest(repository, tag).await?;
            if names.as_ref() != Some(&decision.digest) {
                swept.stopped = Some(format!(
                    "the tag {tag} moved while images were deleted; run the command again"
                ));
                return Ok(swept);
            }
        }
        // Gone already: a registry may take an image's signatures away with it.
        registry
            .delete_manifest(repository, &decision.digest)
            .await?;
        swept.deleted.push(decision);
    }
    Ok(swept)
}
