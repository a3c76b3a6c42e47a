//! The right to talk to the Docker engine, for a user who has sudo and is not in the engine's group yet.
//!
//! Membership begins with the next login, and lasting membership is as good as root, so it is left to the user. The group is
//! added to this one run instead.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Access, access};
use rustix::process::{getegid, geteuid, getgroups};

use crate::process::find_program;

/// Where a local engine listens.
const SOCKET: &str = "/var/run/docker.sock";
/// Set in the run that has the group, so that it cannot go round in circles.
const MARK: &str = "ORCH_WITH_DOCKER_GROUP";

/// Whether a local engine is there, its socket's permissions keep this user out, and [`enter`] may help.
pub fn is_needed() -> bool {
    std::env::var_os("DOCKER_HOST").is_none()
        && std::env::var_os(MARK).is_none()
        && Path::new(SOCKET).exists()
        && access(SOCKET, Access::WRITE_OK).is_err()
        && find_program("sudo").is_some()
}

/// Becomes the same command with the socket's group among its groups. Returns only when that fails.
pub fn enter() -> std::io::Error {
    try_enter().map_or_else(|error| error, |never| match never {})
}

fn try_enter() -> std::io::Result<std::convert::Infallible> {
    let program = std::env::current_exe()?;
    let socket = std::fs::metadata(SOCKET)?;
    let groups: Vec<String> = getgroups()
        .unwrap_or_default()
        .into_iter()
        .map(|group| group.as_raw().to_string())
        .chain([socket.gid().to_string()])
        .collect();
    let variable = |name: &str| {
        let mut text = OsString::from(format!("{name}="));
        text.push(std::env::var_os(name).unwrap_or_default());
        text
    };
    Err(Command::new("sudo")
        .args(["--preserve-env", "--", "setpriv"])
        .arg(format!("--reuid={}", geteuid().as_raw()))
        .arg(format!("--regid={}", getegid().as_raw()))
        .arg(format!("--groups={}", groups.join(",")))
        // sudo sets these whatever it is told to preserve.
        .args(["env", "-u", "SUDO_COMMAND"])
        .args(["PATH", "HOME", "USER", "LOGNAME"].map(variable))
        .arg(format!("{MARK}=1"))
        .arg(program)
        .args(std::env::args_os().skip(1))
        .exec())
}
