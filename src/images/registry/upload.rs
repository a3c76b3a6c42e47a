//! One blob into one repository, whatever happens on the way.
//!
//! A small blob is one POST and one PUT. A large one goes in pieces, so that a broken connection costs a piece: the registry is
//! asked how far it got and the upload goes on from there.

use super::retry::Policy;
use super::{Blob, BlobSource, Mount, Registry, RegistryError, Session};
use crate::images::event::Reporter;

/// Up to this many bytes go in one request, and larger blobs in pieces of it. Above S3's smallest part of 5 MiB, below the
/// limit of common proxies.
pub const PIECE: u64 = 32 * 1024 * 1024;

/// HTTP: the offset is not where the registry stands.
const RANGE_NOT_SATISFIABLE: u16 = 416;
/// HTTP: the registry does not know the upload.
const NOT_FOUND: u16 = 404;

/// How a blob came into the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its bytes were sent.
    Sent,
    /// Another repository of the same registry had it.
    Mounted,
}

/// Brings `blob` into `repository`, from `mount_from` if the registry can.
pub async fn upload(
    registry: &dyn Registry,
    repository: &str,
    blob: &Blob,
    mount_from: Option<&str>,
    policy: Policy,
    reporter: &dyn Reporter,
) -> Result<Outcome, RegistryError> {
    if let BlobSource::File(path) = &blob.source {
        let read = |source| RegistryError::Blob {
            operation: format!("sending blob {}", blob.digest),
            path: path.clone(),
            source,
        };
        let length = tokio::fs::metadata(path).await.map_err(read)?.len();
        if length != blob.size {
            return Err(read(std::io::Error::other(format!(
                "it has {length} bytes instead of {}",
                blob.size
            ))));
        }
    }
    let mut session = match mount_from {
        Some(from) => match registry.mount_blob(repository, &blob.digest, from).await? {
            Mount::Mounted => return Ok(Outcome::Mounted),
            Mount::Session(session) => session,
            Mount::Refused => registry.start_upload(repository).await?,
        },
        None => registry.start_upload(repository).await?,
    };
    let mut offset = 0;
    let mut attempt = 1;
    // Patience starts again with every new piece, but not with one that had to be sent again: an end must come.
    let mut furthest = 0;
    loop {
        let Err(error) = send(registry, &mut session, blob, &mut offset).await else {
            return Ok(Outcome::Sent);
        };
        if offset > furthest {
            (furthest, attempt) = (offset, 1);
        }
        let lost = matches!(
            error,
            RegistryError::Status {
                status: RANGE_NOT_SATISFIABLE | NOT_FOUND,
                ..
            }
        );
        if lost && attempt < policy.attempts {
            (session, offset) = (registry.start_upload(repository).await?, 0);
        } else {
            policy.wait(attempt, error, reporter).await?;
            match registry.upload_status(&session).await? {
                Some((resumed, received)) => (session, offset) = (resumed, received.min(blob.size)),
                // Closed by the request whose answer was lost, or forgotten.
                None if registry.head_blob(repository, &blob.digest).await? => {
                    return Ok(Outcome::Sent);
                }
                None => (session, offset) = (registry.start_upload(repository).await?, 0),
            }
        }
        attempt += 1;
    }
}

/// Sends what is missing from `offset` and closes the upload.
async fn send(
    registry: &dyn Registry,
    session: &mut Session,
    blob: &Blob,
    offset: &mut u64,
) -> Result<(), RegistryError> {
    if *offset == 0 && blob.size <= PIECE {
        return registry.finish_upload(session, blob, true).await;
    }
    while *offset < blob.size {
        let length = PIECE.min(blob.size - *offset);
        *session = registry
            .patch_upload(session, blob, *offset, length)
            .await?;
        *offset += length;
    }
    registry.finish_upload(session, blob, false).await
}
