//! Vagrant's machines that nobody can work on over SSH yet: not made, stopped, or never provisioned.

use std::collections::BTreeMap;

use super::Context;
use crate::exit::{Exit, WithExit as _};
use crate::machines::{MachineState, Provider};

/// A machine that cannot be worked on over SSH, and why.
pub(super) struct Idle {
    pub(super) name: String,
    pub(super) why: &'static str,
}

/// Which of Vagrant's machines nobody can work on yet; SSH hosts are as they are.
pub(super) async fn among(context: &Context, names: &[String]) -> anyhow::Result<Vec<Idle>> {
    if context.provider() == Provider::Ssh {
        return Ok(Vec::new());
    }
    let vagrant = context.vagrant();
    let states = if vagrant.has_machines() {
        let states = vagrant.status().await;
        states.exit(Exit::Machine, "asking Vagrant for the machines")?
    } else {
        BTreeMap::new()
    };
    let reached = context.project.reached();
    let idle = names.iter().filter_map(|name| {
        let why = why_idle(states.get(name).copied(), reached.join(name).exists())?;
        let name = name.clone();
        Some(Idle { name, why })
    });
    Ok(idle.collect())
}

/// `is_noted`: the provisioner has noted how the machine is reached.
const fn why_idle(state: Option<MachineState>, is_noted: bool) -> Option<&'static str> {
    match state {
        Some(MachineState::Running) if is_noted => None,
        Some(MachineState::Running) => Some("its machine runs and was never provisioned"),
        Some(MachineState::Stopped) => Some("its machine is stopped"),
        Some(MachineState::NotCreated) | None => Some("its machine is not made"),
        Some(MachineState::Other) => Some("its machine is in a state that orch does not know"),
    }
}

/// For what has to ask every one of the machines.
pub(super) async fn refuse(context: &Context, names: &[String]) -> anyhow::Result<()> {
    let idle = among(context, names).await?;
    if idle.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = idle.iter().map(|idle| idle.name.as_str()).collect();
    let each: Vec<_> = idle
        .iter()
        .map(|Idle { name, why }| format!("node {name}: {why}"))
        .collect();
    Err(anyhow::anyhow!(
        "{}; `orch cluster up {}` makes and starts what is missing",
        each.join("; "),
        names.join(" ")
    ))
    .exit(Exit::Machine, "looking for the machines")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_worked_on_when_it_runs_and_somebody_noted_how_it_is_reached() {
        assert_eq!(why_idle(Some(MachineState::Running), true), None);
        for (state, noted, expected) in [
            (Some(MachineState::Running), false, "never provisioned"),
            (Some(MachineState::Stopped), true, "stopped"),
            (Some(MachineState::NotCreated), true, "not made"),
            (None, false, "not made"),
        ] {
            let why = why_idle(state, noted).unwrap();
            assert!(why.contains(expected), "{why}");
        }
    }
}
