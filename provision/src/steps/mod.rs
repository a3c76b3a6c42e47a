//! The steps of `orch-provision up`, one file each, in the order of `commands/up.rs`.

mod acquire_k3s;
mod check_host;
mod make_volumes;
mod mount_storage;
mod prepare_host;
mod request_join;
mod serve_join;
mod start_k3s;
mod wait_ready;
mod write_config;
mod write_units;

pub(crate) use acquire_k3s::{AcquireK3s, InstalledK3s};
pub(crate) use check_host::{CheckHost, HostFacts};
pub(crate) use make_volumes::MakeVolumes;
pub(crate) use mount_storage::{MountStorage, mount_unit_name};
pub(crate) use prepare_host::PrepareHost;
pub(crate) use request_join::{Membership, RequestJoin};
pub(crate) use serve_join::ServeJoin;
pub(crate) use start_k3s::StartK3s;
pub(crate) use wait_ready::WaitReady;
pub(crate) use write_config::WriteConfig;
pub(crate) use write_units::WriteUnits;

use orch_contract::NodeConfig;

use crate::system::System;

/// What every step works with.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) system: System<'a>,
    pub(crate) config: &'a NodeConfig,
}
