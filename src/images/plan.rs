//! What has to be done, decided from facts alone: no file, no process, no network. [`super::execute`] gathers and obeys.

use std::collections::BTreeSet;

use serde::Serialize;

use super::difference::Difference;
use super::input::Input;
use super::lock::Entry;

/// What is to be done with a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Nothing.
    Skip {
        /// Digest in the registry; nothing for a component that is only built on.
        digest: Option<String>,
    },
    /// The registry has the image but not under this tag: one manifest, no layer.
    Retag {
        /// Digest in the registry.
        digest: String,
    },
    /// The engine has the image: no compiler.
    Push {
        /// IDs in the engine, one for each platform.
        images: Vec<String>,
    },
    /// Nobody has it.
    Build,
}

/// One component's share of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The component.
    pub component: String,
    /// Its tag.
    pub tag: String,
    /// What is to be done.
    #[serde(flatten)]
    pub action: Action,
    /// Why.
    pub reason: String,
    /// Does it go to the registry, or is it only built on?
    pub published: bool,
    /// What is not as the lock has it.
    #[serde(skip_serializing_if = "Difference::is_empty")]
    pub changes: Difference,
}

/// What is known about a component.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The component.
    pub component: String,
    /// Its name from its sources.
    pub input: Input,
    /// Does it go to the registry?
    pub published: bool,
    /// Components it is built from.
    pub dependencies: BTreeSet<String>,
    /// What the lock says.
    pub locked: Option<Entry>,
    /// Digest that the registry has under the tag.
    pub registry: Option<String>,
    /// Does the registry have the lock's digest, although not under the tag? Only asked when the tag is missing.
    pub pinned_present: bool,
    /// IDs that the engine has under the tag, if it has all platforms.
    pub engine: Option<Vec<String>>,
    /// Build although it exists.
    pub refresh: bool,
}

/// Decides. `facts` must have dependencies before dependents.
pub fn plan(facts: &[Facts]) -> Vec<Step> {
    let mut steps: Vec<Step> = facts.iter().map(decide).collect();
    // From the top down: what is only built on matters only when something above it is built.
    let mut needed: BTreeSet<&str> = BTreeSet::new();
    for (step, fact) in steps.iter_mut().zip(facts).rev() {
        if !fact.published {
            (step.action, step.reason) =
                decide_base(fact, needed.contains(fact.component.as_str()));
        }
        if step.action == Action::Build {
            needed.extend(fact.dependencies.iter().map(String::as_str));
        }
    }
    steps
}

fn decide(fact: &Facts) -> Step {
    let changes = match &fact.locked {
        Some(entry) => Difference::between(entry, &fact.input),
        None => Difference::default(),
    };
    let (action, reason) = decide_published(fact, &changes);
    Step {
        component: fact.component.clone(),
        tag: fact.input.tag.clone(),
        action,
        reason,
        published: fact.published,
        changes,
    }
}

fn decide_published(fact: &Facts, changes: &Difference) -> (Action, String) {
    if fact.refresh {
        return (Action::Build, "a refresh was asked for".to_owned());
    }
    let locked = fact
        .locked
        .as_ref()
        .filter(|entry| entry.input == fact.input.hash.to_string());
    match (&fact.registry, locked) {
        (Some(digest), Some(entry)) if *digest != entry.digest => {
            let reason = format!(
                "the registry has another build of the same sources than the lock ({}): taken over",
                entry.digest
            );
            (
                Action::Skip {
                    digest: Some(digest.clone()),
                },
                reason,
            )
        }
        (Some(digest), _) => (
            Action::Skip {
                digest: Some(digest.clone()),
            },
            "the registry has it".to_owned(),
        ),
        (None, Some(entry)) if fact.pinned_present => (
            Action::Retag {
                digest: entry.digest.clone(),
            },
            "the registry has it without its tag".to_owned(),
        ),
        (None, Some(_)) => match &fact.engine {
            Some(images) => (
                Action::Push {
                    images: images.clone(),
                },
                "the registry lost it, the engine has it".to_owned(),
            ),
            None => (Action::Build, "the registry lost it".to_owned()),
        },
        (None, None) => match &fact.engine {
            Some(images) => (
                Action::Push {
                    images: images.clone(),
                },
                "built before, not pushed yet".to_owned(),
            ),
            None => (Action::Build, why_build(fact, changes)),
        },
    }
}

fn decide_base(fact: &Facts, needed: bool) -> (Action, String) {
    match (&fact.engine, needed) {
        (_, false) => (
            Action::Skip { digest: None },
            "nothing that is built on it has to be built".to_owned(),
        ),
        (Some(_), true) if !fact.refresh => (
            Action::Skip { digest: None },
            "the engine has it".to_owned(),
        ),
        (_, true) => (Action::Build, "another component is built on it".to_owned()),
    }
}

