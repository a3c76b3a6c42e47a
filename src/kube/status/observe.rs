//! Kubernetes objects to status rows. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricSpec};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::rollout::{self, Progress, Workload, WorkloadKind};
use super::{
    AutoscalerStatus, EndpointStatus, ImageStatus, ImageVerdict, NodeStatus, Pin, PortStatus,
    STAND_IN_LABEL, WorkloadStatus,
};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

fn name(metadata: &ObjectMeta) -> String {
    metadata.name.clone().unwrap_or_default()
}

fn namespace(metadata: &ObjectMeta) -> String {
    metadata.namespace.clone().unwrap_or_default()
}

pub(super) fn node(node: &Node) -> NodeStatus {
    let status = node.status.clone().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let addresses = status.addresses.unwrap_or_default();
    NodeStatus {
        name: name(&node.metadata),
        roles: labels
            .keys()
            .filter_map(|label| label.strip_prefix(ROLE_PREFIX))
            .map(str::to_owned)
            .collect(),
        ready: status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        schedulable: !node
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or_default(),
        version: status
            .node_info
            .map(|info| info.kubelet_version)
            .unwrap_or_default(),
        address: addresses
            .into_iter()
            .find(|address| address.type_ == "InternalIP")
            .map(|address| address.address),
        stand_in: labels
            .get(STAND_IN_LABEL)
            .is_some_and(|value| value == "true"),
    }
}

fn workload(
    kind: WorkloadKind,
    metadata: &ObjectMeta,
    ready: i32,
    desired: i32,
    progress: Progress,
) -> WorkloadStatus {
    WorkloadStatus {
        workload: Workload::new(kind, &namespace(metadata), &name(metadata)),
        ready,
        desired,
        waiting: match progress {
            Progress::Ready | Progress::Unknown => None,
            Progress::Waiting { observed, .. } => Some(observed),
            Progress::Failed { reason } => Some(reason),
        },
    }
}

pub(super) fn deployment(object: &Deployment) -> WorkloadStatus {
    let ready = object
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas);
    let desired = object.spec.as_ref().and_then(|spec| spec.replicas);
    workload(
        WorkloadKind::Deployment,
        &object.metadata,
        ready.unwrap_or_default(),
        desired.unwrap_or(1),
        rollout::deployment(object),
    )
}

pub(super) fn stateful_set(object: &StatefulSet) -> WorkloadStatus {
    let ready = object
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas);
    let desired = object.spec.as_ref().and_then(|spec| spec.replicas);
    workload(
        WorkloadKind::StatefulSet,
        &object.metadata,
        ready.unwrap_or_default(),
        desired.unwrap_or(1),
        rollout::stateful_set(object),
    )
}

pub(super) fn daemon_set(object: &DaemonSet) -> WorkloadStatus {
    let status = object.status.clone().unwrap_or_default();
    workload(
        WorkloadKind::DaemonSet,
        &object.metadata,
        status.number_ready,
        status.desired_number_scheduled,
        rollout::daemon_set(object),
    )
}

pub(super) fn autoscaler(object: &HorizontalPodAutoscaler) -> AutoscalerStatus {
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    let aim = |metric: &MetricSpec| {
        let resource = metric
            .resource
            .as_ref()
            .filter(|resource| resource.name == "cpu")?;
        resource.target.average_utilization
    };
    let current = status.current_metrics.iter().flatten().find_map(|metric| {
        let resource = metric
            .resource
            .as_ref()
            .filter(|resource| resource.name == "cpu")?;
        resource.current.average_utilization
    });
    AutoscalerStatus {
        namespace: namespace(&object.metadata),
        name: name(&object.metadata),
        scales: format!(
            "{} {}",
            spec.scale_target_ref.kind, spec.scale_target_ref.name
        ),
        cpu: current,
        target: spec.metrics.iter().flatten().find_map(aim),
        replicas: status.current_replicas.unwrap_or_default(),
        minimum: spec.min_replicas.unwrap_or(1),
        maximum: spec.max_replicas,
    }
}

