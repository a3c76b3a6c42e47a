//! Kernel modules and settings that pods need, now and after a reboot.

use std::path::Path;

use async_trait::async_trait;
use orch_contract::{Action, Change, ExitCode, Subject};
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::Context;
use crate::desired::DesiredFiles;
use crate::system::{FileError, Invocation};

const MODULES: [&str; 2] = ["br_netfilter", "overlay"];
const MODULES_FILE: &str = "/etc/modules-load.d/orch.conf";
const SETTINGS_FILE: &str = "/etc/sysctl.d/90-orch.conf";

/// A kernel setting under /proc/sys.
struct Setting {
    name: &'static str,
    value: u64,
    /// A higher value that somebody chose is left alone.
    at_least: bool,
    /// The node cannot work without it.
    required: bool,
}

const SETTINGS: [Setting; 5] = [
    Setting {
        name: "net.ipv4.ip_forward",
        value: 1,
        at_least: false,
        required: true,
    },
    Setting {
        name: "net.bridge.bridge-nf-call-iptables",
        value: 1,
        at_least: false,
        required: false,
    },
    Setting {
        name: "net.bridge.bridge-nf-call-ip6tables",
        value: 1,
        at_least: false,
        required: false,
    },
    // Every pod with a file watcher takes an instance; the default of 128 is gone quickly.
    Setting {
        name: "fs.inotify.max_user_instances",
        value: 1024,
        at_least: true,
        required: false,
    },
    Setting {
        name: "fs.inotify.max_user_watches",
        value: 262_144,
        at_least: true,
        required: false,
    },
];

impl Setting {
    fn path(&self) -> String {
        format!("/proc/sys/{}", self.name.replace('.', "/"))
    }

    fn holds(&self, text: &str) -> bool {
        text.trim()
            .parse::<u64>()
            .is_ok_and(|present| present == self.value || (self.at_least && present > self.value))
    }
}

/// A setting that could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareHostError {
    #[error("the kernel does not take {name} = {value}, which pods need to reach each other")]
    Setting {
        name: &'static str,
        value: u64,
        source: FileError,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

impl ExitCoded for PrepareHostError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Host
    }
}

pub(crate) struct PrepareHost<'a> {
    pub(crate) context: Context<'a>,
}

impl PrepareHost<'_> {
    fn files() -> DesiredFiles {
        let mut desired = DesiredFiles::default();
        let modules = MODULES.map(|module| format!("{module}\n")).concat();
        desired.add(
            MODULES_FILE,
            format!("# Written by orch-provision.\n{modules}"),
            0o644,
        );
        let mut settings = "# Written by orch-provision.\n".to_owned();
        for setting in SETTINGS {
            settings.push_str(&format!("{} = {}\n", setting.name, setting.value));
        }
        desired.add(SETTINGS_FILE, settings, 0o644);
        desired
    }

    /// What is to be changed. What may fail without harm is tried only along with something that matters.
    fn changes(&self) -> Result<Vec<Change>, FileError> {
        let files = self.context.system.files;
        let mut needed = Self::files().changes(files)?;
        let mut tried = Vec::new();
        for module in MODULES {
            if !files.exists(&Path::new("/sys/module").join(module))? {
                tried.push(Change::new(
                    Subject::Kernel,
                    module,
                    Action::Load,
                    "is not loaded",
                ));
            }
        }
        for setting in SETTINGS {
            // A setting that is not there belongs to a module that this kernel does not load.
            let Some(text) = files.read_text(Path::new(&setting.path()))? else {
                continue;
            };
            if setting.holds(&text) {
                continue;
            }
            let detail = format!("is {}, not {}", text.trim(), setting.value);
            let change = Change::new(Subject::Kernel, setting.name, Action::Update, detail);
            if setting.required {
                needed.push(change);
            } else {
                tried.push(change);
            }
        }
        if !needed.is_empty() {
            needed.extend(tried);
        }
        Ok(needed)
    }

    async fn prepare(&self, report: &StepReport<'_>) -> Result<(), PrepareHostError> {
        let system = self.context.system;
        for module in MODULES {
            let invocation = Invocation::new("modprobe", [module]);
            if let Err(error) = system.commands.run_ok(&invocation).await {
                // In a container the host's kernel has it already, or nobody can load it.
                report.info(format!("module {module} was not loaded here: {error}"));
            }
        }
        for setting in SETTINGS {
            let path = setting.path();
            let path = Path::new(&path);
            let Some(present) = system.files.read_text(path)? else {
                continue;
            };
            if setting.holds(&present) {
                continue;
            }
            match system.files.write_kernel(path, &setting.value.to_string()) {
                Ok(()) => {}
                Err(source) if setting.required => {
                    return Err(PrepareHostError::Setting {
                        name: setting.name,
                        value: setting.value,
                        source,
                    });
                }
                Err(error) => report.warn(format!(
                    "{} stays {}: {error}",
                    setting.name,
                    present.trim()
                )),
            }
        }
        Self::files().write(system.files)?;
        Ok(())
    }
}

#[async_trait]
impl Step for PrepareHost<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "prepare_host"
    }

    fn title(&self) -> String {
        "Set up kernel modules and settings".to_owned()
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let changes = self.changes().map_err(PrepareHostError::File)?;
        Ok(Check::of(changes, || ()))
    }

    async fn apply(&self, report: &StepReport<'_>) -> Result<(), StepFailure> {
        Ok(self.prepare(report).await?)
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use orch_runner::{Recorder, Runner};

    use super::*;
    use crate::testing::{Machine, server_config};

    #[tokio::test]
    async fn settings_are_made_once_and_higher_ones_left() {
        let machine = Machine::fit();
        machine
            .files
            .put("/proc/sys/net/ipv4/ip_forward", "0\n", 0o644);
        machine
            .files
            .put("/proc/sys/fs/inotify/max_user_watches", "999999\n", 0o644);
        machine
            .files
            .put("/proc/sys/fs/inotify/max_user_instances", "128\n", 0o644);
        let config = server_config();
        let step = PrepareHost {
            context: machine.context(&config),
        };
        let recorder = Recorder::default();
        let mut runner = Runner::new(&recorder, false);
        runner.run(&step).await.unwrap();
        let read = |path| machine.files.text(path).unwrap();
        assert_eq!(read("/proc/sys/net/ipv4/ip_forward"), "1");
        assert_eq!(read("/proc/sys/fs/inotify/max_user_instances"), "1024");
        assert_eq!(read("/proc/sys/fs/inotify/max_user_watches"), "999999\n");
        machine.files.take_writes();
        runner.run(&step).await.unwrap();
        assert_eq!(
            machine.files.take_writes(),
            Vec::<std::path::PathBuf>::new()
        );
    }
}
