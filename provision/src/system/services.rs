//! Services: systemd, asked and told through its own programs.

use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use super::{CommandError, Commands, Invocation};

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct UnitState {
    /// `active`, `activating`, `inactive`, `failed`, ...
    pub(crate) active: String,
    /// `running`, `auto-restart`, `dead`, ...
    pub(crate) sub: String,
    /// `enabled`, `disabled`, empty where there is no such unit.
    pub(crate) enabled: String,
    /// How often systemd restarted it by itself since it was started.
    pub(crate) restarts: u32,
    /// A start or stop that was asked for has not been done yet: what else is said here is old.
    pub(crate) has_job: bool,
    /// The unit's files have changed since systemd read them.
    pub(crate) needs_reload: bool,
    /// Since when it has been active.
    pub(crate) since: Option<Timestamp>,
    /// The service's main process, while there is one.
    pub(crate) main_process: Option<u32>,
}

impl UnitState {
    pub(crate) fn is_active(&self) -> bool {
        self.active == "active" && !self.has_job
    }

    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled == "enabled"
    }
}

/// The service manager.
#[async_trait]
pub(crate) trait Services: Send + Sync {
    async fn reload(&self) -> Result<(), CommandError>;

    async fn enable(&self, unit: &str) -> Result<(), CommandError>;

    /// Asks for a (re)start and returns at once: K3s's units have no start timeout of their own.
    async fn begin_restart(&self, unit: &str) -> Result<(), CommandError>;

    /// Stops and disables; a unit that does not exist is as good as stopped.
    async fn stop(&self, unit: &str) -> Result<(), CommandError>;

    async fn state(&self, unit: &str) -> Result<UnitState, CommandError>;

    /// Messages of a unit since a moment, oldest first, at most `lines`.
    async fn journal(
        &self,
        unit: &str,
        since: Timestamp,
        lines: u32,
    ) -> Result<Vec<String>, CommandError>;
}

/// systemctl and journalctl.
#[derive(Clone, Copy)]
pub(crate) struct Systemd<'a> {
    commands: &'a dyn Commands,
}

impl<'a> Systemd<'a> {
    pub(crate) fn new(commands: &'a dyn Commands) -> Self {
        Self { commands }
    }

    async fn systemctl<const N: usize>(&self, arguments: [&str; N]) -> Result<(), CommandError> {
        let invocation = Invocation::new("systemctl", arguments);
        self.commands.run_ok(&invocation).await.map(|_| ())
    }
}

#[async_trait]
impl Services for Systemd<'_> {
    async fn reload(&self) -> Result<(), CommandError> {
        self.systemctl(["daemon-reload"]).await
    }

    async fn enable(&self, unit: &str) -> Result<(), CommandError> {
        self.systemctl(["enable", unit]).await
    }

    async fn begin_restart(&self, unit: &str) -> Result<(), CommandError> {
        // A unit that failed too often is refused until it is forgiven.
        let forgive = Invocation::new("systemctl", ["reset-failed", unit]);
        self.commands.run(&forgive).await?;
        self.systemctl(["restart", "--no-block", unit]).await
    }

    async fn stop(&self, unit: &str) -> Result<(), CommandError> {
        let state = self.state(unit).await?;
        if !state.enabled.is_empty() {
            let invocation = Invocation::new("systemctl", ["disable", "--now", unit])
                .timeout(Duration::from_secs(120));
            self.commands.run_ok(&invocation).await?;
        }
        // A unit that failed is remembered as such, even when its file is gone.
        let forget = Invocation::new("systemctl", ["reset-failed", unit]);
        self.commands.run(&forget).await.map(|_| ())
    }

    async fn state(&self, unit: &str) -> Result<UnitState, CommandError> {
        let invocation = Invocation::new(
            "systemctl",
            [
                "show",
                "--property=ActiveState,SubState,UnitFileState,NRestarts,Job,NeedDaemonReload,MainPID,ActiveEnterTimestampMonotonic",
                unit,
            ],
        );
        let shown = self.commands.run_ok(&invocation).await?;
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let monotonic = SignedDuration::from_secs(monotonic.tv_sec);
        Ok(parse_show(&shown.text(), Timestamp::now() - monotonic))
    }

    async fn journal(
        &self,
        unit: &str,
        since: Timestamp,
        lines: u32,
    ) -> Result<Vec<String>, CommandError> {
        let invocation = Invocation::new(
            "journalctl",
            [
                "--no-pager".to_owned(),
                "--output=cat".to_owned(),
                format!("--unit={unit}"),
                format!("--since=@{}", since.as_second()),
                format!("--lines={lines}"),
            ],
        );
        let shown = self.commands.run_ok(&invocation).await?;
        Ok(shown.text().lines().map(str::to_owned).collect())
    }
}

