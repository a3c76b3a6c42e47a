//! Which of a repository's manifests go. Pure: the inventory and the roots in, a plan with reasons out.
//!
//! Everything stays by default. What goes must hang on a tag that orch made and nobody reaches, and nothing that stays may
//! name it: not a tag, not an index as its part, not an artifact as its subject.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::images::hash::is_input_tag;

/// What a manifest says about others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// Manifests of an index.
    pub children: BTreeSet<String>,
    /// What it is a signature or description of.
    pub subject: Option<String>,
    /// Size by digest of its blobs and of itself.
    pub blobs: BTreeMap<String, u64>,
}

/// What a repository holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Digest by tag.
    pub tags: BTreeMap<String, String>,
    /// Every manifest that a tag, an index or a root leads to.
    pub manifests: BTreeMap<String, Links>,
}

/// What is needed, and who needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots {
    /// Who names a digest.
    pub digests: BTreeMap<String, String>,
    /// Who names a tag.
    pub tags: BTreeMap<String, String>,
    /// Digests that are named as images, not only as any checksum.
    pub images: BTreeSet<String>,
}

/// A manifest that stays or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The manifest.
    pub digest: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Why.
    pub reason: String,
}

/// What is to be done with a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What stays and has a tag.
    pub kept: Vec<Decision>,
    /// What goes, in the order in which it does: no step leaves a tag with half an image.
    pub deleted: Vec<Decision>,
    /// Bytes of blobs in this repository that nothing else here uses.
    pub bytes: u64,
}

/// The digest that a tag of the referrers tag schema (`sha256-<hex>`) or of cosign (`sha256-<hex>.sig`) belongs to.
pub fn subject_of_tag(tag: &str) -> Option<String> {
    let rest = tag.strip_prefix("sha256-")?;
    let (hex, suffix) = rest.split_at_checked(64)?;
    let is_hex = hex
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let known = suffix.is_empty() || [".sig", ".att", ".sbom"].contains(&suffix);
    (is_hex && known).then(|| format!("sha256:{hex}"))
}

struct View<'a> {
    inventory: &'a Inventory,
    /// Tags by digest.
    tags: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// What belongs to a digest: its signatures and descriptions.
    attached: BTreeMap<String, BTreeSet<&'a str>>,
}

