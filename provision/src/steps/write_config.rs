//! K3s's config.yaml and registries.yaml, and what containerd needs in a confined container.

use std::path::Path;

use async_trait::async_trait;
use orch_contract::ExitCode;
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::{Context, HostFacts};
use crate::applied::Inputs;
use crate::desired::DesiredFiles;
use crate::k3s::config::{ConfigYamlError, render_config};
use crate::k3s::registries::{RegistriesError, render_registries};
use crate::k3s::release::minor;
use crate::k3s::{YamlError, paths};
use crate::system::{FileError, Files};

/// capability(7): CAP_SYS_RESOURCE.
const CAP_SYS_RESOURCE: u64 = 24;
const CONTAINERD_EXTRA: &str = "/etc/containerd-extra/orch.toml";

/// Why the configuration could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteConfigError {
    #[error(transparent)]
    Config(#[from] ConfigYamlError),
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    #[error(transparent)]
    Yaml(#[from] YamlError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for WriteConfigError {
    fn exit_code(&self) -> ExitCode {
        match self {
            WriteConfigError::Config(_)
            | WriteConfigError::Registries(_)
            | WriteConfigError::Yaml(_) => ExitCode::Config,
            WriteConfigError::File(_) => ExitCode::Failure,
        }
    }
}

pub(crate) struct WriteConfig<'a> {
    context: Context<'a>,
    desired: DesiredFiles,
}

impl<'a> WriteConfig<'a> {
    /// Plans the files; nothing is written yet.
    pub(crate) fn plan(context: Context<'a>, host: &HostFacts) -> Result<Self, WriteConfigError> {
        let mut desired = DesiredFiles::default();
        let config = context.config;
        // Both may hold credentials.
        desired.add(
            paths::CONFIG,
            render_config(config, &host.interface)?,
            0o600,
        );
        match render_registries(&config.registries)? {
            Some(text) => desired.add(paths::REGISTRIES, text, 0o600),
            None => desired.add_absent(paths::REGISTRIES),
        }
        if !may_lower_oom_score(context.system.files)? {
            add_containerd_restriction(&mut desired, &config.k3s.version);
        }
        Ok(Self { context, desired })
    }
}

/// Whether this machine's processes may make themselves less likely to be killed for memory;
/// without it containerd cannot start a sandbox unless it is told not to try.
fn may_lower_oom_score(files: &dyn Files) -> Result<bool, FileError> {
    let status = files
        .read_text(Path::new("/proc/self/status"))?
        .unwrap_or_default();
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    Ok(bounding.is_none_or(|mask| mask >> CAP_SYS_RESOURCE & 1 == 1))
}

/// K3s renders containerd's configuration from a template, if there is one; containerd 2 (K3s 1.32
/// and later) reads version 3 of the format.
fn add_containerd_restriction(desired: &mut DesiredFiles, version: &str) {
    let (template, extra) = if minor(version).is_none_or(|minor| minor >= 32) {
        (
            "config-v3.toml.tmpl",
            "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\n  restrict_oom_score_adj = true\n",
        )
    } else {
        (
            "config.toml.tmpl",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n",
        )
    };
    desired.add(
        format!("{}/{template}", paths::CONTAINERD_TEMPLATE_DIRECTORY),
        "# Written by orch-provision.\nimports = [\"/etc/containerd-extra/*.toml\"]\n{{ template \"base\" . }}\n".to_owned(),
        0o600,
    );
    desired.add(
        CONTAINERD_EXTRA,
        format!("# Written by orch-provision.\n{extra}"),
        0o644,
    );
}

#[async_trait]
impl Step for WriteConfig<'_> {
    type Output = Inputs;

    fn name(&self) -> &'static str {
        "write_config"
    }

    fn title(&self) -> String {
        "Write K3s's configuration".to_owned()
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<Inputs>, StepFailure> {
        let differences = self
            .desired
            .differences(self.context.system.files)
            .map_err(WriteConfigError::File)?;
        Ok(if differences.is_empty() {
            Check::Satisfied(self.desired.digests())
        } else {
            Check::Needed(differences.join(", "))
        })
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<Inputs, StepFailure> {
        self.desired
            .write(self.context.system.files)
            .map_err(WriteConfigError::File)?;
        Ok(self.desired.digests())
    }

    fn planned(&self) -> Inputs {
        self.desired.digests()
    }
}

#[cfg(test)]
mod tests {
    use orch_contract::{Mirror, Role};
    use orch_runner::{Recorder, Runner};

    use super::*;
    use crate::k3s::release::Architecture;
    use crate::testing::{Machine, agent_config, server_config};

    fn host() -> HostFacts {
        HostFacts {
            interface: "eth1".to_owned(),
            architecture: Architecture::Amd64,
        }
    }

    #[tokio::test]
    async fn files_are_private_and_written_once() {
        let machine = Machine::fit();
        let mut config = agent_config();
        let mirror = Mirror {
            endpoints: vec!["http://192.168.56.254:5000".to_owned()],
            ..Mirror::default()
        };
        config
            .registries
            .mirrors
            .insert("docker.io".to_owned(), mirror);
        assert_eq!(config.node.role, Role::Agent);
        let step = WriteConfig::plan(machine.context(&config), &host()).unwrap();
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        let first = runner.run(&step).await.unwrap();
        for path in [paths::CONFIG, paths::REGISTRIES] {
            assert_eq!(machine.files.mode(Path::new(path)).unwrap(), Some(0o600));
            assert!(first.contains_key(path));
        }
        machine.files.take_writes();
        assert_eq!(runner.run(&step).await.unwrap(), first);
        assert!(machine.files.take_writes().is_empty());
    }

    #[test]
    fn a_confined_container_gets_containerds_restriction() {
        let machine = Machine::fit();
        // Everything but CAP_SYS_RESOURCE.
        machine.files.put(
            "/proc/self/status",
            "Name:\tx\nCapBnd:\t000001fffeffffff\n",
            0o444,
        );
        let config = server_config();
        let step = WriteConfig::plan(machine.context(&config), &host()).unwrap();
        let digests = step.planned();
        assert!(digests.contains_key(CONTAINERD_EXTRA));
        machine
            .files
            .put("/proc/self/status", "CapBnd:\t000001ffffffffff\n", 0o444);
        let step = WriteConfig::plan(machine.context(&config), &host()).unwrap();
        assert!(!step.planned().contains_key(CONTAINERD_EXTRA));
    }
}
