//! One thing that a step would change or has changed on a node, for programs and for people.

use serde::{Deserialize, Serialize};

/// What would be done to what, and why.
///
/// `name` and `detail` read as a clause: `/etc/rancher/k3s/config.yaml` `differs`. Nothing here is secret: values that
/// may be are replaced before a change is made into an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub subject: Subject,
    /// The path, the unit, the kernel setting.
    pub name: String,
    pub action: Action,
    /// Why, as seen on the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Text files: what differs, as lines that begin with `-`, `+`, a blank or `@`. Bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diff: Vec<String>,
}

impl Change {
    pub fn new(
        subject: Subject,
        name: impl Into<String>,
        action: Action,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            subject,
            name: name.into(),
            action,
            detail: detail.into(),
            diff: Vec::new(),
        }
    }

    pub fn with_diff(mut self, diff: Vec<String>) -> Self {
        self.diff = diff;
        self
    }
}

/// What kind of thing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    File,
    Directory,
    /// A symbolic link.
    Link,
    Mount,
    /// A package of the distribution.
    Package,
    /// A kernel module or setting.
    Kernel,
    /// What systemd knows of a unit: whether it starts at boot, which file it has read.
    Unit,
    /// What runs.
    Service,
    /// A program of a certain version.
    Version,
    /// What this node proves with that it belongs to the cluster.
    Membership,
    /// Processes that no unit owns.
    Process,
    /// Interfaces, routes, network namespaces, packet filter rules.
    Network,
    /// The node as the cluster sees it.
    Node,
    #[serde(other)]
    Unknown,
}

/// What is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Update,
    Remove,
    Install,
    Load,
    Mount,
    Enable,
    Reload,
    Start,
    Restart,
    Stop,
    /// Ask another machine for it.
    Request,
    /// Changes nothing: waits until it is so.
    Wait,
    #[serde(other)]
    Unknown,
}

/// The word in reports, the same as in JSON.
macro_rules! word {
    ($type:ty) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.serialize(formatter)
            }
        }
    };
}

word!(Subject);
word!(Action);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_reads_and_writes_as_flat_words() {
        let change = Change::new(Subject::File, "/etc/x", Action::Create, "is missing");
        let text = serde_json::to_string(&change).unwrap();
        assert_eq!(
            text,
            r#"{"subject":"file","name":"/etc/x","action":"create","detail":"is missing"}"#
        );
        assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change);
        assert_eq!(change.action.to_string(), "create");
    }

    #[test]
    fn words_of_a_newer_provisioner_are_tolerated() {
        let text = r#"{"subject":"quota","name":"x","action":"double","mood":1}"#;
        let change: Change = serde_json::from_str(text).unwrap();
        assert_eq!(
            (change.subject, change.action),
            (Subject::Unknown, Action::Unknown)
        );
    }
}
