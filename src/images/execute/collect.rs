//! `gc`: gathers what is needed and what is there, lets [`crate::images::gc::decide`] decide, and deletes if asked to.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::Pipeline;
use crate::images::ImageError;
use crate::images::gc::decide::{Decision, Inventory, Plan, Roots, decide};
use crate::images::gc::history::Former;
use crate::images::gc::inventory::{self, Known};
use crate::images::gc::roots::Sources;
use crate::images::gc::sweep::sweep;
use crate::images::input;
use crate::images::lock::Lock;
use crate::images::registry::RegistryError;
use crate::images::select::Selection;

/// What garbage collection is told.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where names of images are looked for.
    pub sources: Sources,
    /// Texts of what runs, each with who it is: `cluster NAME`.
    pub live: Vec<(String, String)>,
    /// Digests and tags to keep besides.
    pub keep: Vec<String>,
    /// Delete, rather than say what would be.
    pub delete: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Collected {
    /// Was anything to be deleted, or only a plan to be made?
    pub dry_run: bool,
    /// Branches, tags and other commits that were searched.
    pub commits: usize,
    /// Digests and tags that something names.
    pub named: usize,
    /// What each repository keeps and loses.
    pub repositories: Vec<CollectedRepository>,
    /// Did the local registry free its disk space, too?
    pub freed: bool,
}

/// One repository's share.
#[derive(Debug, Clone, Serialize)]
pub struct CollectedRepository {
    /// Its name in references.
    pub repository: String,
    /// Is it of a component that is gone, and known from an earlier version of the lock alone?
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub former: bool,
    /// What was decided.
    #[serde(flatten)]
    pub plan: Plan,
    /// Why fewer were deleted than planned, or nothing was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

impl Pipeline {
    /// Finds, and deletes if asked to, the images of this project's repositories that nothing names.
    pub async fn collect(&self, request: &Request) -> Result<Collected, ImageError> {
        let lock = Lock::read(&self.settings.lock)?;
        let found = request.sources.gather().await?;
        let mut roots = found.roots;
        for (who, text) in &request.live {
            roots.mention(text.as_bytes(), who);
        }
        for value in &request.keep {
            roots.keep(value)?;
        }
        let paths = self.repositories(&lock);
        let former = self.former_repositories(&found.former, &paths);
        self.protect_sources(lock, &mut roots).await?;
        self.needs_running_stand_in().await?;

        let roots = Arc::new(roots);
        let registry = self.destination.registry(
            &self.names(),
            &self.meter,
            self.settings.policy,
            &self.reporter,
        )?;
        let mut collected = Collected {
            dry_run: !request.delete,
            commits: found.commits,
            named: roots.digests.len() + roots.tags.len(),
            ..Collected::default()
        };
        // Everything is looked at before anything goes: an answer that nobody understands stops it all.
        let mut planned: Vec<Planned> = Vec::new();
        for path in paths {
            let mut known = Known::default();
            let there = inventory::read(registry.as_ref(), &path, &roots, &mut known).await?;
            planned.extend(there.map(|there| Planned {
                path,
                former: false,
                known,
                plan: decide(&there, &roots),
                roots: Arc::clone(&roots),
            }));
        }
        for (path, tags) in former {
            let mut known = Known::default();
            let there = inventory::read(registry.as_ref(), &path, &roots, &mut known).await;
            match there {
                Ok(None) => {}
                Ok(Some(there)) => {
                    let roots = Arc::new(without_others(&roots, &there, tags));
                    planned.push(Planned {
                        path,
                        former: true,
                        known,
                        plan: decide(&there, &roots),
                        roots,
                    });
                }
                // What may be somebody else's by now may also be closed to us.
                Err(error) => collected.repositories.push(CollectedRepository {
                    repository: format!("{}/{path}", self.destination.registry),
                    former: true,
                    plan: Plan::default(),
                    stopped: Some(error.to_string()),
                }),
            }
        }
        let mut deleted = 0;
        for mut item in planned {
            let mut stopped = None;
            if request.delete && !item.plan.deleted.is_empty() {
                let swept = sweep(
                    registry.as_ref(),
                    &item.path,
                    &item.plan,
                    &item.roots,
                    &mut item.known,
                )
                .await?;
                deleted += swept.deleted.len();
                (item.plan.deleted, stopped) = (swept.deleted, swept.stopped);
            }
            collected.repositories.push(CollectedRepository {
                repository: format!("{}/{}", self.destination.registry, item.path),
                former: item.former,
                plan: item.plan,
                stopped,
            });
        }
        if let (true, Some(stand_in)) = (deleted > 0, &self.destination.stand_in) {
            let client = self.destination.client(&[], &Arc::default())?;
            stand_in.collect_garbage(&self.engine, &client).await?;
            collected.freed = true;
        }
        Ok(collected)
    }