pub(super) fn endpoint(service: &Service, slices: &[EndpointSlice]) -> EndpointStatus {
    let spec = service.spec.clone().unwrap_or_default();
    let own = name(&service.metadata);
    let is_of_service = |slice: &&EndpointSlice| {
        let labels = slice.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get("kubernetes.io/service-name")) == Some(&own)
    };
    // A pod stands in one slice per address family.
    let ready: BTreeSet<_> = slices
        .iter()
        .filter(is_of_service)
        .flat_map(|slice| slice.endpoints.iter())
        .filter(|endpoint| {
            endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready)
                != Some(false)
        })
        .map(|endpoint| match &endpoint.target_ref {
            Some(target) => target.uid.clone().or_else(|| target.name.clone()),
            None => endpoint.addresses.first().cloned(),
        })
        .collect();
    EndpointStatus {
        namespace: namespace(&service.metadata),
        kind: spec.type_.unwrap_or_else(|| "ClusterIP".to_owned()),
        address: spec
            .cluster_ip
            .filter(|address| address != "None" && !address.is_empty()),
        ports: spec
            .ports
            .iter()
            .flatten()
            .map(|port| PortStatus {
                port: port.port,
                node: port.node_port,
            })
            .collect(),
        ready: ready.len(),
        service: own,
    }
}

/// `sha256:...` of a reference that ends in a digest.
fn digest(reference: &str) -> Option<String> {
    let (_, digest) = reference.rsplit_once('@')?;
    digest.starts_with("sha256:").then(|| digest.to_owned())
}

/// Whether the pod belongs to the workload: a Deployment's pods belong to one of its ReplicaSets, which
/// is named after it with the template's hash.
fn belongs(pod: &Pod, workload: &Workload) -> bool {
    let owners = pod.metadata.owner_references.iter().flatten();
    let hash = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("pod-template-hash"));
    owners.into_iter().any(|owner| match (workload.kind, hash) {
        (WorkloadKind::Deployment, Some(hash)) => {
            owner.kind == "ReplicaSet" && owner.name == format!("{}-{hash}", workload.name)
        }
        (kind, _) => WorkloadKind::parse(&owner.kind) == Some(kind) && owner.name == workload.name,
    })
}

