//! The machines' side of `create`, and what Vagrant's provisioner asks of the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orch_contract::{ClusterKeys, NodeName, Secret, StorageKind};

use super::{Context, doctor, manifests, publish};
use crate::artifacts::{self, Artifacts, Source};
use crate::config::{Config, K3sSource, Role, Share};
use crate::exit::{Exit, WithExit as _};
use crate::images::event::Reporter;
use crate::images::lock::Lock;
use crate::machines::docker::WantedContainer;
use crate::machines::{self, MachineEvent, Prepared, Provider, WantedNode};

pub(super) use crate::machines::PreparedFile;
use crate::progress::Progress;
use crate::ui::{Step, describe_node_event};

/// K3s's release assets, or the stand-in's.
pub(super) async fn acquire_artifacts(
    context: &Context,
    provider: Provider,
    progress: &dyn Progress,
) -> anyhow::Result<Artifacts> {
    let k3s = &context.config.k3s;
    let directory = k3s.directory.as_ref().map(|path| context.path(path));
    let standin = context.path("ci/k3s-standin".as_ref());
    let lock = publish::lock_file(context);
    let locked = locked_sums(&lock, &k3s.version.value)?;
    let request = artifacts::Request {
        version: &k3s.version.value,
        policy: match k3s.source {
            K3sSource::Auto | K3sSource::Directory => artifacts::Policy::Any,
            K3sSource::Release => artifacts::Policy::Release,
            K3sSource::Standin => artifacts::Policy::Standin,
        },
        directory: directory
            .as_deref()
            .filter(|_| k3s.source == K3sSource::Directory),
        release_url: &k3s.release_url,
        cache: context.project.cache(),
        standin: &standin,
        standin_runs: cfg!(target_arch = "x86_64")
            && (provider == Provider::Docker || k3s.source == K3sSource::Standin),
        locked: &locked,
    };
    let artifacts = artifacts::acquire(&request, progress)
        .await
        .exit(Exit::Machine, "getting K3s")?;
    if locked.is_empty() && matches!(artifacts.source, Source::Release | Source::Cache) {
        lock_sums(&lock, &k3s.version.value, &artifacts.sha256)?;
    }
    Ok(artifacts)
}

/// Where the server node's API listens.
const API_PORT: u16 = orch_contract::DEFAULT_API_PORT;

/// The key of `images.lock` under which K3s's checksums are kept: version, asset, sum.
const LOCK_KEY: &str = "k3s";

/// The sums that the first use of this version locked.
fn locked_sums(lock: &Path, version: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let lock = Lock::read(lock).exit(Exit::Input, "reading the lock")?;
    let sums = lock.other.get(LOCK_KEY).and_then(|k3s| k3s.get(version));
    sums.map_or_else(
        || Ok(BTreeMap::new()),
        |sums| {
            serde_json::from_value(sums.clone())
                .exit(Exit::Input, "reading K3s's checksums in the lock")
        },
    )
}

fn lock_sums(path: &Path, version: &str, sums: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut lock = Lock::read(path).exit(Exit::Input, "reading the lock")?;
    let mut versions: BTreeMap<String, serde_json::Value> = lock
        .other
        .remove(LOCK_KEY)
        .map_or_else(|| Ok(BTreeMap::new()), serde_json::from_value)?;
    versions.insert(version.to_owned(), serde_json::to_value(sums)?);
    lock.other
        .insert(LOCK_KEY.to_owned(), serde_json::to_value(versions)?);
    lock.write(path)
        .map(|_| ())
        .exit(Exit::Host, "locking K3s's checksums")
}

/// Where nodes find what docker.io would give them, when a registry stands in for it.
fn mirror(context: &Context, provider: Provider) -> anyhow::Result<Option<String>> {
    if !publish::uses_local_registry(context)? {
        return Ok(None);
    }
    let config = &context.config;
    Ok(match provider {
        Provider::Docker => config
            .registry_address()
            .map(|address| format!("http://{address}:5000")),
        // Virtual machines reach the host's own end of their network.
        Provider::Virtualbox | Provider::Libvirt => config
            .gateway()
            .map(|address| format!("http://{address}:{}", config.ports.registry)),
        Provider::Ssh => Some(ssh_mirror(config)?),
    })
}