    /// Where this project's images are or were, at the registry of this run.
    fn repositories(&self, lock: &Lock) -> BTreeSet<String> {
        let here = format!("{}/", self.destination.registry);
        let before = lock
            .components
            .values()
            .filter_map(|entry| entry.repository.strip_prefix(&here))
            .map(str::to_owned);
        self.names()
            .iter()
            .map(|name| self.destination.path(name))
            .chain(before)
            .collect()
    }

    /// Where components that are gone had their images, in the namespace of this run, and the tags that were theirs. Other
    /// namespaces are those of other logins.
    fn former_repositories<'former>(
        &self,
        former: &'former Former,
        current: &BTreeSet<String>,
    ) -> Vec<(String, &'former BTreeSet<String>)> {
        let here = format!("{}/", self.destination.registry);
        let namespace = self.destination.path("");
        former
            .iter()
            .filter_map(|(repository, tags)| Some((repository.strip_prefix(&here)?, tags)))
            .filter(|(path, _)| path.starts_with(&namespace) && !current.contains(*path))
            .map(|(path, tags)| (path.to_owned(), tags))
            .collect()
    }

    /// What a push would find there now is needed, also if nobody pinned it yet.
    async fn protect_sources(&self, lock: Lock, roots: &mut Roots) -> Result<(), ImageError> {
        let selection = Selection {
            published: self.names().into_iter().collect(),
            components: self.settings.components.clone(),
            all_bases: BTreeSet::new(),
        };
        let prepared = self.prepare_selection(lock, Vec::new(), selection).await?;
        // A base that the lock does not know belongs to something that was never pushed from these sources.
        let inputs = input::name_each(&prepared.sources, |reference| {
            prepared.bases.known(reference)
        });
        for (name, input) in inputs {
            if let Ok(input) = input {
                roots
                    .tags
                    .entry(input.tag)
                    .or_insert_with(|| format!("the sources of {name} as they are"));
            }
        }
        Ok(())
    }

    async fn needs_running_stand_in(&self) -> Result<(), ImageError> {
        let Some(stand_in) = &self.destination.stand_in else {
            return Ok(());
        };
        let client = self.destination.client(&[], &Arc::default())?;
        if stand_in.is_running(&client).await? {
            return Ok(());
        }
        Err(RegistryError::StandIn {
            reason:
                "there is nothing to collect from; `orch start` or `orch images push` starts it"
                    .to_owned(),
        }
        .into())
    }
}

/// A repository that was looked at.
struct Planned {
    path: String,
    former: bool,
    known: Known,
    plan: Plan,
    /// What is needed of it.
    roots: Arc<Roots>,
}

/// `roots`, and all tags of ours that are not among `own`: in a repository that this project left, they are somebody else's.
fn without_others(roots: &Roots, there: &Inventory, own: &BTreeSet<String>) -> Roots {
    let mut roots = roots.clone();
    for tag in there.tags.keys().filter(|tag| !own.contains(*tag)) {
        let reason = "no version of the lock names it".to_owned();
        roots.tags.entry(tag.clone()).or_insert(reason);
    }
    roots
}

impl Collected {
    /// All that goes, or went.
    pub fn deleted(&self) -> impl Iterator<Item = &Decision> {
        self.repositories.iter().flat_map(|item| &item.plan.deleted)
    }
}
