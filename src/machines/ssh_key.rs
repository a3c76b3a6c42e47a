//! The key that Vagrant's docker machines are reached with: one a cluster, made by ssh-keygen(1).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{MachineError, io};
use crate::process::Program;

/// Makes `<directory>/id_ed25519` and `<directory>/node/authorized_keys` unless they exist.
pub(super) async fn ensure(directory: &Path) -> Result<(), MachineError> {
    let key = directory.join("id_ed25519");
    let node = directory.join("node");
    std::fs::create_dir_all(&node).map_err(io(format!("make {}", node.display())))?;
    if !key.exists() {
        Program::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "vagrant", "-f"])
            .args([&key])
            .run()
            .await
            .map_err(|error| MachineError::Io {
                operation: format!("make the key {}", key.display()),
                source: std::io::Error::other(error),
            })?;
    }
    let authorized = node.join("authorized_keys");
    let public = key.with_extension("pub");
    let partial = node.join(".authorized_keys");
    std::fs::copy(&public, &partial)
        .and_then(|_| std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o644)))
        .and_then(|()| std::fs::rename(&partial, &authorized))
        .map_err(io(format!("write {}", authorized.display())))
}
