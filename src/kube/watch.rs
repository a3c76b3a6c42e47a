//! A live view of the objects that tell how rollouts go: the workloads, their pods, claims and events.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};

use super::diagnose::{self, Events, Symptom};
use super::rollout::{self, Progress, Workload, WorkloadKind};

/// Something changed, or a watch has trouble (it is started again by itself).
type Signal = Result<(), watcher::Error>;

/// What the cluster showed last, namespace by namespace.
pub(super) struct View {
    namespaces: Vec<Namespace>,
}

struct Namespace {
    name: String,
    deployments: Store<Deployment>,
    replica_sets: Store<ReplicaSet>,
    stateful_sets: Store<StatefulSet>,
    daemon_sets: Store<DaemonSet>,
    jobs: Store<Job>,
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
    events: Store<Event>,
}

/// A workload's rollout and its pods' troubles.
pub(super) struct Assessment {
    pub(super) progress: Progress,
    pub(super) symptoms: Vec<Symptom>,
}

/// Starts to watch what these workloads need; the view follows while the stream is polled.
pub(super) fn start(
    client: &kube::Client,
    workloads: &[Workload],
) -> (View, SelectAll<BoxStream<'static, Signal>>) {
    let mut signals = SelectAll::new();
    let names: BTreeSet<&str> = workloads
        .iter()
        .map(|workload| workload.namespace.as_str())
        .collect();
    let namespaces = names
        .into_iter()
        .map(|name| {
            let has = |kind| {
                workloads
                    .iter()
                    .any(|workload| workload.namespace == name && workload.kind == kind)
            };
            Namespace {
                name: name.to_owned(),
                deployments: follow(client, name, has(WorkloadKind::Deployment), &mut signals),
                replica_sets: follow(client, name, has(WorkloadKind::Deployment), &mut signals),
                stateful_sets: follow(client, name, has(WorkloadKind::StatefulSet), &mut signals),
                daemon_sets: follow(client, name, has(WorkloadKind::DaemonSet), &mut signals),
                jobs: follow(client, name, has(WorkloadKind::Job), &mut signals),
                pods: follow(client, name, true, &mut signals),
                claims: follow(client, name, true, &mut signals),
                events: follow(client, name, true, &mut signals),
            }
        })
        .collect();
    (View { namespaces }, signals)
}

/// One watch into a store of its own; an unwanted one stays empty and costs no request.
fn follow<K>(
    client: &kube::Client,
    namespace: &str,
    wanted: bool,
    signals: &mut SelectAll<BoxStream<'static, Signal>>,
) -> Store<K>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    if wanted {
        let api: Api<K> = Api::namespaced(client.clone(), namespace);
        signals.push(changes(watcher(api, watcher::Config::default()), writer).boxed());
    }
    store
}

fn changes<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
    writer: reflector::store::Writer<K>,
) -> impl Stream<Item = Signal> + Send
where
    K: kube::Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    events.default_backoff().reflect(writer).map_ok(|_| ())
}

fn named<K: kube::Resource<DynamicType = ()> + Clone>(
    store: &Store<K>,
    name: &str,
) -> Option<Arc<K>> {
    store.find(|object| object.meta().name.as_deref() == Some(name))
}

fn owned_by(metadata: &ObjectMeta, uid: &str) -> bool {
    metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.uid == uid)
}

const REVISION: &str = "deployment.kubernetes.io/revision";

impl View {
    pub(super) fn assess(&self, workload: &Workload) -> Assessment {
        let namespace = self
            .namespaces
            .iter()
            .find(|namespace| namespace.name == workload.namespace);
        namespace.map_or(
            Assessment {
                progress: rollout::unseen(),
                symptoms: Vec::new(),
            },
            |namespace| namespace.assess(workload),
        )
    }
}

impl Namespace {
    fn assess(&self, workload: &Workload) -> Assessment {
        let name = workload.name.as_str();
        let (progress, metadata) = match workload.kind {
            WorkloadKind::Deployment => judge(&self.deployments, name, rollout::deployment),
            WorkloadKind::StatefulSet => judge(&self.stateful_sets, name, rollout::stateful_set),
            WorkloadKind::DaemonSet => judge(&self.daemon_sets, name, rollout::daemon_set),
            WorkloadKind::Job => judge(&self.jobs, name, rollout::job),
        };
        let symptoms = match metadata {
            Some(metadata) if progress != Progress::Ready => self.symptoms(workload, &metadata),
            _ => Vec::new(),
        };
        Assessment { progress, symptoms }
    }