/// `monotonic_zero` is when the clock that systemd counts moments with was zero.
fn parse_show(text: &str, monotonic_zero: Timestamp) -> UnitState {
    let mut state = UnitState::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "ActiveState" => state.active = value.to_owned(),
            "SubState" => state.sub = value.to_owned(),
            "UnitFileState" => state.enabled = value.to_owned(),
            "Job" => state.has_job = !["", "0"].contains(&value),
            "NeedDaemonReload" => state.needs_reload = value == "yes",
            "MainPID" => state.main_process = value.parse().ok().filter(|id| *id != 0),
            "ActiveEnterTimestampMonotonic" => {
                let microseconds = value.parse().ok().filter(|entered| *entered > 0);
                state.since = microseconds.and_then(|entered| {
                    let since = monotonic_zero.checked_add(SignedDuration::from_micros(entered));
                    since.ok()?.round(jiff::Unit::Second).ok()
                });
            }
            "NRestarts" => state.restarts = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    state
}

#[cfg(test)]
pub(crate) use fake::FakeServices;

#[cfg(test)]
mod fake {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// Units that become what they are told to, at once, unless told otherwise.
    #[derive(Debug, Default)]
    pub(crate) struct FakeServices {
        units: Mutex<BTreeMap<String, UnitState>>,
        done: Mutex<Vec<String>>,
        pub(crate) after_start: Mutex<Option<UnitState>>,
        pub(crate) journal: Mutex<Vec<String>>,
    }

    impl FakeServices {
        pub(crate) fn take_done(&self) -> Vec<String> {
            std::mem::take(&mut self.done.lock().unwrap())
        }

        fn note(&self, text: String) {
            self.done.lock().unwrap().push(text);
        }
    }

    #[async_trait]
    impl Services for FakeServices {
        async fn reload(&self) -> Result<(), CommandError> {
            self.note("reload".to_owned());
            Ok(())
        }

        async fn enable(&self, unit: &str) -> Result<(), CommandError> {
            self.note(format!("enable {unit}"));
            let mut units = self.units.lock().unwrap();
            units.entry(unit.to_owned()).or_default().enabled = "enabled".to_owned();
            Ok(())
        }

        async fn begin_restart(&self, unit: &str) -> Result<(), CommandError> {
            self.note(format!("restart {unit}"));
            let started = self.after_start.lock().unwrap().clone();
            let mut units = self.units.lock().unwrap();
            let state = units.entry(unit.to_owned()).or_default();
            let enabled = std::mem::take(&mut state.enabled);
            *state = started.unwrap_or(UnitState {
                active: "active".to_owned(),
                sub: "running".to_owned(),
                ..UnitState::default()
            });
            state.enabled = enabled;
            Ok(())
        }

        async fn stop(&self, unit: &str) -> Result<(), CommandError> {
            self.note(format!("stop {unit}"));
            self.units.lock().unwrap().remove(unit);
            Ok(())
        }

        async fn state(&self, unit: &str) -> Result<UnitState, CommandError> {
            let units = self.units.lock().unwrap();
            Ok(units.get(unit).cloned().unwrap_or_default())
        }

        async fn journal(
            &self,
            _unit: &str,
            _since: Timestamp,
            _lines: u32,
        ) -> Result<Vec<String>, CommandError> {
            Ok(self.journal.lock().unwrap().clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::FakeCommands;
    use super::*;

    #[tokio::test]
    async fn the_state_of_a_unit_is_read() {
        let commands = FakeCommands::default();
        commands.answer(
            "systemctl show",
            0,
            "ActiveState=activating\nSubState=auto-restart\nUnitFileState=enabled\nNRestarts=7\n",
        );
        let state = Systemd::new(&commands).state("k3s.service").await.unwrap();
        assert_eq!(state.sub, "auto-restart");
        assert_eq!(state.restarts, 7);
        assert!(state.is_enabled() && !state.is_active());
    }

    #[test]
    fn an_active_unit_with_a_job_is_the_old_one() {
        let zero = Timestamp::UNIX_EPOCH;
        assert!(!parse_show("ActiveState=active\nJob=175\n", zero).is_active());
        assert!(parse_show("ActiveState=active\nJob=\n", zero).is_active());
    }

    #[test]
    fn the_moment_it_became_active_is_told_by_the_wall_clock() {
        let zero = Timestamp::from_second(1_800_000_000).unwrap();
        let state = parse_show("MainPID=7\nActiveEnterTimestampMonotonic=61000000\n", zero);
        assert_eq!(state.since, Timestamp::from_second(1_800_000_061).ok());
        assert_eq!(state.main_process, Some(7));
        let state = parse_show("MainPID=0\nActiveEnterTimestampMonotonic=0\n", zero);
        assert_eq!((state.since, state.main_process), (None, None));
    }

    #[tokio::test]
    async fn a_unit_that_does_not_exist_need_not_be_stopped() {
        let commands = FakeCommands::default();
        commands.answer(
            "systemctl show",
            0,
            "ActiveState=inactive\nUnitFileState=\n",
        );
        commands.answer("systemctl reset-failed k3s.service", 1, "");
        Systemd::new(&commands).stop("k3s.service").await.unwrap();
        assert_eq!(commands.asked().len(), 2);
    }
}