fn why_build(fact: &Facts, changes: &Difference) -> String {
    match fact.locked {
        Some(_) => format!("changed since the last push: {}", changes.summary()),
        None => "it was never pushed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::images::context::Contents;
    use crate::images::difference::Details;
    use crate::images::hash::{Sha256Digest, tag};

    fn input(seed: &str) -> Input {
        let hash = Sha256Digest::of(seed.as_bytes());
        let parts = BTreeMap::from([
            ("context".to_owned(), hash.to_string()),
            ("bases".to_owned(), "x".to_owned()),
        ]);
        Input {
            hash,
            tag: tag(&hash),
            parts,
            details: Details::default(),
            contents: Contents::default(),
        }
    }

    fn entry(seed: &str, digest: &str) -> Entry {
        let input = input(seed);
        Entry {
            digest: digest.to_owned(),
            details: input.details_for_lock(),
            input: input.hash.to_string(),
            parts: input.parts,
            repository: "docker.io/me/app".to_owned(),
            tag: input.tag,
        }
    }

    fn facts() -> Facts {
        Facts {
            component: "app".to_owned(),
            input: input("now"),
            published: true,
            dependencies: BTreeSet::new(),
            locked: None,
            registry: None,
            pinned_present: false,
            engine: None,
            refresh: false,
        }
    }

    fn decided(change: impl FnOnce(&mut Facts)) -> (Action, String) {
        let mut facts = facts();
        change(&mut facts);
        let step = plan(&[facts]).remove(0);
        (step.action, step.reason)
    }

    #[test]
    fn what_the_registry_has_is_skipped_whatever_else_is_known() {
        let digest = Some("sha256:a".to_owned());
        let skip = Action::Skip {
            digest: digest.clone(),
        };
        assert_eq!(decided(|facts| facts.registry = digest.clone()).0, skip);
        let (action, reason) = decided(|facts| {
            facts.registry = digest.clone();
            facts.locked = Some(entry("now", "sha256:b"));
        });
        assert_eq!(action, skip);
        assert!(reason.contains("sha256:b"), "{reason}");
        assert_eq!(
            decided(|facts| (facts.registry, facts.refresh) = (digest, true)).0,
            Action::Build
        );
    }

    #[test]
    fn a_lost_tag_costs_a_manifest_and_a_lost_image_a_push() {
        let lock = || Some(entry("now", "sha256:b"));
        let image = || Some(vec!["sha256:i".to_owned()]);
        let tagless = decided(|facts| {
            (facts.locked, facts.pinned_present, facts.engine) = (lock(), true, image())
        });
        assert_eq!(
            tagless.0,
            Action::Retag {
                digest: "sha256:b".to_owned()
            }
        );
        let push = Action::Push {
            images: vec!["sha256:i".to_owned()],
        };
        assert_eq!(
            decided(|facts| (facts.locked, facts.engine) = (lock(), image())).0,
            push
        );
        assert_eq!(decided(|facts| facts.engine = image()).0, push);
        let lost = decided(|facts| facts.locked = lock());
        assert_eq!(lost, (Action::Build, "the registry lost it".to_owned()));
    }

    #[test]
    fn a_build_says_what_changed() {
        assert_eq!(
            decided(|_| {}),
            (Action::Build, "it was never pushed".to_owned())
        );
        let (action, reason) = decided(|facts| facts.locked = Some(entry("before", "sha256:b")));
        assert_eq!(
            (action, reason.as_str()),
            (
                Action::Build,
                "changed since the last push: context changed"
            )
        );
    }

    #[test]
    fn a_base_is_built_only_for_those_above_it() {
        let base = Facts {
            component: "base".to_owned(),
            published: false,
            ..facts()
        };
        let top = Facts {
            dependencies: BTreeSet::from(["base".to_owned()]),
            ..facts()
        };
        let actions = |facts: &[Facts]| {
            plan(facts)
                .into_iter()
                .map(|step| step.action)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            actions(&[base.clone(), top.clone()]),
            [Action::Build, Action::Build]
        );
        let pushed = Facts {
            registry: Some("sha256:a".to_owned()),
            ..top.clone()
        };
        assert_eq!(
            actions(&[base.clone(), pushed])[0],
            Action::Skip { digest: None }
        );
        let there = Facts {
            engine: Some(vec!["sha256:i".to_owned()]),
            ..base
        };
        assert_eq!(actions(&[there, top])[0], Action::Skip { digest: None });
    }
}