    fn symptoms(&self, workload: &Workload, metadata: &ObjectMeta) -> Vec<Symptom> {
        let mut owners: Vec<String> = metadata.uid.iter().cloned().collect();
        if workload.kind == WorkloadKind::Deployment {
            owners = self.newest_replica_set(metadata).into_iter().collect();
        }
        let events = self.events.state();
        let events = Events::collect(events.iter().map(AsRef::as_ref));
        let pods = self
            .pods
            .state_filter(|pod| owners.iter().any(|uid| owned_by(&pod.metadata, uid)));
        let claims = self.claims.state();
        let outdated = self.outdated_pods(workload);
        let mut symptoms: Vec<_> = pods
            .iter()
            .filter(|pod| !(outdated.replaced && outdated.holds(pod)))
            .filter_map(|pod| {
                let mut symptom = diagnose::pod(pod, &claims_of(pod, &claims), &events)?;
                if outdated.holds(pod) {
                    symptom.message.push_str(
                        "\nthis pod is of the previous revision, and an ordered StatefulSet does not replace a broken \
                         pod by itself: delete it to let the new one start",
                    );
                }
                Some(symptom)
            })
            .collect();
        if symptoms.is_empty() && pods.is_empty() {
            symptoms.extend(diagnose::creation(&owners, &workload.name, &events));
        }
        symptoms.sort_by(|one, other| (one.cause, &one.pod).cmp(&(other.cause, &other.pod)));
        symptoms
    }

    /// Pods of older ReplicaSets are on their way out; their troubles are not this rollout's.
    fn newest_replica_set(&self, deployment: &ObjectMeta) -> Option<String> {
        let uid = deployment.uid.as_deref()?;
        let revision = deployment.annotations.as_ref()?.get(REVISION)?;
        let newest = self.replica_sets.find(|set| {
            owned_by(&set.metadata, uid)
                && set
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|annotations| annotations.get(REVISION))
                    == Some(revision)
        })?;
        newest.metadata.uid.clone()
    }

    fn outdated_pods(&self, workload: &Workload) -> Outdated {
        if workload.kind != WorkloadKind::StatefulSet {
            return Outdated::default();
        }
        named(&self.stateful_sets, &workload.name).map_or_else(Outdated::default, |set| {
            let policy = set
                .spec
                .as_ref()
                .and_then(|spec| spec.pod_management_policy.as_deref());
            Outdated {
                newest: set
                    .status
                    .as_ref()
                    .and_then(|status| status.update_revision.clone()),
                replaced: policy == Some("Parallel"),
            }
        })
    }
}

/// Tells a StatefulSet's pods of earlier revisions from those of the newest.
#[derive(Default)]
struct Outdated {
    newest: Option<String>,
    /// Whether the controller replaces them even while they are broken, which it does unless it keeps
    /// the pods' order (kubernetes/kubernetes#67250).
    replaced: bool,
}

impl Outdated {
    fn holds(&self, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        let revision = labels.and_then(|labels| labels.get("controller-revision-hash"));
        revision.is_some() && self.newest.is_some() && revision != self.newest.as_ref()
    }
}

fn judge<K>(
    store: &Store<K>,
    name: &str,
    rule: fn(&K) -> Progress,
) -> (Progress, Option<ObjectMeta>)
where
    K: kube::Resource<DynamicType = ()> + Clone,
{
    match named(store, name) {
        Some(object) => (rule(&object), Some(object.meta().clone())),
        None if store.wait_until_ready().now_or_never().is_none() => (Progress::Unknown, None),
        None => (rollout::unseen(), None),
    }
}

fn claims_of<'a>(
    pod: &Pod,
    claims: &'a [Arc<PersistentVolumeClaim>],
) -> Vec<&'a PersistentVolumeClaim> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    let names: Vec<_> = volumes
        .filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
        .collect();
    claims
        .iter()
        .map(AsRef::as_ref)
        .filter(|claim| {
            claim
                .metadata
                .name
                .as_deref()
                .is_some_and(|name| names.contains(&name))
        })
        .collect()
}
