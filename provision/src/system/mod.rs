//! Access to the machine, behind small traits so that steps can be tested without one.
//!
//! Fakes live beside their traits and are passed in; nothing here knows K3s.

mod commands;
mod download;
mod endpoints;
mod files;
mod services;

pub(crate) use commands::{CommandError, Commands, Invocation, Processes};
#[cfg(test)]
pub(crate) use commands::{FakeCommands, Finished};
#[cfg(test)]
pub(crate) use download::FakeDownload;
pub(crate) use download::{Download, DownloadError, Https};
#[cfg(test)]
pub(crate) use endpoints::FakeEndpoints;
pub(crate) use endpoints::{Endpoints, Sockets};
pub(crate) use files::{Disk, FileError, Files, Staged, sha256_hex};
#[cfg(test)]
pub(crate) use files::{MemoryFiles, Space, temporary};
#[cfg(test)]
pub(crate) use services::FakeServices;
pub(crate) use services::{Services, Systemd, UnitState};

/// The machine that steps work on.
#[derive(Clone, Copy)]
pub(crate) struct System<'a> {
    pub(crate) files: &'a dyn Files,
    pub(crate) commands: &'a dyn Commands,
    pub(crate) services: &'a dyn Services,
    pub(crate) download: &'a dyn Download,
    pub(crate) endpoints: &'a dyn Endpoints,
}
