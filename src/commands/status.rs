//! `orch status`, and the report that ends `create`.

use std::net::{IpAddr, SocketAddr};

use super::apply::pins;
use super::{Context, manifests};
use crate::artifacts::{Artifacts, Source};
use crate::config::Forward;
use crate::exit::{Exit, WithExit as _};
use crate::kube::status::{ClusterStatus, collect, table};
use crate::machines::Provider;

async fn observe(context: &Context) -> anyhow::Result<ClusterStatus> {
    let mut wanted = Vec::new();
    for stack in manifests::stacks(context) {
        wanted.extend(pins(&stack).exit(Exit::Input, "reading the manifests")?);
    }
    let mut namespaces: Vec<_> = context
        .config
        .stacks
        .iter()
        .map(|stack| stack.namespace.clone())
        .collect();
    namespaces.dedup();
    let asking = "asking the cluster how it is";
    let client = crate::kube::connect(&context.project.kubeconfig())
        .await
        .exit(Exit::Apply, asking)?;
    collect(&client, &namespaces, &wanted)
        .await
        .exit(Exit::Apply, asking)
}

/// `orch status`.
pub(super) async fn run(context: &Context) -> anyhow::Result<()> {
    if context.provider() == Provider::Ssh {
        let cluster = observe(context).await?;
        if context.ui.is_json() {
            let nodes = serde_json::json!({"machines": {}, "cluster": cluster});
            context.ui.result_json(&nodes);
        } else {
            context.ui.result(table(&cluster).trim_end());
        }
        return Ok(());
    }
    let vagrant = context.vagrant();
    if !vagrant.has_machines() {
        if context.ui.is_json() {
            context
                .ui
                .result_json(&serde_json::json!({"machines": {}, "cluster": null}));
        } else {
            context.ui.result("no machines; `orch create` makes them");
        }
        return Ok(());
    }
    let machines = vagrant
        .status()
        .await
        .exit(Exit::Machine, "asking Vagrant")?;
    let runs = machines
        .values()
        .any(|state| *state == crate::machines::MachineState::Running);
    let cluster = if runs {
        Some(observe(context).await?)
    } else {
        None
    };
    if context.ui.is_json() {
        context
            .ui
            .result_json(&serde_json::json!({"machines": machines, "cluster": cluster}));
        return Ok(());
    }
    for (name, state) in &machines {
        context
            .ui
            .result(&format!("machine {name}: {}", state.as_str()));
    }
    if let Some(cluster) = cluster {
        context.ui.result(table(&cluster).trim_end());
    }
    Ok(())
}

/// Nodes, rollouts, endpoints, digests, and the seconds each step took.
pub(super) async fn report(context: &Context, artifacts: Option<&Artifacts>) -> anyhow::Result<()> {
    let cluster = observe(context).await?;
    let ui = &context.ui;
    let standin = artifacts.and_then(|artifacts| match &artifacts.source {
        Source::Standin { reason } => Some(reason),
        _ => None,
    });
    if ui.is_json() {
        ui.result_json(&serde_json::json!({
            "cluster": cluster,
            "kubeconfig": context.project.kubeconfig(),
            "standin": standin,
            "peak_memory_kib": peak_memory_kib(),
        }));
        return Ok(());
    }
    ui.result(table(&cluster).trim_end());
    for line in ways_in(context) {
        ui.result(&line);
    }
    ui.result(&format!(
        "KUBECONFIG={}",
        context.project.kubeconfig().display()
    ));
    if let Some(reason) = standin {
        ui.result(&format!(
            "These nodes run orch's stand-in for K3s, not K3s: {reason}"
        ));
    }
    let phases: Vec<_> = ui
        .phases()
        .iter()
        .map(|phase| format!("{} {:.1} s", phase.step, phase.seconds))
        .collect();
    ui.result(&format!(
        "{:.1} s in all: {}; peak memory {} MiB",
        ui.elapsed().as_secs_f64(),
        phases.join(", "),
        peak_memory_kib().unwrap_or_default() / 1024
    ));
    Ok(())
}

/// Where the NodePorts of orch.yaml are reached: through this computer's ports, or on an SSH host itself.
fn ways_in(context: &Context) -> Vec<String> {
    let server = context.config.server().map(|node| node.address.value);
    let on_host = server.filter(|_| context.provider() == Provider::Ssh);
    let forwards = context.config.ports.forward.iter();
    forwards.map(|forward| way_in(*forward, on_host)).collect()
}

fn way_in(forward: Forward, on_host: Option<IpAddr>) -> String {
    let node = forward.node;
    match on_host {
        Some(address) => format!(
            "http://{} -> NodePort {node}",
            SocketAddr::new(address, node)
        ),
        None => format!("http://localhost:{} -> NodePort {node}", forward.host),
    }
}

/// The high-water mark of this process's resident memory (proc_pid_status(5), VmHWM).
fn peak_memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_in_leads_to_who_listens() {
        let forward = Forward {
            host: 8080,
            node: 30080,
        };
        let shown = |address: &str| way_in(forward, Some(address.parse().unwrap()));
        assert_eq!(
            way_in(forward, None),
            "http://localhost:8080 -> NodePort 30080"
        );
        assert_eq!(
            shown("10.0.0.11"),
            "http://10.0.0.11:30080 -> NodePort 30080"
        );
        assert_eq!(shown("fd00::1"), "http://[fd00::1]:30080 -> NodePort 30080");
    }
}
