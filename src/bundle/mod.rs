//! Bundles: everything that a cluster is made from in one file, for places without a network.
//!
//! A bundle is a tar archive in one zstd frame, and after it a frame that decompressors pass over, with the checksum of all
//! before: zstd can say the same in more than one way, and a bundle has one. The archive's first member is the checksum of the second, `bundle.json`, which lists all
//! others with size and SHA-256 in the order in which they follow ([`contents`]). [`write`] makes one, [`read`] takes nothing
//! that the list does not announce, [`unpack`] puts it into a folder that is whole or absent, [`layout`] is the form that
//! containerd imports images from, [`unpacked`] finds one again. Boundary: files and bytes; knows no registry, machine or cluster.

pub mod contents;
pub mod layout;
pub mod read;
mod tape;
pub mod unpack;
pub mod unpacked;
pub mod write;

use std::path::PathBuf;

/// The member that is read first: what `bundle.json` must hash to, in sha256sum(1)'s format.
const CHECKSUM: &str = "bundle.sha256";
/// The member that announces all others.
const CONTENTS: &str = "bundle.json";
/// More than any list of members needs, and little enough to hold.
const LONGEST_CONTENTS: u64 = 16 * 1024 * 1024;

/// How the last frame starts: the first of zstd's magic numbers for frames to be skipped, and the length of a SHA-256.
const TRAILER: [u8; 8] = [0x50, 0x2a, 0x4d, 0x18, 32, 0, 0, 0];
/// Bytes of the last frame.
const TRAILER_LENGTH: u64 = TRAILER.len() as u64 + 32;

/// Why there is no bundle, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A member is not what was announced, or cannot be read.
    #[error(
        "{bundle}: {member}: {reason}; nothing of it was used. Copy the bundle again, or make it anew with `orch bundle create`"
    )]
    Damaged {
        bundle: PathBuf,
        /// The member, or where in the file the damage was met.
        member: String,
        reason: String,
    },
    /// A bundle that this orch does not read.
    #[error(
        "{bundle} has format {found}, and this orch reads {}; use the orch that made it (bin/orch in the bundle, where it has one)",
        contents::SCHEMA
    )]
    Format { bundle: PathBuf, found: u64 },
    /// Contents that no reader would take.
    #[error("cannot put {path} into a bundle: {reason}")]
    Refused { path: String, reason: String },
    /// A file that became another one on the way into the bundle.
    #[error(
        "{path} is not what it was when its checksum was taken ({reason}): run the same command again"
    )]
    Changed { path: String, reason: String },
    /// A folder that holds something else.
    #[error("{folder} {what}; name another folder with --into")]
    Occupied { folder: PathBuf, what: String },
    /// Somebody else is at it.
    #[error("another orch unpacks {bundle}; run the same command again when it is done")]
    InUse { bundle: PathBuf },
    /// Ctrl-C, or the caller lost interest.
    #[error("stopped; nothing is left of it")]
    Stopped,
    #[error("cannot {operation}")]
    Io {
        operation: String,
        source: std::io::Error,
    },
}

fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> BundleError {
    let operation = operation.into();
    move |source| BundleError::Io { operation, source }
}
