//! `orch-provision up`: the whole story of a node, from top to bottom.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orch_contract::{Event, NodeConfig, Role};
use orch_runner::{Reporter, Runner, StepFailure};

use super::{CommandFailure, LOCK, alone, attended, load_config};
use crate::cli::UpArgs;
use crate::output::StdoutReporter;
use crate::steps::{
    AcquireK3s, CheckHost, Context, HostFacts, InstalledK3s, MakeVolumes, Membership, MountStorage,
    PrepareHost, RequestJoin, ServeJoin, StartK3s, WaitReady, WriteConfig, WriteUnits,
};
use crate::system::{Disk, Https, Processes, Sockets, System, Systemd};

const SERVER_STEPS: [&str; 10] = [
    "check_host",
    "prepare_host",
    "mount_storage",
    "make_volumes",
    "acquire_k3s",
    "write_config",
    "write_units",
    "serve_join",
    "start_server",
    "wait_ready",
];

const AGENT_STEPS: [&str; 9] = [
    "check_host",
    "prepare_host",
    "mount_storage",
    "acquire_k3s",
    "write_config",
    "write_units",
    "request_join",
    "start_agent",
    "wait_ready",
];

pub(crate) async fn run(arguments: UpArgs) -> Result<(), StepFailure> {
    let config = load_config(&arguments.config)?;
    let asked = Role::from(arguments.role);
    if asked != config.node.role {
        return Err(CommandFailure::Role {
            path: arguments.config,
            asked,
            configured: config.node.role,
        }
        .into());
    }
    let program = std::env::current_exe().map_err(CommandFailure::Program)?;
    let commands = Processes;
    let services = Systemd::new(&commands);
    let system = System {
        files: &Disk,
        commands: &commands,
        services: &services,
        download: &Https,
        endpoints: &Sockets,
    };
    let reporter = StdoutReporter {
        node: config.node.name.clone(),
        output: arguments.output,
    };
    let up = Up {
        context: Context {
            system,
            config: &config,
        },
        program,
        config_path: arguments.config,
        is_root: rustix::process::geteuid().is_root(),
    };
    attended(async {
        let _lock = if up.is_root && !arguments.dry_run {
            Some(alone(Path::new(LOCK), &reporter).await?)
        } else {
            None
        };
        up.run(&reporter, arguments.dry_run).await
    })
    .await
}

/// One run of `up` on one machine.
pub(crate) struct Up<'a> {
    pub(crate) context: Context<'a>,
    pub(crate) program: PathBuf,
    pub(crate) config_path: PathBuf,
    pub(crate) is_root: bool,
}

impl Up<'_> {
    pub(crate) async fn run(
        &self,
        reporter: &dyn Reporter,
        dry_run: bool,
    ) -> Result<(), StepFailure> {
        let role = self.config().node.role;
        let steps = match role {
            Role::Server => SERVER_STEPS.as_slice(),
            Role::Agent => AGENT_STEPS.as_slice(),
        };
        reporter.report(Event::RunStarted {
            role,
            provisioner: env!("CARGO_PKG_VERSION").to_owned(),
            steps: steps.iter().map(|&step| step.to_owned()).collect(),
            dry_run,
        });
        let mut runner = Runner::new(reporter, dry_run);
        let result = self.run_steps(&mut runner).await;
        if let (Ok(installed), false) = (&result, dry_run) {
            reporter.report(Event::NodeReady {
                role,
                k3s_version: installed.version_line.clone(),
            });
        }
        runner.finish(result.is_err());
        result.map(|_| ())
    }

    fn config(&self) -> &NodeConfig {
        self.context.config
    }

    async fn run_steps(&self, runner: &mut Runner<'_>) -> Result<InstalledK3s, StepFailure> {
        let context = self.context;
        let host: HostFacts = runner
            .run(&CheckHost {
                context,
                is_root: self.is_root,
                now: Timestamp::now(),
            })
            .await?;
        runner.run(&PrepareHost { context }).await?;
        runner.run(&MountStorage { context }).await?;
        if self.config().node.role == Role::Server {
            runner.run(&MakeVolumes { context }).await?;
        }
        let installed = runner
            .run(&AcquireK3s {
                context,
                architecture: host.architecture,
            })
            .await?;
        let config = runner.run(&WriteConfig::plan(context, &host)?).await?;
        let units = runner.run(&WriteUnits::plan(context)).await?;
        let membership = match self.config().node.role {
            Role::Server => {
                let serve_join = ServeJoin {
                    context,
                    program: self.program.clone(),
                    config_path: self.config_path.clone(),
                };
                runner.run(&serve_join).await?;
                Membership::Old
            }
            Role::Agent => runner.run(&RequestJoin { context }).await?,
        };
        let start = StartK3s::new(context, &installed, [config, units], membership);
        runner.run(&start).await?;
        runner.run(&WaitReady { context }).await?;
        Ok(installed)
    }
}

