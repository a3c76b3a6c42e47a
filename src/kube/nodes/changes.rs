//! What is to change on a node, worked out from what it carries and what is wanted. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{Node, Taint as LiveTaint};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{OWNED_LABELS, OWNED_TAINTS, Taint, WantedNode};

/// What happens to a label or a taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Add,
    Change,
    Remove,
    /// It is there already; orch will look after it from now on.
    Adopt,
}

/// One label or taint that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `label` or `taint`.
    pub what: &'static str,
    pub verb: Verb,
    /// As kubectl writes it: `key=value`, `key=value:Effect`.
    pub item: String,
    /// What it was before, where that is another value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, item, .. } = self;
        match (self.verb, &self.before) {
            (Verb::Add, _) => write!(formatter, "{what} {item} is missing"),
            (Verb::Change, Some(before)) => write!(formatter, "{what} {before} becomes {item}"),
            (Verb::Change, None) => write!(formatter, "{what} becomes {item}"),
            (Verb::Remove, _) => write!(formatter, "{what} {item} is no longer wanted"),
            (Verb::Adopt, _) => write!(formatter, "{what} {item} is to be remembered as orch's"),
        }
    }
}

/// What `live` and `wanted` differ in.
pub fn changes(live: &Node, wanted: &WantedNode) -> Vec<Change> {
    let mut found = Vec::new();
    let labels = live.metadata.labels.clone().unwrap_or_default();
    let owned = owned(live, OWNED_LABELS);
    for (key, value) in &wanted.labels {
        let item = format!("{key}={value}");
        match labels.get(key) {
            None => found.push(change("label", Verb::Add, item, None)),
            Some(present) if present != value => {
                let before = Some(format!("{key}={present}"));
                found.push(change("label", Verb::Change, item, before));
            }
            Some(_) if !owned.contains(key) => found.push(change("label", Verb::Adopt, item, None)),
            Some(_) => {}
        }
    }
    for key in owned.iter().filter(|key| !wanted.labels.contains_key(*key)) {
        let item = labels
            .get(key)
            .map_or_else(|| key.clone(), |value| format!("{key}={value}"));
        found.push(change("label", Verb::Remove, item, None));
    }
    found.extend(taint_changes(live, wanted));
    found
}

fn taint_changes(live: &Node, wanted: &WantedNode) -> Vec<Change> {
    let mut found = Vec::new();
    let present: BTreeMap<String, Taint> = live_taints(live)
        .iter()
        .map(Taint::from)
        .map(|taint| (taint.identity(), taint))
        .collect();
    let owned = owned(live, OWNED_TAINTS);
    for taint in &wanted.taints {
        let identity = taint.identity();
        match present.get(&identity) {
            None => found.push(change("taint", Verb::Add, taint.to_string(), None)),
            Some(there) if there != taint => {
                let before = Some(there.to_string());
                found.push(change("taint", Verb::Change, taint.to_string(), before));
            }
            Some(_) if !owned.contains(&identity) => {
                found.push(change("taint", Verb::Adopt, taint.to_string(), None));
            }
            Some(_) => {}
        }
    }
    let is_wanted = |identity: &String| {
        let mut wanted = wanted.taints.iter();
        wanted.any(|taint| taint.identity() == *identity)
    };
    for identity in owned.into_iter().filter(|identity| !is_wanted(identity)) {
        let item = present.get(&identity).map_or(identity, Taint::to_string);
        found.push(change("taint", Verb::Remove, item, None));
    }
    found
}

/// The merge patch that makes `live` what is wanted. It holds the version that was read: another's change in between is a
/// conflict and not lost.
pub(super) fn patch(live: &Node, wanted: &WantedNode) -> Value {
    let mut labels: Map<String, Value> = owned(live, OWNED_LABELS)
        .into_iter()
        .map(|key| (key, Value::Null))
        .collect();
    for (key, value) in &wanted.labels {
        labels.insert(key.clone(), json!(value));
    }
    let owned_taints = owned(live, OWNED_TAINTS);
    let is_ours = |taint: &LiveTaint| {
        let identity = Taint::from(taint).identity();
        owned_taints.contains(&identity)
            || wanted
                .taints
                .iter()
                .any(|taint| taint.identity() == identity)
    };
    // Others' taints stay as they are, with the times they carry: the node controller's say why a node is out.
    let taints: Vec<LiveTaint> = live_taints(live)
        .iter()
        .filter(|taint| !is_ours(taint))
        .cloned()
        .chain(wanted.taints.iter().map(|taint| LiveTaint {
            key: taint.key.clone(),
            value: taint.value.clone(),
            effect: taint.effect.clone(),
            time_added: None,
        }))
        .collect();
    let names: Vec<&str> = wanted.labels.keys().map(String::as_str).collect();
    let identities: Vec<String> = wanted.taints.iter().map(Taint::identity).collect();
    let listed = |text: String| (!text.is_empty()).then_some(text);
    json!({
        "metadata": {
            "resourceVersion": live.metadata.resource_version,
            "labels": labels,
            "annotations": {
                OWNED_LABELS: listed(names.join(",")),
                OWNED_TAINTS: listed(identities.join(",")),
            },
        },
        "spec": {"taints": (!taints.is_empty()).then_some(taints)},
    })
}

