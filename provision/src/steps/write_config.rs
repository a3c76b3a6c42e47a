//! K3s's config.yaml and registries.yaml, and what containerd needs in a confined container.

use std::path::Path;

use async_trait::async_trait;
use orch_contract::ExitCode;
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::{Context, HostFacts};
use crate::applied::{Applied, Prepared};
use crate::desired::{DesiredFiles, MARKER};
use crate::difference::View;
use crate::k3s::config::{ConfigYamlError, Place, render_config, render_registration};
use crate::k3s::flags;
use crate::k3s::registries::{RegistriesError, render_registries};
use crate::k3s::release::minor;
use crate::k3s::units::unit_name;
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
    /// What a running K3s has read.
    desired: DesiredFiles,
    /// What it reads when the node registers, so that another content restarts nothing.
    registration: DesiredFiles,
}

impl<'a> WriteConfig<'a> {
    /// Plans the files; nothing is written yet.
    pub(crate) fn plan(
        context: Context<'a>,
        host: &HostFacts,
        place: &Place,
    ) -> Result<Self, WriteConfigError> {
        let mut desired = DesiredFiles::default();
        let config = context.config;
        // Both may hold credentials.
        desired.add_viewed(
            paths::CONFIG,
            render_config(config, &host.interface, place)?,
            0o600,
            View::Yaml(|path| path.first().is_some_and(|key| flags::is_public(key))),
        );
        match render_registries(&config.registries)? {
            Some(text) => {
                desired.add_viewed(paths::REGISTRIES, text, 0o600, View::Yaml(is_public_mirror));
            }
            None => desired.add_absent(paths::REGISTRIES),
        }
        if !may_lower_oom_score(context.system.files)? {
            add_containerd_restriction(&mut desired, &config.k3s.version);
        }
        let mut registration = DesiredFiles::default();
        match render_registration(config)? {
            Some(text) => {
                let view = View::Yaml(|path| path.first().is_some_and(|key| flags::is_public(key)));
                registration.add_viewed(paths::CONFIG_REGISTER, text, 0o600, view);
            }
            None => registration.add_absent(paths::CONFIG_REGISTER),
        }
        Ok(Self {
            context,
            desired,
            registration,
        })
    }

    fn prepared(&self, changed: Vec<String>) -> Prepared {
        Prepared {
            inputs: self.desired.digests(),
            changed,
        }
    }

    fn write(&self) -> Result<Prepared, FileError> {
        let files = self.context.system.files;
        let changed = self.desired.other_content(files)?;
        let unit = unit_name(self.context.config.node.role);
        Applied::forget(files, unit, &changed)?;
        self.desired.write(files)?;
        self.registration.write(files)?;
        Ok(self.prepared(changed))
    }

    /// K3s also reads files that orch does not write: whoever put them there meant it, so they stay.
    fn warn_of_others(&self, report: &StepReport<'_>) -> Result<(), FileError> {
        let files = self.context.system.files;
        for path in files.list(Path::new(paths::CONFIG_EXTRA))? {
            if path == Path::new(paths::CONFIG_REGISTER) {
                continue;
            }
            if path
                .extension()
                .is_some_and(|end| end == "yaml" || end == "yml")
            {
                report.warn(format!(
                    "{} is not orch's and changes what K3s is told; it stays",
                    path.display()
                ));
            }
        }
        let registries = files.read_text(Path::new(paths::REGISTRIES))?;
        if self.context.config.registries.is_empty()
            && registries.is_some_and(|text| !text.starts_with(MARKER))
        {
            report.warn(format!("{} is not orch's; it stays", paths::REGISTRIES));
        }
        Ok(())
    }
}

/// What of registries.yaml reports may show: all but credentials and what orch does not write.
fn is_public_mirror(path: &[&str]) -> bool {
    matches!(
        path,
        ["mirrors", _, "endpoint"]
            | ["mirrors", _, "rewrite", _]
            | ["configs", _, "tls", "ca_file" | "cert_file" | "key_file"]
    )
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
    type Output = Prepared;

    fn name(&self) -> &'static str {
        "write_config"
    }

    fn title(&self) -> String {
        "Write K3s's configuration".to_owned()
    }

    async fn check(&self, report: &StepReport<'_>) -> Result<Check<Prepared>, StepFailure> {
        let files = self.context.system.files;
        let mut changes = self
            .desired
            .changes(files)
            .map_err(WriteConfigError::File)?;
        let registration = self.registration.changes(files);
        changes.extend(registration.map_err(WriteConfigError::File)?);
        self.warn_of_others(report)
            .map_err(WriteConfigError::File)?;
        Ok(Check::of(changes, || self.prepared(Vec::new())))
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<Prepared, StepFailure> {
        Ok(self.write().map_err(WriteConfigError::File)?)
    }

    fn planned(&self) -> Prepared {
        let files = self.context.system.files;
        self.prepared(self.desired.other_content(files).unwrap_or_default())
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
        let step = WriteConfig::plan(machine.context(&config), &host(), &Place::Founder).unwrap();
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        let first = runner.run(&step).await.unwrap();
        for path in [paths::CONFIG, paths::REGISTRIES] {
            assert_eq!(machine.files.mode(Path::new(path)).unwrap(), Some(0o600));
            assert!(first.inputs.contains_key(path));
        }
        machine.files.take_writes();
        assert_eq!(runner.run(&step).await.unwrap().inputs, first.inputs);
        assert!(machine.files.take_writes().is_empty());
    }

    #[tokio::test]
    async fn another_label_is_written_and_is_nothing_that_a_running_k3s_has_read() {
        let machine = Machine::fit();
        let mut config = agent_config();
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        let step = WriteConfig::plan(machine.context(&config), &host(), &Place::Founder).unwrap();
        let before = runner.run(&step).await.unwrap();
        let labels = &mut config.node.labels;
        labels.insert("disk".to_owned(), "ssd".to_owned());
        let step = WriteConfig::plan(machine.context(&config), &host(), &Place::Founder).unwrap();
        machine.files.take_writes();
        let after = runner.run(&step).await.unwrap();
        assert_eq!(
            machine.files.take_writes(),
            [Path::new(paths::CONFIG_REGISTER)]
        );
        assert_eq!((after.inputs, after.changed), (before.inputs, Vec::new()));
        config.node.labels.clear();
        let step = WriteConfig::plan(machine.context(&config), &host(), &Place::Founder).unwrap();
        runner.run(&step).await.unwrap();
        assert_eq!(machine.files.text(paths::CONFIG_REGISTER), None);
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
        let step = WriteConfig::plan(machine.context(&config), &host(), &Place::Founder).unwrap();
        let digests = step.planned().inputs;
        assert!(digests.contains_key(CONTAINERD_EXTRA));
        machine
            .files
            .put("/proc/self/status", "CapBnd:\t000001ffffffffff\n", 0o444);
        let step = WriteConfig::plan(machine.context(&config), &host(), &Place::Founder).unwrap();
        assert!(!step.planned().inputs.contains_key(CONTAINERD_EXTRA));
    }
}