/// Hosts elsewhere cannot reach the registry that stands in for Docker Hub on this computer, unless somebody says how.
fn ssh_mirror(config: &Config) -> anyhow::Result<String> {
    let mirror = config.registry.mirror.clone();
    mirror.ok_or_else(|| anyhow::anyhow!("no credentials for Docker Hub, and the registry that stands in for it listens on this computer only"))
        .exit(Exit::Input, "the hosts have nowhere to pull images from; log in to Docker Hub, or say in registry.mirror where they reach that registry")
}

/// What every node's K3s is told.
fn k3s(context: &Context, provider: Provider) -> anyhow::Result<orch_contract::K3s> {
    let k3s = &context.config.k3s;
    let environment = k3s.environment.iter().map(|(name, value)| {
        let value = match value.strip_prefix('$') {
            None => value.clone(),
            Some(variable) => std::env::var(variable).exit(
                Exit::Input,
                format!("k3s.environment.{name} is to be this computer's ${variable}"),
            )?,
        };
        Ok((name.clone(), Secret::new(value)))
    });
    Ok(orch_contract::K3s {
        version: k3s.version.value.clone(),
        config: k3s.config.clone(),
        allow_unknown_config: k3s.allow_unknown_config,
        tls_sans: [api_names(context, provider), k3s.tls_sans.clone()].concat(),
        disable: k3s.disable.clone(),
        kubelet_args: k3s.kubelet_args.clone(),
        environment: environment.collect::<anyhow::Result<_>>()?,
    })
}

/// Names and addresses of the API server beside the node's own.
fn api_names(context: &Context, provider: Provider) -> Vec<String> {
    match provider {
        Provider::Ssh => context.config.k3s.endpoint.iter().cloned().collect(),
        // This computer reaches the API through a port of its own.
        _ => vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
    }
}

fn storage(config: &Config, provider: Provider) -> StorageKind {
    match (config.storage.share, provider) {
        _ if config.storage.class.is_some() => StorageKind::None,
        (Some(Share::Nfs), _) => StorageKind::Nfs,
        (Some(Share::Mounted), _) | (None, Provider::Docker) => StorageKind::Bind,
        (Some(Share::None), _) => StorageKind::None,
        (None, _) => StorageKind::Nfs,
    }
}

/// The provisioner, built from the same sources: the one that `Scripts/orch` names, else the one beside orch.
fn provisioner() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("ORCH_PROVISIONER") {
        return Ok(path.into());
    }
    let orch = std::env::current_exe()?;
    Ok(orch.with_file_name("orch-provision"))
}

/// [`prepare`] as a step of its own.
pub(super) async fn prepare_step(context: &Context, artifacts: &Artifacts) -> anyhow::Result<()> {
    let step = context.ui.step("prepare");
    prepare(context, context.provider(), artifacts, &step).await?;
    step.done("keys, node folders and network are ready");
    Ok(())
}

/// Has Vagrant make, start and provision every machine.
pub(super) async fn up(context: &Context) -> anyhow::Result<()> {
    let step = context.ui.step("machines");
    context
        .vagrant()
        .up(|event| relay(&step, event))
        .await
        .exit(Exit::Machine, "bringing the machines up")?;
    step.done(&format!("{} nodes provisioned", context.config.nodes.len()));
    Ok(())
}

/// Removes a machine that Vagrant made.
pub(super) async fn destroy_one(context: &Context, name: &str, step: &Step) -> anyhow::Result<()> {
    context
        .vagrant()
        .destroy_one(name, |event| relay(step, event))
        .await
        .exit(Exit::Machine, format!("destroying the machine {name}"))?;
    if context.provider() == Provider::Docker {
        let removed = context.resources().remove_node_state(name).await;
        removed.exit(Exit::Machine, format!("destroying the machine {name}"))?;
    }
    Ok(())
}

