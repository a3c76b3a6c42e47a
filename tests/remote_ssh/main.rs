//! orch's SSH transport against real OpenSSH servers: on this machine's loopback, and behind one another in network
//! namespaces. Needs root, OpenSSH, iproute2 and sudo; nothing of this machine's own SSH configuration is read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod commands;
mod files;
mod host_keys;
mod hostile;
mod login;
mod network;
mod nodes;
mod privilege;
mod snapshots;
mod support;
