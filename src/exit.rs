//! Exit codes, decided in one place and documented in the README.

/// What the process tells its caller. The numbers are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Something nobody foresaw.
    Unexpected = 1,
    /// `cluster plan`, or a dry run of another `cluster` command: something would be changed, and nothing was.
    Changes = 2,
    /// `orch.yaml`, a Dockerfile or a manifest is wrong.
    Input = 3,
    /// This host lacks something: a tool, a port, disk space, a privilege.
    Host = 4,
    /// A machine did not come up or could not be provisioned.
    Machine = 5,
    /// An image did not build.
    Build = 6,
    /// The registry refused or could not be reached.
    Registry = 7,
    /// The cluster refused the manifests or a rollout did not finish.
    Apply = 8,
    /// `images check`: a component's sources changed since it was pinned.
    SourceChanged = 10,
    /// `images check`: a manifest names an image without a digest.
    Unpinned = 11,
    /// `images check`: the registry does not have a pinned digest.
    PinMissing = 12,
    /// `images check`: a tag leads to another digest than the pinned one.
    TagMoved = 13,
    /// `images reproduce`: two builds of the same sources differ.
    NotReproducible = 14,
    /// `images verify`: an image is not signed by the key.
    Unsigned = 15,
    /// The command line is wrong (EX_USAGE of sysexits.h).
    Usage = 64,
    /// Stopped by Ctrl-C; run the same command again to go on.
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error together with the exit code it leads to. Commands attach it; `main` reads it.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Coded {
    pub exit: Exit,
    context: String,
    #[source]
    source: anyhow::Error,
}

/// Attaches an exit code to a result.
pub trait WithExit<T> {
    /// `context` says which step failed; the chain below it says why.
    fn exit(self, exit: Exit, context: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithExit<T> for Result<T, E> {
    fn exit(self, exit: Exit, context: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| {
            anyhow::Error::new(Coded {
                exit,
                context: context.into(),
                source: error.into(),
            })
        })
    }
}

/// Shows what the parser says, and ends as it should: help and version are no mistakes.
pub fn usage(error: &clap::Error) -> Exit {
    // A reader that has gone away needs no message.
    let _ = error.print();
    if error.use_stderr() {
        Exit::Usage
    } else {
        Exit::Success
    }
}

/// The outermost code in the chain, or [`Exit::Unexpected`].
pub fn of(error: &anyhow::Error) -> Exit {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Coded>())
        .map_or(Exit::Unexpected, |coded| coded.exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_survives_more_context() {
        let result: Result<(), _> = Err(std::io::Error::other("disk"));
        let error = result
            .exit(Exit::Host, "checking this host")
            .map_err(|e| e.context("create"))
            .unwrap_err();
        assert_eq!(of(&error), Exit::Host);
        assert_eq!(format!("{error:#}"), "create: checking this host: disk");
    }

    #[test]
    fn an_unforeseen_error_is_one() {
        assert_eq!(of(&anyhow::anyhow!("x")), Exit::Unexpected);
    }
}