/// Forgets what was kept for a node: its folder, its key, how it is reached.
pub(super) fn forget(context: &Context, name: &str) -> anyhow::Result<()> {
    let state = context.project.state();
    let keys = ClusterKeys::new(state.join("keys"));
    let mut paths = vec![
        state.join("nodes").join(name),
        context.project.reached().join(name),
        context
            .project
            .reached()
            .join(format!("{name}.known_hosts")),
    ];
    if let Ok(node) = name.parse::<NodeName>() {
        paths.extend([keys.client_key(&node), keys.client_public_key(&node)]);
    }
    for path in paths {
        remove(&path)?;
    }
    Ok(())
}

/// Removes a file or a folder with all in it; none is fine.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.exit(Exit::Machine, format!("removing {}", path.display()))
}

/// Keys and one folder a node.
pub(super) async fn prepare_folders(
    context: &Context,
    provider: Provider,
    artifacts: &Artifacts,
) -> anyhow::Result<Prepared> {
    let state = context.project.state();
    let request = request(context, provider, artifacts, &state)?;
    machines::prepare(&request)
        .await
        .exit(Exit::Machine, "preparing the machines")
}

/// The same below `folder`, for a plan.
pub(super) fn sketch_folders(
    context: &Context,
    provider: Provider,
    artifacts: &Artifacts,
    folder: &Path,
) -> anyhow::Result<Prepared> {
    let state = context.project.state();
    let request = request(context, provider, artifacts, &state)?;
    machines::sketch(&request, folder).exit(Exit::Machine, "preparing the plan")
}

fn request<'a>(
    context: &'a Context,
    provider: Provider,
    artifacts: &Artifacts,
    state: &'a Path,
) -> anyhow::Result<machines::Request<'a>> {
    let config = &context.config;
    let server = config.server().map(|node| node.address.value);
    let Some(server) = server else {
        anyhow::bail!("orch.yaml has no server");
    };
    Ok(machines::Request {
        cluster: context.cluster(),
        provider,
        nodes: config
            .nodes
            .iter()
            .map(|node| WantedNode {
                name: node.name.value.clone(),
                role: match node.role {
                    Role::Server => orch_contract::Role::Server,
                    Role::Agent => orch_contract::Role::Agent,
                },
                address: node.address.value,
                labels: node.labels.clone(),
                taints: node.taints.clone(),
            })
            .collect(),
        server,
        k3s: k3s(context, provider)?,
        artifacts: artifacts
            .files()
            .into_iter()
            .map(|path| {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                let sum = artifacts.sha256.get(&name).cloned();
                let sum = sum.map_or_else(|| artifacts::sha256_of(&path), Ok)?;
                Ok((path, sum))
            })
            .collect::<Result<_, artifacts::ArtifactError>>()
            .exit(Exit::Machine, "hashing K3s's assets")?,
        sha256: artifacts.sha256.clone(),
        mirror: mirror(context, provider)?,
        volumes: if config.storage.class.is_some() {
            Vec::new()
        } else {
            manifests::volume_directories(context)?
        },
        storage: storage(config, provider),
        storage_clients: match config.subnet() {
            Some(subnet) => vec![subnet.into()],
            None => config
                .nodes
                .iter()
                .map(|node| node.address.value.into())
                .collect(),
        },
        state,
        provisioner: provisioner()?,
    })
}

/// Keys, folders, node image, network: all that `vagrant up` needs.
pub(super) async fn prepare(
    context: &Context,
    provider: Provider,
    artifacts: &Artifacts,
    step: &Arc<Step>,
) -> anyhow::Result<Prepared> {
    let config = &context.config;
    let prepared = prepare_folders(context, provider, artifacts).await?;
    if let (Provider::Docker, Some(subnet)) = (provider, config.subnet()) {
        publish::node_image(context, Arc::clone(step) as Arc<dyn Reporter>).await?;
        let resources = context.resources();
        clear_strays(context, step).await?;
        let names: Vec<_> = config
            .nodes
            .iter()
            .map(|node| node.name.value.as_str())
            .collect();
        let gateway = config
            .gateway()
            .map(|address| address.to_string())
            .unwrap_or_default();
        resources
            .ensure(&subnet.to_string(), &gateway, &names)
            .await
            .exit(Exit::Machine, "making the cluster's network")?;
    }
    Ok(prepared)
}

