//! The stand-in for K3s: built from its sources with the host's Go, kept in the cache.

use std::path::PathBuf;

use super::{ArtifactError, Request, io};
use crate::process::Program;
use crate::progress::Progress;

/// Builds it unless the cache has what these sources make; the script itself decides that.
pub(super) async fn build(
    request: &Request<'_>,
    reason: &str,
    progress: &dyn Progress,
) -> Result<PathBuf, ArtifactError> {
    let script = request.standin.join("build.sh");
    let directory = request.cache.join("k3s-standin");
    if !script.exists() {
        return Err(ArtifactError::Incomplete {
            directory: request.standin.to_owned(),
            asset: "build.sh of the stand-in for K3s".into(),
        });
    }
    std::fs::create_dir_all(&directory).map_err(io(format!("make {}", directory.display())))?;
    Program::new(script)
        .args([&directory])
        .lines(|_, line| progress.note(line))
        .await
        .map_err(|source| ArtifactError::Standin {
            reason: reason.to_owned(),
            source,
        })?;
    Ok(directory)
}
