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
    let announced = planned.deleted.iter();
    let announced: BTreeSet<&str> = announced
        .flat_map(|item| item.tags.iter().chain([&item.digest]))
        .map(String::as_str)
        .collect();
    // What came since the plan was made was never announced: it stays, with all that it needs. So does an image that got a new
    // name meanwhile: somebody who built it again relies on it.
    let mut roots = roots.clone();
    let late = |name: &&String| !announced.contains(name.as_str());
    let reason = || "it came after the plan was made".to_owned();
    let digests = now.manifests.keys().chain(now.tags.values());
    for digest in digests.filter(late) {
        let known = roots.digests.entry(digest.clone());
        known.or_insert_with(reason);
    }
    for tag in now.tags.keys().filter(late) {
        roots.tags.entry(tag.clone()).or_insert_with(reason);
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
