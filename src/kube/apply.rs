//! Server-side apply, wave by wave.
//!
//! The API server merges: orch sends what the manifests say and owns exactly those fields. An object
//! that comes back as it was counts as unchanged, so a second apply says so and changes nothing.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde::Serialize;
use serde_json::Value;

use super::discovery::{Discovery, Resource};
use super::error::conflicts;
use super::redact::Redactor;
use super::retry::Settle;
use super::{ApplyEvent, ApplyResult, KubeError, Reporter};

/// The name that orch's fields are owned under.
pub const FIELD_MANAGER: &str = "orch";

/// Requests in flight: enough to hide the round trips, few enough for a small API server.
const CONCURRENCY: usize = 8;
const ESTABLISH_POLL: Duration = Duration::from_millis(100);

/// An object as it should be.
#[derive(Clone)]
pub struct Desired {
    pub api_version: String,
    pub kind: String,
    /// `None`: cluster-wide, or in [`ApplyOptions::namespace`] where the kind is namespaced.
    pub namespace: Option<String>,
    pub name: String,
    /// Where the user finds it, for errors: `FILE:LINE:COLUMN`.
    pub origin: String,
    pub object: Value,
}

/// How to apply.
#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// For objects that name no namespace.
    pub namespace: String,
    /// Take fields over from other owners instead of failing.
    pub force_conflicts: bool,
    /// How long an API server may answer that it is not ready, over the whole apply.
    pub settle: Duration,
}

/// An object that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub result: ApplyResult,
}

/// Applies the waves one after the other, the objects of a wave together. The first error ends it;
/// what was applied stays, and the next apply goes on from there.
pub async fn apply(
    client: &kube::Client,
    waves: Vec<Vec<Desired>>,
    options: &ApplyOptions,
    reporter: &dyn Reporter,
) -> Result<Vec<Applied>, KubeError> {
    let session = Session::new(client, &waves, options, reporter);
    let mut applied = Vec::new();
    for wave in &waves {
        let results: Vec<_> = stream::iter(wave)
            .map(|desired| session.apply_one(desired))
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        applied.extend(results);
    }
    Ok(applied)
}

