//! The machines' side of `create`, and what Vagrant's provisioner asks of the host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orch_contract::{ClusterKeys, NodeName, Secret, StorageKind};
use tempfile::TempDir;

use super::{Context, artifacts, bundle, bundled, doctor, manifests, publish};
use crate::artifacts::{self as release, Artifacts};
use crate::config::{self, Config, Share};
use crate::exit::{Exit, WithExit as _};
use crate::images::event::Reporter;
use crate::machines::docker::WantedContainer;
use crate::machines::{self, MachineEvent, Prepared, PreparedFile, Provider, WantedNode};

use crate::nodes::{Delivery, SharedFile};
use crate::progress::Progress as _;
use crate::ui::{Step, describe_node_event};

/// Where the server node's API listens.
const API_PORT: u16 = orch_contract::DEFAULT_API_PORT;

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
        etcd: context.config.uses_etcd(),
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
        Provider::Ssh => {
            let endpoint = context.config.k3s.endpoint.iter();
            endpoint.map(|endpoint| endpoint.value.clone()).collect()
        }
        // This computer reaches the API through a port of its own.
        _ => vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
    }
}

pub(super) fn storage(config: &Config, provider: Provider) -> StorageKind {
    match (config.storage.share, provider) {
        _ if config.storage.class.is_some() => StorageKind::None,
        (Some(Share::Nfs), _) => StorageKind::Nfs,
        (Some(Share::Mounted), _) | (None, Provider::Docker) => StorageKind::Bind,
        (Some(Share::None), _) => StorageKind::None,
        (None, _) => StorageKind::Nfs,
    }
}

/// The provisioner that nodes are given.
fn provisioner(context: &Context) -> anyhow::Result<PathBuf> {
    match bundled::find(context)? {
        Some(unpacked) => bundle::coded(
            bundled::provisioner(&unpacked),
            "checking the provisioner of the bundle",
        ),
        None => built_provisioner(),
    }
}

/// The provisioner, built from the same sources: the one that `Scripts/orch` names, else the one beside orch.
pub(super) fn built_provisioner() -> anyhow::Result<PathBuf> {
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

/// Has Vagrant make, start and provision these machines; every one where none is named.
pub(super) async fn up(context: &Context, names: &[String]) -> anyhow::Result<()> {
    let step = context.ui.step("machines");
    let bringing = "bringing the machines up";
    let vagrant = context.vagrant();
    // One stopped server never gets ready by itself: where Vagrant starts one machine after the other, all have to run
    // before the first is waited for.
    if context.config.servers().count() > 1 && context.project.kubeconfig().exists() {
        let booted = vagrant.boot(names, |event| relay(&step, event)).await;
        booted.exit(Exit::Machine, bringing)?;
    }
    vagrant
        .up(names, |event| relay(&step, event))
        .await
        .exit(Exit::Machine, bringing)?;
    let count = match names.len() {
        0 => context.config.nodes.len(),
        some => some,
    };
    step.done(&format!("{count} nodes provisioned"));
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

/// The same in a folder of its own, which goes when it is dropped: for a plan.
pub(super) fn sketch_folders(
    context: &Context,
    artifacts: &Artifacts,
) -> anyhow::Result<(TempDir, Prepared)> {
    let state = context.project.state();
    let request = request(context, context.provider(), artifacts, &state)?;
    let preparing = "preparing the plan";
    let mut folder = tempfile::Builder::new();
    folder.prefix("plan-");
    // Beside the keys that it gets copies of, as private as they are. Without any it has only new ones, for nobody.
    let folder = if state.exists() {
        folder.tempdir_in(&state)
    } else {
        folder.tempdir()
    };
    let folder = folder.exit(Exit::Host, preparing)?;
    let prepared = machines::sketch(&request, folder.path()).exit(Exit::Machine, preparing)?;
    Ok((folder, prepared))
}

/// New keys of the cluster in the folders of these nodes, which are all that may join from now on.
pub(super) fn renew_keys(context: &Context, nodes: &[&config::Node]) -> anyhow::Result<()> {
    let named = nodes
        .iter()
        .map(|node| (node.name.value.as_str(), node.role.into()));
    machines::renew_keys(&context.project.state(), named)
        .exit(Exit::Machine, "preparing the join service's keys")
}

/// What a node gets.
pub(super) fn delivery(prepared: &Prepared) -> Delivery {
    Delivery {
        provisioner: shared(&prepared.provisioner),
        artifacts: if prepared.artifacts_mounted {
            Vec::new()
        } else {
            prepared.artifacts.iter().map(shared).collect()
        },
    }
}

/// What a node gets that is only to be freed of K3s.
pub(super) fn delivery_for_reset(context: &Context) -> anyhow::Result<Delivery> {
    let program = machines::provisioner(&provisioner(context)?);
    let program = program.exit(Exit::Machine, "looking for the provisioner")?;
    Ok(Delivery {
        provisioner: shared(&program),
        artifacts: Vec::new(),
    })
}

fn shared(file: &PreparedFile) -> SharedFile {
    SharedFile {
        path: file.path.clone(),
        sha256: file.sha256.clone(),
    }
}

fn request<'a>(
    context: &'a Context,
    provider: Provider,
    artifacts: &Artifacts,
    state: &'a Path,
) -> anyhow::Result<machines::Request<'a>> {
    let config = &context.config;
    Ok(machines::Request {
        cluster: context.cluster(),
        provider,
        nodes: config
            .nodes
            .iter()
            .map(|node| WantedNode {
                name: node.name.value.clone(),
                role: node.role.into(),
                address: node.address.value,
                labels: node.labels.clone(),
                taints: node.taints.clone(),
            })
            .collect(),
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
                let sum = sum.map_or_else(|| release::sha256_of(&path), Ok)?;
                Ok((path, sum))
            })
            .chain(artifacts.archives.iter().cloned().map(Ok))
            .collect::<Result<_, release::ArtifactError>>()
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
        images: artifacts.archive_sums(),
        download: !bundled::is(context)?,
        provisioner: provisioner(context)?,
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
            ports: match context.config.server() {
                Some(first) if first.name.value == node.name.value => ports.clone(),
                _ => BTreeMap::new(),
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
    let artifacts = artifacts::acquire(context, provider, step.as_ref()).await?;
    let prepared = prepare(context, provider, &artifacts, &step).await?;
    step.done("the machines can be made");
    ui.result_json(&prepared);
    Ok(())
}

/// `orch machines clean`: after the last machine is gone, its network, volumes and kubeconfig go too.
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
        .exit(Exit::Machine, "removing the cluster's network and volumes")?;
    // It leads nowhere, and says that the cluster has been up.
    remove(&context.project.kubeconfig())
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