#[cfg(test)]
mod tests {
    use orch_contract::{ClusterKeys, Outcome};
    use orch_runner::Recorder;
    use orch_ssh::keys::ensure_cluster_keys;

    use super::*;
    use crate::system::{Services, sha256_hex};
    use crate::testing::{Machine, server_config};

    /// A server on a machine where everything that K3s itself does has happened.
    fn server() -> (Machine, NodeConfig, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        ensure_cluster_keys(&layout, &[]).unwrap();
        let machine = Machine::fit();
        let mut config = server_config();
        config.join.host_key = layout.host_key();
        let files = &machine.files;
        files.put("/etc/orch/authorized_keys", "", 0o600);
        files.put("/opt/orch-provision", "program", 0o755);
        files.put("/var/lib/orch/artifacts/k3s", "BIN", 0o644);
        files.put(
            "/var/lib/orch/artifacts/sha256sum-amd64.txt",
            &format!("{}  k3s\n", sha256_hex(b"BIN")),
            0o644,
        );
        files.put(
            "/var/lib/rancher/k3s/agent/etc/cni/net.d/1.conflist",
            r#"{"plugins":[{"type":"bridge"}]}"#,
            0o600,
        );
        *machine.endpoints.status.lock().unwrap() = Some("200 OK".to_owned());
        machine
            .commands
            .answer("/usr/local/bin/k3s", 0, "k3s version v1.34.2+k3s1\n");
        machine.commands.answer(
            "/usr/local/bin/.k3s.orch-new",
            0,
            "k3s version v1.34.2+k3s1\n",
        );
        machine.commands.answer(
            "/usr/local/bin/k3s kubectl",
            0,
            r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#,
        );
        (machine, config, directory)
    }

    async fn up(machine: &Machine, config: &NodeConfig, dry_run: bool) -> Vec<Event> {
        let recorder = Recorder::default();
        let up = Up {
            context: machine.context(config),
            program: "/opt/orch-provision".into(),
            config_path: "/etc/orch/node.json".into(),
            is_root: true,
        };
        up.run(&recorder, dry_run).await.unwrap();
        recorder.events()
    }

    fn names(events: &[Event], pick: impl Fn(&Event) -> Option<&String>) -> Vec<String> {
        events
            .iter()
            .filter_map(|event| pick(event).cloned())
            .collect()
    }

    fn applied(events: &[Event]) -> Vec<String> {
        names(events, |event| match event {
            Event::StepApplied { step, .. } => Some(step),
            _ => None,
        })
    }

    fn outcome(events: &[Event]) -> Outcome {
        match events.last() {
            Some(Event::Summary { outcome, .. }) => *outcome,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_server_comes_up_in_order_and_a_second_run_changes_nothing() {
        let (machine, config, _directory) = server();
        let events = up(&machine, &config, false).await;
        let started = names(&events, |event| match event {
            Event::StepStarted { step, .. } => Some(step),
            _ => None,
        });
        assert_eq!(started, SERVER_STEPS);
        assert_eq!(outcome(&events), Outcome::Changed);
        assert!(
            events
                .iter()
                .any(|event| matches!(event, Event::NodeReady { .. }))
        );
        machine.files.take_writes();
        machine.services.take_done();
        let events = up(&machine, &config, false).await;
        assert_eq!(applied(&events), Vec::<String>::new());
        assert_eq!(outcome(&events), Outcome::Unchanged);
        assert!(machine.files.take_writes().is_empty());
        assert!(machine.services.take_done().is_empty());
    }

    #[tokio::test]
    async fn a_changed_setting_restarts_k3s_and_nothing_else() {
        let (machine, mut config, _directory) = server();
        up(&machine, &config, false).await;
        machine.services.take_done();
        config.k3s.disable = vec!["traefik".to_owned()];
        let events = up(&machine, &config, false).await;
        assert_eq!(applied(&events), ["write_config", "start_server"]);
        assert_eq!(machine.services.take_done(), ["restart k3s.service"]);
    }

    #[tokio::test]
    async fn a_dry_run_says_what_a_run_would_do_and_does_nothing() {
        let (machine, mut config, _directory) = server();
        up(&machine, &config, false).await;
        machine.files.take_writes();
        machine.services.take_done();
        config.k3s.disable = vec!["traefik".to_owned()];
        let events = up(&machine, &config, true).await;
        let planned = names(&events, |event| match event {
            Event::StepPlanned { step, .. } => Some(step),
            _ => None,
        });
        assert_eq!(planned, ["write_config", "start_server"]);
        assert_eq!(outcome(&events), Outcome::Planned);
        assert!(machine.files.take_writes().is_empty());
        assert!(machine.services.take_done().is_empty());
        assert!(
            machine
                .services
                .state("k3s.service")
                .await
                .unwrap()
                .is_active()
        );
    }
}