impl<'a> View<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        let mut tags: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut attached: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for (tag, digest) in &inventory.tags {
            tags.entry(digest).or_default().insert(tag);
            if let Some(subject) = subject_of_tag(tag) {
                attached.entry(subject).or_default().insert(digest);
            }
        }
        for (digest, links) in &inventory.manifests {
            if let Some(subject) = &links.subject {
                attached.entry(subject.clone()).or_default().insert(digest);
            }
        }
        Self {
            inventory,
            tags,
            attached,
        }
    }

    fn tags(&self, digest: &str) -> impl Iterator<Item = &'a str> {
        self.tags.get(digest).into_iter().flatten().copied()
    }

    fn links(&self, digest: &str) -> Option<&'a Links> {
        self.inventory.manifests.get(digest)
    }

    fn children(&self, digest: &str) -> impl Iterator<Item = &'a str> {
        self.links(digest)
            .into_iter()
            .flat_map(|links| &links.children)
            .map(String::as_str)
    }

    fn attached(&self, digest: &str) -> impl Iterator<Item = &'a str> {
        self.attached.get(digest).into_iter().flatten().copied()
    }

    fn exists(&self, digest: &str) -> bool {
        self.inventory.manifests.contains_key(digest) || self.tags.contains_key(digest)
    }

    /// Why a manifest stays on its own account.
    fn own_reason(&self, digest: &str, roots: &Roots) -> Option<String> {
        if let Some(who) = roots.digests.get(digest) {
            return Some(who.clone());
        }
        self.tags(digest).find_map(|tag| {
            if let Some(who) = roots.tags.get(tag) {
                return Some(who.clone());
            }
            match subject_of_tag(tag) {
                _ if is_input_tag(tag) => None,
                Some(subject) if self.exists(&subject) => None,
                Some(_) => Some("what it belongs to is not known here".to_owned()),
                None => Some(format!("the tag {tag} is none of orch's")),
            }
        })
    }

    /// Everything that roots lead to, with the reason.
    fn reached(&self, roots: &Roots) -> BTreeMap<&'a str, String> {
        let all: BTreeSet<&'a str> = self
            .inventory
            .manifests
            .keys()
            .map(String::as_str)
            .chain(self.tags.keys().copied())
            .collect();
        let mut reached: BTreeMap<&'a str, String> = BTreeMap::new();
        let mut waiting: Vec<(&'a str, String)> = all
            .iter()
            .filter_map(|digest| Some((*digest, self.own_reason(digest, roots)?)))
            .collect();
        // Own reasons first: they say more than "part of".
        for (digest, reason) in &waiting {
            reached.insert(digest, reason.clone());
        }
        while let Some((digest, _)) = waiting.pop() {
            let subject = self
                .links(digest)
                .and_then(|links| links.subject.as_deref());
            let parts = self.children(digest).map(|part| (part, "part of"));
            let attached = self.attached(digest).map(|item| (item, "belongs to"));
            let subject = subject.map(|subject| (subject, "described by"));
            for (next, relation) in parts.chain(attached).chain(subject) {
                if self.exists(next) && !reached.contains_key(next) {
                    let reason = format!("{relation} {}", self.name(digest));
                    reached.insert(next, reason.clone());
                    waiting.push((next, reason));
                }
            }
        }
        reached
    }

    /// What people call a manifest: its first tag, or the start of its digest.
    fn name(&self, digest: &str) -> String {
        self.tags(digest).next().map_or_else(
            || digest.get(..19).unwrap_or(digest).to_owned(),
            str::to_owned,
        )
    }

    /// What goes: all that hangs on unreachable tags of ours, less what something else still holds on to.
    fn condemned(&self, reached: &BTreeMap<&'a str, String>) -> BTreeSet<&'a str> {
        let mut condemned: BTreeSet<&'a str> = BTreeSet::new();
        let mut waiting: Vec<&'a str> = self
            .tags
            .keys()
            .filter(|digest| self.tags(digest).any(is_input_tag))
            .copied()
            .collect();
        while let Some(digest) = waiting.pop() {
            if self.exists(digest) && !reached.contains_key(digest) && condemned.insert(digest) {
                waiting.extend(self.children(digest));
                waiting.extend(self.attached(digest));
            }
        }
        loop {
            let held: Vec<&str> = condemned
                .iter()
                .filter(|digest| self.is_held(digest, &condemned))
                .copied()
                .collect();
            if held.is_empty() {
                return condemned;
            }
            for digest in held {
                condemned.remove(digest);
            }
        }
    }

    /// Does anything that stays need this manifest?
    fn is_held(&self, digest: &str, condemned: &BTreeSet<&str>) -> bool {
        let by_tag = self.tags(digest).any(|tag| {
            !is_input_tag(tag)
                && subject_of_tag(tag).is_none_or(|subject| !condemned.contains(subject.as_str()))
        });
        let by_manifest = self.inventory.manifests.iter().any(|(other, links)| {
            let names = links.children.contains(digest) || links.subject.as_deref() == Some(digest);
            names && !condemned.contains(other.as_str())
        });
        by_tag || by_manifest
    }

    /// Signatures before what they belong to, an index before its parts: whenever it stops, what is left under a tag of ours is
    /// whole, and the next run finds the rest by it.
    fn in_order(&self, condemned: &BTreeSet<&'a str>) -> Vec<&'a str> {
        let mut before: BTreeMap<&'a str, BTreeSet<&'a str>> = BTreeMap::new();
        let mut after: BTreeMap<&'a str, BTreeSet<&'a str>> = BTreeMap::new();
        let mut constrain = |first: &'a str, then: &'a str| {
            if first != then && condemned.contains(first) && condemned.contains(then) {
                before.entry(then).or_default().insert(first);
                after.entry(first).or_default().insert(then);
            }
        };
        for digest in condemned.iter().copied() {
            for child in self.children(digest) {
                constrain(digest, child);
            }
            for item in self.attached(digest) {
                constrain(item, digest);
            }
        }
        let mut left = condemned.clone();
        let mut ready: BTreeSet<&'a str> = left
            .iter()
            .filter(|digest| !before.contains_key(*digest))
            .copied()
            .collect();
        let mut order = Vec::with_capacity(left.len());
        // Nothing is ready in a circle, which only a forged tag can make; any start is as good as another.
        while let Some(digest) = ready.pop_first().or_else(|| left.first().copied()) {
            left.remove(digest);
            order.push(digest);
            for next in after.remove(digest).into_iter().flatten() {
                let waits = before.entry(next).or_default();
                waits.remove(digest);
                if waits.is_empty() && left.contains(next) {
                    ready.insert(next);
                }
            }
        }
        order
    }

    fn decision(&self, digest: &str, reason: String) -> Decision {
        Decision {
            digest: digest.to_owned(),
            tags: self.tags(digest).map(str::to_owned).collect(),
            reason,
        }
    }
}

/// Decides.
pub fn decide(inventory: &Inventory, roots: &Roots) -> Plan {
    let view = View::new(inventory);
    let reached = view.reached(roots);
    let condemned = view.condemned(&reached);
    let kept = view
        .tags
        .keys()
        .filter(|digest| !condemned.contains(*digest))
        .map(|digest| {
            let reason = reached.get(digest).cloned();
            let reason = reason.unwrap_or_else(|| "another manifest here needs it".to_owned());
            view.decision(digest, reason)
        })
        .collect();
    let deleted = view
        .in_order(&condemned)
        .into_iter()
        .map(|digest| {
            let reason = if view.tags(digest).any(is_input_tag) {
                "no file, branch or cluster names it"
            } else {
                "it belongs to an image that goes"
            };
            view.decision(digest, reason.to_owned())
        })
        .collect();
    let blobs = |wanted: bool| -> BTreeMap<&str, u64> {
        inventory
            .manifests
            .iter()
            .filter(|(digest, _)| condemned.contains(digest.as_str()) == wanted)
            .flat_map(|(_, links)| &links.blobs)
            .map(|(digest, size)| (digest.as_str(), *size))
            .collect()
    };
    let staying = blobs(false);
    let bytes = blobs(true)
        .into_iter()
        .filter(|(digest, _)| !staying.contains_key(digest))
        .map(|(_, size)| size)
        .sum();
    Plan {
        kept,
        deleted,
        bytes,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(number: u8) -> String {
        format!("sha256:{:064x}", number)
    }

    fn tag(number: u8) -> String {
        format!("in-{number:012x}")
    }

    fn attached(number: u8, suffix: &str) -> String {
        format!("sha256-{number:064x}{suffix}")
    }

    fn inventory(tags: &[(&str, u8)], children: &[(u8, u8)], subjects: &[(u8, u8)]) -> Inventory {
        let mut inventory = Inventory::default();
        for (tag, number) in tags {
            inventory.tags.insert((*tag).to_owned(), digest(*number));
            inventory.manifests.entry(digest(*number)).or_default();
        }
        for (parent, child) in children {
            let links = inventory.manifests.entry(digest(*parent)).or_default();
            links.children.insert(digest(*child));
            inventory.manifests.entry(digest(*child)).or_default();
        }
        for (item, subject) in subjects {
            let links = inventory.manifests.entry(digest(*item)).or_default();
            links.subject = Some(digest(*subject));
        }
        inventory
    }

    fn roots(digests: &[u8], tags: &[u8]) -> Roots {
        let who = || "test".to_owned();
        Roots {
            digests: digests
                .iter()
                .map(|number| (digest(*number), who()))
                .collect(),
            tags: tags.iter().map(|number| (tag(*number), who())).collect(),
            images: BTreeSet::new(),
        }
    }

    fn gone(inventory: &Inventory, roots: &Roots) -> Vec<u8> {
        decide(inventory, roots)
            .deleted
            .iter()
            .map(|decision| u8::from_str_radix(&decision.digest[69..], 16).unwrap())
            .collect()
    }

    #[test]
    fn only_unreachable_tags_of_ours_go() {
        let (a, b, c) = (tag(1), tag(2), tag(3));
        let held = inventory(&[(&a, 1), (&b, 2), (&c, 3), ("latest", 4)], &[], &[]);
        assert_eq!(gone(&held, &roots(&[1], &[2])), [3]);
        assert_eq!(gone(&held, &Roots::default()), [1, 2, 3]);
    }

    #[test]
    fn a_tag_of_others_or_a_reachable_sibling_protects_the_digest() {
        let (a, b) = (tag(1), tag(2));
        let held = inventory(&[(&a, 1), ("latest", 1), (&b, 2), (&tag(3), 2)], &[], &[]);
        assert!(gone(&held, &roots(&[], &[3])).is_empty());
        let plan = decide(&held, &roots(&[], &[3]));
        assert_eq!(plan.kept[0].reason, "the tag latest is none of orch's");
    }

    #[test]
    fn parts_of_a_reachable_index_stay_and_those_of_another_go_after_it() {
        let (index, part, old) = (tag(1), tag(2), tag(3));
        let held = inventory(
            &[(&index, 1), (&part, 2), (&old, 3)],
            &[(1, 2), (3, 4), (3, 2)],
            &[],
        );
        assert_eq!(gone(&held, &roots(&[1], &[])), [3, 4]);
        assert_eq!(gone(&held, &roots(&[4], &[])), [1, 3, 2]);
        // An index that is pinned and has no tag any more is in the inventory because a root names it.
        let untagged = inventory(&[(&part, 2)], &[(9, 2)], &[]);
        assert!(gone(&untagged, &roots(&[9], &[])).is_empty());
    }

    #[test]
    fn signatures_share_the_fate_of_their_image() {
        let (a, b) = (tag(1), tag(2));
        let (first, second) = (attached(1, ".sig"), attached(2, ""));
        let held = inventory(
            &[(&a, 1), (&b, 2), (&first, 3), (&second, 4)],
            &[(4, 5)],
            &[(5, 2)],
        );
        assert_eq!(gone(&held, &roots(&[1], &[])), [4, 5, 2]);
        assert_eq!(gone(&held, &roots(&[2], &[])), [3, 1]);
        assert_eq!(gone(&held, &roots(&[], &[])), [3, 1, 4, 5, 2]);
    }

    #[test]
    fn an_artifact_that_somebody_tagged_holds_its_subject() {
        let held = inventory(&[(&tag(1), 1), ("report", 2)], &[], &[(2, 1)]);
        assert!(gone(&held, &Roots::default()).is_empty());
    }

    #[test]
    fn a_signature_of_something_unknown_is_left_alone() {
        let held = inventory(&[(&attached(7, ".sig"), 1)], &[], &[]);
        assert!(gone(&held, &Roots::default()).is_empty());
    }

    #[test]
    fn tags_of_attachments_are_recognised_strictly() {
        assert_eq!(subject_of_tag(&attached(1, ".att")), Some(digest(1)));
        assert_eq!(subject_of_tag(&attached(1, ".txt")), None);
        assert_eq!(subject_of_tag("sha256-abc"), None);
        assert_eq!(subject_of_tag("sha256-ä"), None);
    }

    #[test]
    fn only_bytes_that_nothing_else_uses_count() {
        let mut held = inventory(&[(&tag(1), 1), (&tag(2), 2)], &[], &[]);
        for (number, blobs) in [(1, [("x", 5), ("y", 7)]), (2, [("x", 5), ("z", 9)])] {
            let links = held.manifests.get_mut(&digest(number)).unwrap();
            links.blobs = blobs.map(|(name, size)| (name.to_owned(), size)).into();
        }
        assert_eq!(decide(&held, &roots(&[1], &[])).bytes, 9);
    }

    fn any_tag() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => (0_u8..12).prop_map(tag),
            1 => (0_u8..4).prop_map(|number| format!("v{number}")),
            2 => (0_u8..12, prop_oneof![Just(""), Just(".sig"), Just(".att")])
                .prop_map(|(number, suffix)| attached(number, suffix)),
        ]
    }

    fn any_inventory() -> impl Strategy<Value = Inventory> {
        let tags = proptest::collection::vec((any_tag(), 0_u8..12), 0..16);
        let pairs = || proptest::collection::vec((0_u8..12, 0_u8..12), 0..8);
        (tags, pairs(), pairs()).prop_map(|(tags, children, subjects)| {
            let tags: Vec<(&str, u8)> = tags.iter().map(|(tag, n)| (tag.as_str(), *n)).collect();
            inventory(&tags, &children, &subjects)
        })
    }

    /// Only what hashes allow: a manifest names nothing that names it, by a tag neither.
    fn possible_inventory() -> impl Strategy<Value = Inventory> {
        any_inventory().prop_map(|mut held| {
            for (digest, links) in &mut held.manifests {
                links.children.retain(|child| child > digest);
                links.subject.take_if(|subject| *subject <= *digest);
            }
            held.tags
                .retain(|tag, digest| subject_of_tag(tag).is_none_or(|subject| subject > *digest));
            held
        })
    }

    fn any_roots() -> impl Strategy<Value = Roots> {
        let numbers = || proptest::collection::vec(0_u8..12, 0..4);
        (numbers(), numbers()).prop_map(|(digests, tags)| roots(&digests, &tags))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever a registry holds, also circles that no hash allows: nothing that stays or is named loses anything.
        #[test]
        fn what_stays_keeps_all_it_needs(held in any_inventory(), roots in any_roots()) {
            let plan = decide(&held, &roots);
            let gone: BTreeSet<&str> = plan.deleted.iter().map(|d| d.digest.as_str()).collect();
            prop_assert_eq!(gone.len(), plan.deleted.len(), "nothing goes twice");
            for digest in roots.digests.keys() {
                prop_assert!(!gone.contains(digest.as_str()));
            }
            for (tag, digest) in &held.tags {
                if !gone.contains(digest.as_str()) {
                    continue;
                }
                prop_assert!(!roots.tags.contains_key(tag));
                match subject_of_tag(tag) {
                    Some(subject) => prop_assert!(gone.contains(subject.as_str())),
                    None => prop_assert!(is_input_tag(tag), "{} went", tag),
                }
            }
            for (digest, links) in &held.manifests {
                if gone.contains(digest.as_str()) {
                    continue;
                }
                for child in &links.children {
                    prop_assert!(!gone.contains(child.as_str()), "a part of {} went", digest);
                }
                if let Some(subject) = &links.subject {
                    prop_assert!(!gone.contains(subject.as_str()), "the subject of {} went", digest);
                }
            }
            for decision in &plan.kept {
                prop_assert!(!gone.contains(decision.digest.as_str()));
            }
            prop_assert_eq!(plan.kept.len() + plan.deleted.iter().filter(|d| !d.tags.is_empty()).count(),
                held.tags.values().collect::<BTreeSet<_>>().len());
        }

        /// More roots never delete more.
        #[test]
        fn a_further_root_only_protects(held in any_inventory(), few in any_roots(), extra in 0_u8..12) {
            let set = |roots: &Roots| -> BTreeSet<String> {
                decide(&held, roots).deleted.into_iter().map(|d| d.digest).collect()
            };
            let mut more = few.clone();
            more.digests.insert(digest(extra), "test".to_owned());
            prop_assert!(set(&more).is_subset(&set(&few)));
        }

        /// Stopped anywhere, a run leaves no tag of ours with a part missing, and the next one finishes the work.
        #[test]
        fn a_run_that_stops_leaves_whole_images(held in possible_inventory(), roots in any_roots(), cut in 0_usize..20) {
            let plan = decide(&held, &roots);
            let done: BTreeSet<&str> = plan.deleted.iter().take(cut).map(|d| d.digest.as_str()).collect();
            for (tag, digest) in &held.tags {
                if is_input_tag(tag) && !done.contains(digest.as_str()) {
                    for child in &held.manifests[digest].children {
                        prop_assert!(!done.contains(child.as_str()));
                    }
                }
            }
        }
    }
}
