//! `orch doctor`, and the preflight of the commands that need a ready host.

use super::{Context, bundled, machines};
use crate::exit::{Exit, WithExit as _};
use crate::host::{Finding, HostError, Privilege, Requirement, group};
use crate::machines::Provider;
use crate::progress::Progress as _;
use crate::ui::Ui;

/// What a first run writes in MiB: images, caches and two nodes.
const FIRST_RUN_MIB: u64 = 10 * 1024;
/// What a run on existing machines may have to write in MiB.
const LATER_RUN_MIB: u64 = 1024;

/// What this cluster asks of the host. Ports count only before the cluster has them itself.
fn requirements(context: &Context, with_ports: bool) -> anyhow::Result<Vec<Requirement>> {
    let is_bundled = bundled::is(context)?;
    let program = |name, package, why, home| Requirement::Program {
        name,
        package,
        why,
        home,
    };
    let mib = if context.vagrant().has_machines() {
        LATER_RUN_MIB
    } else {
        FIRST_RUN_MIB
    };
    let mut list = vec![
        Requirement::Space {
            path: context.project.cache().to_owned(),
            mib,
        },
        program(
            "ssh-keygen",
            "openssh-client",
            "makes the machines' keys",
            "https://www.openssh.com/portable.html",
        ),
    ];
    if !is_bundled {
        list.push(program(
            "debootstrap",
            "debootstrap",
            "makes base images where Docker Hub cannot be reached",
            "https://salsa.debian.org/installer-team/debootstrap",
        ));
    }
    // Images are built by Docker with every provider; those of a bundle are built already.
    if !is_bundled || context.provider() == Provider::Docker {
        list.extend([
            Requirement::EngineInstalled,
            Requirement::EngineRunning,
            Requirement::EngineSpace { mib },
        ]);
    }
    if !is_bundled {
        list.push(Requirement::Buildx);
    }
    if context.provider() != Provider::Ssh {
        list.push(program(
            "vagrant",
            "vagrant",
            "makes the machines",
            "https://developer.hashicorp.com/vagrant/install",
        ));
    }
    match context.provider() {
        Provider::Virtualbox => list.push(program(
            "VBoxManage",
            "virtualbox",
            "runs the machines",
            "https://www.virtualbox.org/wiki/Linux_Downloads",
        )),
        Provider::Libvirt => list.extend([
            program(
                "virsh",
                "libvirt-clients",
                "runs the machines",
                "https://libvirt.org/downloads.html",
            ),
            Requirement::VagrantLibvirt,
        ]),
        Provider::Docker | Provider::Ssh => {}
    }
    if with_ports {
        list.push(ports(context));
    }
    Ok(list)
}

fn ports(context: &Context) -> Requirement {
    let ports = &context.config.ports;
    let forwards = ports
        .forward
        .iter()
        .map(|forward| (forward.host, "ports.forward".to_owned()));
    let api = std::iter::once((ports.api, "ports.api".to_owned()));
    Requirement::PortsFree(api.chain(forwards).collect())
}

/// Whether the ports have to be free: running machines of this cluster hold them themselves.
async fn ports_matter(context: &Context) -> bool {
    if context.provider() == Provider::Docker {
        let running = context.resources().has_running_nodes().await;
        return !running.unwrap_or(false);
    }
    !context.vagrant().has_machines()
}

