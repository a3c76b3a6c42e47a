//! Nodes over SSH: finds out how each is reached, connects, runs commands, brings files.
//!
//! Boundary: knows nothing of machines, clusters or orch.yaml, and prints nothing. How a host is reached is what OpenSSH's
//! own configuration says (`ssh -G`); the connection itself is ours, one for a node with many channels, so that errors have
//! reasons instead of an exit status. Two rules are stricter than OpenSSH's: a host key is always verified, whatever
//! `StrictHostKeyChecking` says, and no list of known hosts is ever written.

mod authenticate;
mod command;
mod connection;
mod dial;
mod error;
mod execute;
mod feed;
mod hop;
mod host_key_pin;
mod host_keys;
mod identities;
mod jump;
mod known_hosts;
mod leash;
mod lines;
mod private_files;
mod privilege;
mod reach;
mod resolve;
mod session;
pub mod shell;
mod ssh_config;
mod target;
mod upload;

pub use self::command::{Command, Exit, Output};
pub use self::connection::{Connection, connect};
pub use self::error::{Reason, RemoteError};
pub use self::host_key_pin::{HostKeyPin, HostKeyPinError};
pub use self::private_files::PrivateFile;
pub use self::privilege::{Privilege, SudoPassword, SudoPasswordError};
pub use self::resolve::{Environment, resolve, resolve_in};
pub use self::target::{Limits, Target, Wanted};
pub use self::upload::Uploaded;
pub use crate::process::Stream;
