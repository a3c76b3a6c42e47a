//! Free disk space.

use std::path::Path;

use super::{Finding, HostError};

/// An error unless `mib` are free where `path` lies; `hint` is the rest of its advice.
pub(super) fn require(path: &Path, mib: u64, hint: &'static str) -> Result<Finding, HostError> {
    let free_mib = free_mib(path)?;
    if free_mib < mib {
        return Err(HostError::DiskFull {
            path: path.to_owned(),
            free_mib,
            needed_mib: mib,
            hint,
        });
    }
    Ok(Finding::Present(format!("{free_mib} MiB free")))
}

/// Free MiB for an unprivileged user where `path`, or its nearest parent that exists, lies.
fn free_mib(path: &Path) -> Result<u64, HostError> {
    let existing = path
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing).map_err(|error| HostError::Io {
        operation: format!("ask for the free space of {}", existing.display()),
        source: error.into(),
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) / (1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_exist_yet_is_measured_at_its_parent() {
        assert!(free_mib(Path::new("/tmp/orch/not/there")).unwrap() > 0);
    }
}
