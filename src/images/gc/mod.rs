//! Garbage collection by reachability: which images of this project a registry holds that nobody can need any more.
//!
//! [`roots`] gathers what is named in files, branches and clusters, [`history`] the repositories of components that are gone,
//! [`inventory`] what a repository holds, [`decide`] compares without asking anybody, and [`sweep`] deletes. Boundary: knows no cluster; what one runs is passed in as text.

pub mod decide;
mod git;
pub mod history;
pub mod inventory;
pub mod roots;
pub mod sweep;

use std::path::PathBuf;

/// What is reachable could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// No git repository.
    #[error(
        "{root} is in no git repository, so that nobody knows which images other branches need: run it in a clone, or with \
         --no-git to go by the files here alone ({reason})"
    )]
    NoGit {
        /// The project's folder.
        root: PathBuf,
        /// Git's words.
        reason: String,
    },
    /// A shallow clone.
    #[error(
        "{root} is a shallow clone, which may lack branches: run `git fetch --unshallow`, or use --no-git to go by the files \
         here alone"
    )]
    Shallow {
        /// The project's folder.
        root: PathBuf,
    },
    /// A remote repository has branches that this one has not.
    #[error(
        "the remote `{remote}` has {branch}, which this clone has not seen and which may need images: run `git fetch {remote} \
         '+refs/heads/*:refs/remotes/{remote}/*' --tags`, or use --no-remote to go by the branches here"
    )]
    Behind {
        /// The remote.
        remote: String,
        /// The first branch or tag that is missing.
        branch: String,
    },
    /// A remote repository does not answer.
    #[error(
        "cannot ask the remote `{remote}` for its branches ({reason}): check the network and the login, or use --no-remote to \
         go by the branches here"
    )]
    Remote {
        /// The remote.
        remote: String,
        /// Git's words.
        reason: String,
    },
    /// Git failed.
    #[error(
        "`git {command}` failed in {folder}, so that nobody knows which images are needed, and none was deleted ({reason}): \
         repair what git complains about (`git fsck` and `git config --list --show-origin` help to find it), and run the \
         command again"
    )]
    Git {
        /// Its arguments.
        command: String,
        /// Where it ran.
        folder: PathBuf,
        /// Its words.
        reason: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}, which may name images that are needed")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// `--protect` with something that is neither.
    #[error(
        "--protect {value}: neither a digest (sha256: and 64 hexadecimal digits) nor a tag that orch makes (in- and 12)"
    )]
    Keep {
        /// What was given.
        value: String,
    },
}