/// What one run knows and shares between its requests.
pub(super) struct Session<'a> {
    client: kube::Client,
    discovery: Discovery,
    options: &'a ApplyOptions,
    reporter: &'a dyn Reporter,
    settle: Settle,
    redactor: Redactor,
    /// Kinds that this run's own CustomResourceDefinitions are about to define.
    defined_kinds: Vec<String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        client: &kube::Client,
        waves: &[Vec<Desired>],
        options: &'a ApplyOptions,
        reporter: &'a dyn Reporter,
    ) -> Self {
        let mut redactor = Redactor::default();
        let mut defined_kinds = Vec::new();
        for desired in waves.iter().flatten() {
            redactor.learn(&desired.object);
            if desired.kind == "CustomResourceDefinition"
                && let Some(kind) = desired
                    .object
                    .pointer("/spec/names/kind")
                    .and_then(Value::as_str)
            {
                defined_kinds.push(kind.to_owned());
            }
        }
        Self {
            client: client.clone(),
            discovery: Discovery::new(client.clone()),
            options,
            reporter,
            settle: Settle::within(options.settle),
            redactor,
            defined_kinds,
        }
    }

    async fn apply_one(&self, desired: &Desired) -> Result<Applied, KubeError> {
        let target = self.target(desired).await?;
        let before = self.live(&target, desired).await?;
        let after = self.patch(&target, desired, false).await?;
        if desired.kind == "CustomResourceDefinition" {
            self.wait_established(&target, desired).await?;
        }
        let result = match before {
            None => ApplyResult::Created,
            Some(before) if content(&before) == content(&after) => ApplyResult::Unchanged,
            Some(_) => ApplyResult::Configured,
        };
        let applied = Applied {
            kind: desired.kind.clone(),
            namespace: target.namespace,
            name: desired.name.clone(),
            result,
        };
        self.reporter.report(ApplyEvent::Applying {
            kind: applied.kind.clone(),
            namespace: applied.namespace.clone(),
            name: applied.name.clone(),
            result,
        });
        Ok(applied)
    }

    /// Where the object lives. A kind that the cluster does not serve yet is waited for when this run
    /// defines it.
    async fn target(&self, desired: &Desired) -> Result<Target, KubeError> {
        loop {
            match self.find(desired).await? {
                Some(target) => return Ok(target),
                None if self.defines(&desired.kind) && !self.settle.is_over() => {
                    tokio::time::sleep(ESTABLISH_POLL).await;
                }
                None => return Err(KubeError::unknown_kind(desired)),
            }
        }
    }

    /// Where the object lives, unless the cluster does not serve its kind.
    pub(super) async fn find(&self, desired: &Desired) -> Result<Option<Target>, KubeError> {
        let operation = format!("looking up {} {}", desired.api_version, desired.kind);
        let found = self
            .settle
            .request(&operation, self.reporter, async || {
                self.discovery
                    .resource(&desired.api_version, &desired.kind)
                    .await
            })
            .await?
            .map_err(|source| KubeError::Request {
                operation,
                source: source.into(),
            })?;
        Ok(found.map(|resource| self.place(resource, desired)))
    }

    pub(super) fn defines(&self, kind: &str) -> bool {
        self.defined_kinds.iter().any(|defined| defined == kind)
    }

    fn place(&self, resource: Resource, desired: &Desired) -> Target {
        if resource.namespaced {
            let namespace = desired
                .namespace
                .as_ref()
                .unwrap_or(&self.options.namespace);
            Target {
                api: Api::namespaced_with(self.client.clone(), namespace, &resource.api),
                namespace: Some(namespace.clone()),
            }
        } else {
            Target {
                api: Api::all_with(self.client.clone(), &resource.api),
                namespace: None,
            }
        }
    }

    /// The object as the cluster has it.
    pub(super) async fn live(
        &self,
        target: &Target,
        desired: &Desired,
    ) -> Result<Option<Value>, KubeError> {
        self.settle
            .request(&reading(desired), self.reporter, async || {
                target.api.get_opt(&desired.name).await
            })
            .await?
            .and_then(|object| object.as_ref().map(to_json).transpose())
            .map_err(|source| KubeError::Request {
                operation: reading(desired),
                source: source.into(),
            })
    }

    /// The object as the API server has it after the merge.
    pub(super) async fn patch(
        &self,
        target: &Target,
        desired: &Desired,
        dry_run: bool,
    ) -> Result<Value, KubeError> {
        let mut parameters = PatchParams::apply(FIELD_MANAGER).validation_strict();
        parameters.force = self.options.force_conflicts;
        parameters.dry_run = dry_run;
        let patch = Patch::Apply(&desired.object);
        self.settle
            .request(&applying(desired), self.reporter, async || {
                target.api.patch(&desired.name, &parameters, &patch).await
            })
            .await?
            .and_then(|object| to_json(&object))
            .map_err(|error| self.refusal(desired, error))
    }

    fn refusal(&self, desired: &Desired, error: kube::Error) -> KubeError {
        let object = format!("{} {}", desired.kind, desired.name);
        let status = match error {
            kube::Error::Api(status) => status,
            source => {
                return KubeError::Request {
                    operation: applying(desired),
                    source: source.into(),
                };
            }
        };
        let conflicts = conflicts(&status);
        if !conflicts.is_empty() {
            return KubeError::Conflict {
                origin: desired.origin.clone(),
                object,
                conflicts,
            };
        }
        let mut message = self.redactor.clean(&status.message);
        if status.code == 404 && message.starts_with("namespaces ") {
            message.push_str("; add the Namespace to the stack's manifests");
        } else if message.contains("field is immutable")
            || message.contains("are forbidden: updates to")
        {
            message.push_str("; delete the object once and apply again");
        }
        KubeError::Rejected {
            origin: desired.origin.clone(),
            object,
            message,
        }
    }

    /// Objects of a new kind are refused until its definition is established.
    async fn wait_established(&self, target: &Target, desired: &Desired) -> Result<(), KubeError> {
        while let Some(definition) = self.live(target, desired).await? {
            let conditions = definition
                .pointer("/status/conditions")
                .and_then(Value::as_array);
            let established = conditions.into_iter().flatten().any(|condition| {
                condition["type"] == "Established" && condition["status"] == "True"
            });
            if established {
                break;
            }
            if self.settle.is_over() {
                return Err(KubeError::Rejected {
                    origin: desired.origin.clone(),
                    object: format!("{} {}", desired.kind, desired.name),
                    message:
                        "it is stored but not established; `orch kubectl -- describe crd` says why"
                            .to_owned(),
                });
            }
            tokio::time::sleep(ESTABLISH_POLL).await;
        }
        Ok(())
    }
}

impl KubeError {
    pub(super) fn unknown_kind(desired: &Desired) -> Self {
        Self::UnknownKind {
            origin: desired.origin.clone(),
            api_version: desired.api_version.clone(),
            kind: desired.kind.clone(),
        }
    }
}

/// Where an object lives.
pub(super) struct Target {
    api: Api<DynamicObject>,
    pub(super) namespace: Option<String>,
}

fn reading(desired: &Desired) -> String {
    format!("reading {} {}", desired.kind, desired.name)
}

fn applying(desired: &Desired) -> String {
    format!("applying {} {}", desired.kind, desired.name)
}

fn to_json(object: &DynamicObject) -> kube::Result<Value> {
    serde_json::to_value(object).map_err(kube::Error::SerdeError)
}

/// The part of an object that an apply changes: not its status, which controllers write meanwhile, nor
/// the API server's own bookkeeping.
pub(super) fn content(object: &Value) -> Value {
    let mut content = object.clone();
    if let Some(fields) = content.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = content.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "managedFields",
            "resourceVersion",
            "generation",
            "uid",
            "creationTimestamp",
        ] {
            metadata.remove(field);
        }
    }
    content
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_controller_s_status_update_is_no_change() {
        let before = json!({"metadata": {"name": "a", "resourceVersion": "1", "generation": 1}, "spec": {"b": 1}});
        let mut after = json!({
            "metadata": {"name": "a", "resourceVersion": "2", "managedFields": [{}], "generation": 1},
            "spec": {"b": 1}, "status": {"ready": 1}
        });
        assert_eq!(content(&before), content(&after));
        after["spec"]["b"] = json!(2);
        assert_ne!(content(&before), content(&after));
        after["spec"]["b"] = json!(1);
        after["metadata"]["labels"] = json!({"a": "b"});
        assert_ne!(content(&before), content(&after));
    }
}
