//! Which exit code a failure of the image pipeline leads to.

use crate::exit::{Exit, WithExit as _};
use crate::images::ImageError;
use crate::images::attest::AttestError;

/// The exit code of each kind of failure.
fn exit_of(error: &ImageError) -> Exit {
    match error {
        ImageError::Component(_)
        | ImageError::Input(_)
        | ImageError::Pin(_)
        | ImageError::Lock(_) => Exit::Input,
        ImageError::Namespace { .. } | ImageError::NoStandIn { .. } => Exit::Input,
        ImageError::Attest(AttestError::Stale { .. }) => Exit::SourceChanged,
        ImageError::Attest(
            AttestError::Key(_) | AttestError::NotPushed { .. } | AttestError::Elsewhere { .. },
        ) => Exit::Input,
        ImageError::Attest(_) => Exit::Registry,
        ImageError::Base(_) | ImageError::Build(_) => Exit::Build,
        ImageError::Engine(_) | ImageError::Layer(_) => Exit::Host,
        ImageError::Registry(_) => Exit::Registry,
        ImageError::Gc(error) => super::images_gc::exit_of(error),
    }
}

/// The result of `doing`; a failure has the exit code of its kind.
pub(super) fn coded_while<T>(doing: &str, result: Result<T, ImageError>) -> anyhow::Result<T> {
    result.or_else(|error| {
        let exit = exit_of(&error);
        Err(error).exit(exit, doing)
    })
}

/// [`coded_while`] for commands that do several things, of which the error's kind tells the one that failed.
pub(super) fn coded<T>(result: Result<T, ImageError>) -> anyhow::Result<T> {
    let doing = match result.as_ref().err().map(exit_of) {
        Some(Exit::Build) => "building images",
        Some(Exit::Registry) => "talking to the registry",
        _ => "preparing images",
    };
    coded_while(doing, result)
}