fn change(what: &'static str, verb: Verb, item: String, before: Option<String>) -> Change {
    Change {
        what,
        verb,
        item,
        before,
    }
}

fn owned(live: &Node, annotation: &str) -> BTreeSet<String> {
    let annotations = live.metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(annotation));
    text.into_iter()
        .flat_map(|text| text.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn live_taints(live: &Node) -> &[LiveTaint] {
    let taints = live.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    taints.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    fn wanted(labels: &[(&str, &str)], taints: &[&str]) -> WantedNode {
        WantedNode {
            name: "a".to_owned(),
            labels: labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            taints: taints.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    /// What a merge patch makes of a node (RFC 7396).
    fn patched(live: &Node, wanted: &WantedNode) -> Node {
        fn merge(target: &mut Value, patch: Value) {
            let Value::Object(fields) = patch else {
                *target = patch;
                return;
            };
            if !target.is_object() {
                *target = json!({});
            }
            let target = target.as_object_mut().unwrap();
            for (key, value) in fields {
                if value.is_null() {
                    target.remove(&key);
                } else {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        let mut value = serde_json::to_value(live).unwrap();
        merge(&mut value, patch(live, wanted));
        serde_json::from_value(value).unwrap()
    }

    fn shown(live: &Node, wanted: &WantedNode) -> Vec<String> {
        changes(live, wanted)
            .iter()
            .map(Change::to_string)
            .collect()
    }

    #[test]
    fn what_differs_is_named_and_one_patch_mends_it() {
        let live = node(json!({
            "metadata": {"name": "a", "resourceVersion": "7",
                "labels": {"disk": "hdd", "old": "1", "theirs": "x", "kubernetes.io/hostname": "a"},
                "annotations": {OWNED_LABELS: "disk,old,gone", OWNED_TAINTS: "dedicated:NoSchedule", "other": "y"}},
            "spec": {"podCIDR": "10.42.1.0/24", "taints": [
                {"key": "dedicated", "value": "db", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]},
        }));
        let wanted = wanted(&[("disk", "ssd"), ("zone", "b")], &["gpu=yes:NoExecute"]);
        assert_eq!(
            shown(&live, &wanted),
            [
                "label disk=hdd becomes disk=ssd",
                "label zone=b is missing",
                "label gone is no longer wanted",
                "label old=1 is no longer wanted",
                "taint gpu=yes:NoExecute is missing",
                "taint dedicated=db:NoSchedule is no longer wanted",
            ]
        );
        let after = patched(&live, &wanted);
        assert_eq!(shown(&after, &wanted), Vec::<String>::new());
        let labels = after.metadata.labels.clone().unwrap();
        assert_eq!(
            labels.keys().collect::<Vec<_>>(),
            ["disk", "kubernetes.io/hostname", "theirs", "zone"]
        );
        assert_eq!(after.metadata.annotations.as_ref().unwrap()["other"], "y");
        let taints = live_taints(&after);
        assert_eq!(taints[0].key, "node.kubernetes.io/unreachable");
        assert!(taints[0].time_added.is_some(), "others' taints stay whole");
        assert_eq!(
            after.spec.unwrap().pod_cidr.as_deref(),
            Some("10.42.1.0/24")
        );
    }

    #[test]
    fn what_the_kubelet_set_at_its_first_join_is_remembered_so_that_it_can_go() {
        let live = node(json!({
            "metadata": {"name": "a", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]},
        }));
        let joined = wanted(&[("disk", "ssd")], &["dedicated=db:NoSchedule"]);
        assert_eq!(
            shown(&live, &joined),
            [
                "label disk=ssd is to be remembered as orch's",
                "taint dedicated=db:NoSchedule is to be remembered as orch's"
            ]
        );
        let adopted = patched(&live, &joined);
        assert_eq!(shown(&adopted, &joined), Vec::<String>::new());
        let bare = patched(&adopted, &wanted(&[], &[]));
        assert_eq!(bare.metadata.labels.unwrap_or_default().len(), 0);
        assert_eq!(bare.spec.unwrap().taints, None);
        assert_eq!(bare.metadata.annotations.unwrap_or_default().len(), 0);
    }

    #[test]
    fn a_node_that_nobody_described_is_left_alone() {
        let live = node(json!({"metadata": {"name": "a", "labels": {"x": "1"}},
            "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}));
        assert_eq!(shown(&live, &wanted(&[], &[])), Vec::<String>::new());
    }
}