/// Removes what a killed run left of this project's machines.
pub(super) async fn clear_strays(context: &Context, step: &Step) -> anyhow::Result<()> {
    let known = context.vagrant().docker_ids();
    let removed = context
        .resources()
        .remove_strays(&known)
        .await
        .exit(Exit::Machine, "clearing what an earlier run left")?;
    for node in removed {
        step.say(&format!(
            "removed the container of {node} that an earlier run left"
        ));
    }
    Ok(())
}

/// Whether the machines that exist are those that orch.yaml describes, as far as nothing can change them afterwards.
pub(super) async fn check_made_as(context: &Context) -> anyhow::Result<()> {
    let config = &context.config;
    let Some(subnet) = config.subnet() else {
        return Ok(());
    };
    let forwards = config.ports.forward.iter();
    let ports: BTreeMap<u16, u16> = forwards
        .map(|forward| (forward.node, forward.host))
        .chain([(API_PORT, config.ports.api)])
        .collect();
    let nodes: Vec<_> = config
        .nodes
        .iter()
        .map(|node| WantedContainer {
            name: node.name.value.clone(),
            address: node.address.value.to_string(),
            ports: match node.role {
                Role::Server => ports.clone(),
                Role::Agent => BTreeMap::new(),
            },
        })
        .collect();
    context
        .resources()
        .check_made_as(&subnet.to_string(), &nodes)
        .await
        .exit(Exit::Input, "the cluster cannot become what orch.yaml says")
}

/// `orch machines prepare`: called by the Vagrantfile, on a host that nobody may have looked at yet.
pub(super) async fn prepare_for_vagrant(
    context: &Context,
    provider: Provider,
) -> anyhow::Result<()> {
    let ui = &context.ui;
    let step = ui.step("prepare");
    if std::env::var_os("ORCH_EVENTS").is_none_or(|value| value != "1") {
        doctor::preflight(context).await?;
    }
    let artifacts = acquire_artifacts(context, provider, step.as_ref()).await?;
    let prepared = prepare(context, provider, &artifacts, &step).await?;
    step.done("the machines can be made");
    ui.result_json(&prepared);
    Ok(())
}

/// `orch machines clean`: after the last machine is gone, its network and volumes go too.
pub(super) async fn clean(context: &Context) -> anyhow::Result<()> {
    let resources = context.resources();
    let has_containers = resources
        .has_nodes()
        .await
        .exit(Exit::Machine, "looking for machines")?;
    if has_containers || context.vagrant().has_machines() {
        return Ok(());
    }
    resources
        .remove_all()
        .await
        .exit(Exit::Machine, "removing the cluster's network and volumes")
}

/// Shows what Vagrant and the nodes report.
pub(super) fn relay(step: &Step, event: MachineEvent) {
    match event {
        MachineEvent::Line(line) => step.note(&line),
        MachineEvent::Node(event) => {
            if let Some(text) = describe_node_event(&event) {
                step.say(&text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_locked_for_their_version_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.lock");
        let sums = BTreeMap::from([("k3s".to_owned(), "ab".repeat(32))]);
        assert!(locked_sums(&path, "v1+k3s1").unwrap().is_empty());
        lock_sums(&path, "v1+k3s1", &sums).unwrap();
        lock_sums(&path, "v2+k3s1", &BTreeMap::new()).unwrap();
        assert_eq!(locked_sums(&path, "v1+k3s1").unwrap(), sums);
        assert!(Lock::read(&path).unwrap().components.is_empty());
    }
}
