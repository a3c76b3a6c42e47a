//! What an apply would do, without doing it: the API server's own dry run.

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::Value;

use super::apply::{ApplyOptions, Desired, Session, content};
use super::{Conflict, KubeError, Reporter};

const CONCURRENCY: usize = 8;

/// What would happen to one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlannedAction {
    Create,
    Configure,
    Unchanged,
    /// Refused: other owners hold fields, see [`PlannedObject::conflicts`].
    Conflict,
}

/// A field that would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// A JSON pointer (RFC 6901).
    pub field: String,
    /// `None` when the field is new, and always for Secrets.
    pub before: Option<Value>,
    /// `None` when the field goes, and always for Secrets.
    pub after: Option<Value>,
}

/// One object of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedObject {
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub origin: String,
    pub action: PlannedAction,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
    /// False when the API server could not check the object because its namespace or kind is itself part
    /// of the plan.
    pub validated: bool,
}

/// What an apply would do, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub objects: Vec<PlannedObject>,
}

impl Plan {
    /// True when an apply would change nothing.
    pub fn is_empty(&self) -> bool {
        self.objects
            .iter()
            .all(|object| object.action == PlannedAction::Unchanged)
    }
}

/// Asks the API server what an apply of the waves would do. Nothing is stored.
pub async fn plan(
    client: &kube::Client,
    waves: &[Vec<Desired>],
    options: &ApplyOptions,
    reporter: &dyn Reporter,
) -> Result<Plan, KubeError> {
    let session = Session::new(client, waves, options, reporter);
    let namespaces: Vec<&str> = waves
        .iter()
        .flatten()
        .filter(|desired| desired.kind == "Namespace")
        .map(|desired| desired.name.as_str())
        .collect();
    let planner = Planner {
        session,
        namespaces,
    };
    let objects = stream::iter(waves.iter().flatten())
        .map(|desired| planner.plan_one(desired))
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    Ok(Plan { objects })
}

struct Planner<'a> {
    session: Session<'a>,
    /// Namespaces that the plan itself creates.
    namespaces: Vec<&'a str>,
}

impl Planner<'_> {
    async fn plan_one(&self, desired: &Desired) -> Result<PlannedObject, KubeError> {
        let mut planned = PlannedObject {
            kind: desired.kind.clone(),
            namespace: desired.namespace.clone(),
            name: desired.name.clone(),
            origin: desired.origin.clone(),
            action: PlannedAction::Create,
            changes: Vec::new(),
            conflicts: Vec::new(),
            validated: true,
        };
        let target = match self.session.find(desired).await? {
            Some(target) => target,
            None if self.session.defines(&desired.kind) => {
                planned.validated = false;
                return Ok(planned);
            }
            None => return Err(KubeError::unknown_kind(desired)),
        };
        planned.namespace = target.namespace.clone();
        let before = self.session.live(&target, desired).await?;
        match self.session.patch(&target, desired, true).await {
            Ok(after) => {
                if let Some(before) = before {
                    planned.changes = changes(&content(&before), &content(&after));
                    planned.action = if planned.changes.is_empty() {
                        PlannedAction::Unchanged
                    } else {
                        PlannedAction::Configure
                    };
                }
            }
            Err(KubeError::Conflict { conflicts, .. }) => {
                planned.action = PlannedAction::Conflict;
                planned.conflicts = conflicts;
            }
            Err(error @ KubeError::Rejected { .. }) => {
                if before.is_some() || !self.creates_namespace(&planned, &error) {
                    return Err(error);
                }
                planned.validated = false;
            }
            Err(error) => return Err(error),
        }
        if desired.kind == "Secret" {
            for change in &mut planned.changes {
                change.before = None;
                change.after = None;
            }
        }
        Ok(planned)
    }

    /// Whether the refusal only says that a namespace of this plan does not exist yet.
    fn creates_namespace(&self, planned: &PlannedObject, error: &KubeError) -> bool {
        let KubeError::Rejected { message, .. } = error else {
            return false;
        };
        planned.namespace.as_deref().is_some_and(|namespace| {
            self.namespaces.contains(&namespace)
                && message.starts_with(&format!("namespaces \"{namespace}\" not found"))
        })
    }
}

/// The smallest fields that differ; lists of different length are one field.
fn changes(before: &Value, after: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare(String::new(), Some(before), Some(after), &mut found);
    found
}

fn compare(field: String, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Change>) {
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                let escaped = key.replace('~', "~0").replace('/', "~1");
                compare(
                    format!("{field}/{escaped}"),
                    old.get(key),
                    new.get(key),
                    found,
                );
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(format!("{field}/{index}"), Some(old), Some(new), found);
            }
        }
        (before, after) if before != after => found.push(Change {
            field,
            before: before.cloned(),
            after: after.cloned(),
        }),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_name_the_smallest_fields() {
        let before =
            json!({"a": {"b": 1, "gone": true}, "list": [1, 2], "same": "x", "grows": [1]});
        let after = json!({"a": {"b": 2, "x/y": {}}, "list": [1, 3], "same": "x", "grows": [1, 2]});
        let fields: Vec<_> = changes(&before, &after)
            .into_iter()
            .map(|change| change.field)
            .collect();
        assert_eq!(fields, ["/a/b", "/a/gone", "/a/x~1y", "/list/1", "/grows"]);
    }

    #[test]
    fn a_plan_is_empty_when_nothing_would_change() {
        let object = |action| PlannedObject {
            kind: "ConfigMap".into(),
            namespace: None,
            name: "a".into(),
            origin: "a.yaml:1:1".into(),
            action,
            changes: Vec::new(),
            conflicts: Vec::new(),
            validated: true,
        };
        let plan = |action| Plan {
            objects: vec![object(action)],
        };
        assert!(plan(PlannedAction::Unchanged).is_empty());
        assert!(!plan(PlannedAction::Create).is_empty());
        assert!(!plan(PlannedAction::Conflict).is_empty());
    }
}
