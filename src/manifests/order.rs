//! The order in which a stack's objects are applied.
//!
//! Stages follow from what Kubernetes needs: an object's namespace and type before the object, what
//! a pod mounts before the pod. Within a stage people choose with an annotation.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::load::invalid;
use super::yaml::{Located, Node};
use super::{Manifest, ManifestError, Pinned, Stack};

/// An integer; objects with a lower one are applied first within their stage. 0 when it is not there.
pub const WAVE_ANNOTATION: &str = "orch.dev/wave";

/// What comes before what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Namespaces and CustomResourceDefinitions.
    Foundation,
    /// What pods refer to: identities, configuration, volumes.
    Prerequisite,
    /// Services and Ingresses, before the pods that get their addresses as environment variables.
    Network,
    /// Workloads, and every kind that no other stage names.
    Workload,
    /// Autoscalers, once there is something to scale.
    Autoscaler,
}

impl Stage {
    fn of(kind: &str) -> Self {
        match kind {
            "Namespace" | "CustomResourceDefinition" => Self::Foundation,
            "ServiceAccount"
            | "Role"
            | "RoleBinding"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "ConfigMap"
            | "Secret"
            | "StorageClass"
            | "PersistentVolume"
            | "PersistentVolumeClaim"
            | "PriorityClass"
            | "ResourceQuota"
            | "LimitRange"
            | "NetworkPolicy"
            | "PodDisruptionBudget" => Self::Prerequisite,
            "Service" | "Ingress" | "IngressClass" => Self::Network,
            "HorizontalPodAutoscaler" => Self::Autoscaler,
            _ => Self::Workload,
        }
    }
}

/// Objects that are applied together.
#[derive(Debug, Clone)]
pub struct Wave {
    pub stage: Stage,
    pub wave: i32,
    pub manifests: Vec<Manifest<Pinned>>,
}

impl Stack<Pinned> {
    /// The stack's objects, first wave first; within a wave in order of file and place.
    pub fn into_waves(self) -> Vec<Wave> {
        let mut waves: BTreeMap<(Stage, i32), Vec<_>> = BTreeMap::new();
        for manifest in self.manifests {
            waves
                .entry((Stage::of(&manifest.kind), manifest.wave))
                .or_default()
                .push(manifest);
        }
        waves
            .into_iter()
            .map(|((stage, wave), manifests)| Wave {
                stage,
                wave,
                manifests,
            })
            .collect()
    }
}

pub(super) fn wave_of(metadata: &Located, file: &Path) -> Result<i32, ManifestError> {
    let annotation = metadata
        .value
        .get("annotations")
        .and_then(|annotations| annotations.value.get(WAVE_ANNOTATION));
    let Some(annotation) = annotation else {
        return Ok(0);
    };
    match &annotation.value {
        Node::String(text) => text.parse().ok(),
        _ => None,
    }
    .ok_or_else(|| {
        invalid(
            annotation,
            file,
            format!("{WAVE_ANNOTATION} must be a quoted integer such as \"-1\""),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Unpinned, load};
    use super::*;

    fn stack(text: &str) -> Stack<Unpinned> {
        Stack {
            directory: "dir".into(),
            manifests: load::parse(text, Path::new("a.yaml")).unwrap(),
        }
    }

    fn object(kind: &str, name: &str, wave: Option<&str>) -> String {
        let annotations = wave.map_or(String::new(), |wave| {
            format!(", annotations: {{{WAVE_ANNOTATION}: {wave}}}")
        });
        format!("---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}{annotations}}}\n")
    }

    #[test]
    fn dependencies_come_first_whatever_the_file_says() {
        let text = [
            object("HorizontalPodAutoscaler", "api", None),
            object("Deployment", "api", None),
            object("StatefulSet", "database", Some("\"-1\"")),
            object("Deployment", "web", None),
            object("Service", "api", None),
            object("Secret", "password", None),
            object("Gadget", "custom", Some("'2'")),
            object("Namespace", "demo", None),
            object("PersistentVolume", "disk", None),
        ]
        .concat();
        let waves: Vec<_> = stack(&text)
            .pinned(|_| false)
            .unwrap()
            .into_waves()
            .iter()
            .map(|wave| {
                let names: Vec<_> = wave.manifests.iter().map(|m| m.name.as_str()).collect();
                format!("{:?} {}: {}", wave.stage, wave.wave, names.join(" "))
            })
            .collect();
        insta::assert_debug_snapshot!(waves, @r#"
        [
            "Foundation 0: demo",
            "Prerequisite 0: password disk",
            "Network 0: api",
            "Workload -1: database",
            "Workload 0: api web",
            "Workload 2: custom",
            "Autoscaler 0: api",
        ]
        "#);
    }

    #[test]
    fn a_wave_that_is_no_quoted_integer_is_refused_with_its_place() {
        for wave in ["1", "first", "\"1.5\"", "~"] {
            let error = load::parse(&object("Pod", "a", Some(wave)), Path::new("a.yaml"))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("a.yaml:4:"), "{error}");
            assert!(error.contains("quoted integer"), "{error}");
        }
    }
}
