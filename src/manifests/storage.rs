//! Another StorageClass instead of the directory that the nodes share.
//!
//! Manifests name the shared directory's class [`SHARED_STORAGE_CLASS`]. On a cluster that has its own
//! storage the volumes behind that class are left out and every claim asks for the given class.

use serde_json::Value;

use super::{Stack, Unpinned};

/// The class name that stands for the directory that orch shares between the nodes.
pub const SHARED_STORAGE_CLASS: &str = "orch-shared";

impl Stack<Unpinned> {
    /// Moves every claim of the shared class to `class`.
    pub fn with_storage_class(mut self, class: &str) -> Self {
        self.manifests
            .retain(|manifest| match manifest.kind.as_str() {
                "PersistentVolume" => {
                    manifest.object.pointer("/spec/storageClassName") != Some(&shared())
                }
                "StorageClass" => manifest.name != SHARED_STORAGE_CLASS,
                _ => true,
            });
        for manifest in &mut self.manifests {
            match manifest.kind.as_str() {
                "PersistentVolumeClaim" => replace_class(&mut manifest.object, class),
                "StatefulSet" => {
                    let templates = manifest.object.pointer_mut("/spec/volumeClaimTemplates");
                    if let Some(templates) = templates.and_then(Value::as_array_mut) {
                        templates
                            .iter_mut()
                            .for_each(|claim| replace_class(claim, class));
                    }
                }
                _ => {}
            }
        }
        self
    }
}

fn shared() -> Value {
    Value::String(SHARED_STORAGE_CLASS.to_owned())
}

/// Binding to a named volume goes too: that volume belongs to the class that is being replaced.
fn replace_class(claim: &mut Value, class: &str) {
    let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if spec.get("storageClassName") == Some(&shared()) {
        spec.insert(
            "storageClassName".to_owned(),
            Value::String(class.to_owned()),
        );
        spec.remove("volumeName");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::load;
    use super::*;

    #[test]
    fn shared_volumes_leave_and_claims_move_over() {
        let text = "\
{apiVersion: v1, kind: PersistentVolume, metadata: {name: disk}, spec: {storageClassName: orch-shared}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: other}, spec: {storageClassName: nfs}}
---
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: orch-shared}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: a}, spec: {storageClassName: orch-shared, volumeName: disk}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: b}, spec: {volumeClaimTemplates: [
  {metadata: {name: data}, spec: {storageClassName: orch-shared}}, {metadata: {name: x}, spec: {storageClassName: nfs}}]}}
";
        let stack = Stack::<Unpinned> {
            directory: "dir".into(),
            manifests: load::parse(text, Path::new("a.yaml")).unwrap(),
        }
        .with_storage_class("fast");
        let objects: Vec<_> = stack
            .manifests
            .iter()
            .map(|m| m.object["spec"].to_string())
            .collect();
        insta::assert_debug_snapshot!(objects, @r#"
        [
            "{\"storageClassName\":\"nfs\"}",
            "{\"storageClassName\":\"fast\"}",
            "{\"volumeClaimTemplates\":[{\"metadata\":{\"name\":\"data\"},\"spec\":{\"storageClassName\":\"fast\"}},{\"metadata\":{\"name\":\"x\"},\"spec\":{\"storageClassName\":\"nfs\"}}]}",
        ]
        "#);
    }
}