/// Checks and mends the host, as the first step of other commands.
pub(super) async fn preflight(context: &Context) -> anyhow::Result<()> {
    let step = context.ui.step("preflight");
    let (existing, wanted) = (context.provider(), context.wanted_provider());
    if let Some(wanted) = wanted.filter(|wanted| *wanted != existing) {
        let (existing, wanted) = (existing.as_str(), wanted.as_str());
        return Err(anyhow::anyhow!(
            "the machines were made with {existing}, orch.yaml says {wanted}"
        ))
        .exit(
            Exit::Input,
            "a cluster keeps its provider; put it back, or run `orch destroy` first",
        );
    }
    let privilege = Privilege::detect();
    let mut fixed = Vec::new();
    for requirement in requirements(context, false)? {
        let failing = || format!("this host is not ready: {}", requirement.name());
        if requirement == Requirement::EngineRunning {
            enter_docker_group(&context.ui);
        }
        if let Finding::Missing(what) = requirement.check().await.exit(Exit::Host, failing())? {
            step.note(&format!("{what}: getting it"));
            let result = requirement.fix(&privilege).await;
            if matches!(result, Err(HostError::EngineRefused { .. })) {
                enter_docker_group(&context.ui);
            }
            result.exit(Exit::Host, failing())?;
            fixed.push(requirement.name());
        }
    }
    if context.provider() == Provider::Docker {
        // Only then: what an earlier run left may hold the ports.
        machines::clear_strays(context, &step).await?;
        machines::check_made_as(context).await?;
    }
    if context.provider() != Provider::Ssh && ports_matter(context).await {
        ports(context)
            .check()
            .await
            .exit(Exit::Host, "this host is not ready: ports")?;
    }
    step.done(&if fixed.is_empty() {
        "this host has everything".to_owned()
    } else {
        format!("got {}", fixed.join(", "))
    });
    Ok(())
}

/// Starts this command again with the right to use the engine, where sudo can give it. Without it, the engine's own refusal is
/// the error.
pub(super) fn enter_docker_group(ui: &Ui) {
    if !group::is_needed() {
        return;
    }
    ui
        .note("this user is not in the Docker engine's group: going on with it for this run, through sudo");
    let error = group::enter();
    ui.note(&format!("that failed: {error}"));
}

/// Starts the Docker engine if it is installed and does not run.
pub(super) async fn engine(context: &Context) -> anyhow::Result<()> {
    for requirement in [Requirement::EngineInstalled, Requirement::EngineRunning] {
        if let Finding::Missing(what) = requirement
            .check()
            .await
            .exit(Exit::Host, "looking for the Docker engine")?
        {
            context.ui.note(&format!("{what}: getting it"));
            requirement
                .fix(&Privilege::detect())
                .await
                .exit(Exit::Host, "getting the Docker engine")?;
        }
    }
    Ok(())
}

/// What `create` would have to get first.
pub(super) async fn missing(context: &Context) -> anyhow::Result<Vec<String>> {
    let mut missing = Vec::new();
    for requirement in requirements(context, ports_matter(context).await)? {
        if let Finding::Missing(what) = requirement
            .check()
            .await
            .exit(Exit::Host, "checking this host")?
        {
            missing.push(what);
        }
    }
    Ok(missing)
}

pub(super) async fn run(context: &Context, fix: bool) -> anyhow::Result<Exit> {
    let privilege = Privilege::detect();
    let mut ready = true;
    for requirement in requirements(context, ports_matter(context).await)? {
        let mut finding = requirement.check().await;
        if fix && matches!(finding, Ok(Finding::Missing(_))) {
            finding = match requirement.fix(&privilege).await {
                Ok(()) => requirement.check().await,
                Err(error) => Err(error),
            };
        }
        let (state, text) = match finding {
            Ok(Finding::Present(text)) => ("ok", text),
            Ok(Finding::Missing(text)) => ("missing", text),
            Err(error) => ("failed", format!("{:#}", anyhow::Error::from(error))),
        };
        ready &= state == "ok";
        if context.ui.is_json() {
            context.ui.result_json(&serde_json::json!({
                "requirement": requirement.name(), "state": state, "text": text,
            }));
        } else {
            context
                .ui
                .result(&format!("{state:<8} {:<24} {text}", requirement.name()));
        }
    }
    if ready {
        return Ok(Exit::Success);
    }
    if !fix {
        context
            .ui
            .note("run `orch doctor --fix` to get what is missing");
    }
    Ok(Exit::Host)
}