pub(super) fn image(pin: &Pin, pods: &[Pod]) -> ImageStatus {
    let statuses = pods
        .iter()
        .filter(|pod| belongs(pod, &pin.workload))
        .flat_map(|pod| {
            let status = pod.status.as_ref();
            let containers = status.into_iter().flat_map(|status| {
                status
                    .init_container_statuses
                    .iter()
                    .chain(&status.container_statuses)
                    .flatten()
            });
            containers.filter(|container| {
                container.name == pin.container && !container.image_id.is_empty()
            })
        });
    let identities: Vec<_> = statuses
        .map(|container| digest(&container.image_id))
        .collect();
    let running: BTreeSet<String> = identities.iter().flatten().cloned().collect();
    let pinned = digest(&pin.image);
    let verdict = if identities.is_empty() {
        ImageVerdict::NotRunning
    } else if pinned.is_none() {
        ImageVerdict::Unpinned
    } else if running
        .iter()
        .any(|running| Some(running) != pinned.as_ref())
    {
        ImageVerdict::Differs
    } else if identities.contains(&None) {
        ImageVerdict::Unknown
    } else {
        ImageVerdict::Matches
    };
    ImageStatus {
        workload: pin.workload.clone(),
        container: pin.container.clone(),
        pinned,
        running: running.into_iter().collect(),
        verdict,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_node_shows_role_state_and_stand_in() {
        let status = node(&from(json!({
            "metadata": {"name": "master", "labels": {
                "node-role.kubernetes.io/control-plane": "true", "node-role.kubernetes.io/master": "true",
                "orch.dev/k3s-standin": "true"}},
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": "master"}, {"type": "InternalIP", "address": "192.168.56.10"}],
                "nodeInfo": {"kubeletVersion": "v1.34.2", "architecture": "", "bootID": "", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                    "systemUUID": ""},
            },
        })));
        assert_eq!(status.roles, ["control-plane", "master"]);
        assert!(status.ready && status.stand_in && !status.schedulable);
        assert_eq!(status.address.as_deref(), Some("192.168.56.10"));
    }

    #[test]
    fn an_autoscaler_shows_cpu_against_its_target() {
        let status = autoscaler(&from(json!({
            "metadata": {"name": "api", "namespace": "demo"},
            "spec": {"minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "api"},
                "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 60}}}]},
            "status": {"currentReplicas": 2, "desiredReplicas": 3, "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 84, "averageValue": "84m"}}}]},
        })));
        assert_eq!(
            (status.cpu, status.target, status.replicas, status.maximum),
            (Some(84), Some(60), 2, 3)
        );
    }

    #[test]
    fn only_ready_addresses_of_the_service_count() {
        let service: Service = from(json!({
            "metadata": {"name": "api", "namespace": "demo"},
            "spec": {"type": "NodePort", "clusterIP": "10.43.0.7", "ports": [{"port": 3000, "nodePort": 30000}]},
        }));
        let slice = |name: &str, service: &str, uid: &str, ready: bool| -> EndpointSlice {
            from(json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.42.0.9"], "conditions": {"ready": ready},
                    "targetRef": {"kind": "Pod", "uid": uid}}],
            }))
        };
        let slices = [
            slice("a", "api", "1", true),
            slice("b", "api", "1", true),
            slice("c", "api", "2", false),
            slice("d", "other", "3", true),
        ];
        let status = endpoint(&service, &slices);
        assert_eq!(status.ready, 1);
        assert_eq!(
            status.ports,
            [PortStatus {
                port: 3000,
                node: Some(30000)
            }]
        );
    }

    fn pod(image_id: &str) -> Pod {
        from(json!({
            "metadata": {"name": "api-7d4b9c-x", "namespace": "demo", "labels": {"pod-template-hash": "7d4b9c"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api-7d4b9c", "uid": "1"}]},
            "status": {"containerStatuses": [{"name": "main", "image": "x", "imageID": image_id,
                "ready": true, "restartCount": 0}]},
        }))
    }

    #[test]
    fn running_digests_are_compared_with_the_pin() {
        let pin = Pin {
            workload: Workload::new(WorkloadKind::Deployment, "demo", "api"),
            container: "main".into(),
            image: "docker.io/orch/api:in-1@sha256:aa".into(),
        };
        let verdict = |pods: &[Pod]| image(&pin, pods).verdict;
        assert_eq!(
            verdict(&[pod("docker.io/orch/api@sha256:aa")]),
            ImageVerdict::Matches
        );
        assert_eq!(
            verdict(&[
                pod("docker.io/orch/api@sha256:aa"),
                pod("docker.io/orch/api@sha256:bb")
            ]),
            ImageVerdict::Differs
        );
        assert_eq!(verdict(&[pod("sha256:cc")]), ImageVerdict::Unknown);
        assert_eq!(verdict(&[pod("")]), ImageVerdict::NotRunning);
        let kept = Pin {
            image: "redis:7".into(),
            ..pin.clone()
        };
        assert_eq!(
            image(&kept, &[pod("docker.io/library/redis@sha256:aa")]).verdict,
            ImageVerdict::Unpinned
        );
        let other = Pin {
            workload: Workload::new(WorkloadKind::Deployment, "demo", "api-7d4b9c"),
            ..pin.clone()
        };
        assert_eq!(
            image(&other, &[pod("x@sha256:aa")]).verdict,
            ImageVerdict::NotRunning
        );
    }
}
