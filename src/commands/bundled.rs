//! A project that came out of a bundle: its K3s, provisioner and images are beside orch.yaml, and no network is asked for them.

use std::collections::BTreeMap;

use super::Context;
use super::bundle::coded;
use crate::artifacts::{self, Artifacts, Policy, Source};
use crate::bundle::BundleError;
use crate::bundle::unpacked::Unpacked;
use crate::exit::{Exit, WithExit as _};
use crate::progress::Progress;

/// What the project was unpacked from.
pub(super) fn find(context: &Context) -> anyhow::Result<Option<Unpacked>> {
    coded(
        Unpacked::find(context.project.root()),
        "looking for an unpacked bundle beside orch.yaml",
    )
}

/// Whether it was unpacked from one.
pub(super) fn is(context: &Context) -> anyhow::Result<bool> {
    Ok(find(context)?.is_some())
}

/// K3s and the archive of images, verified.
pub(super) async fn artifacts(
    context: &Context,
    unpacked: &Unpacked,
    progress: &dyn Progress,
) -> anyhow::Result<Artifacts> {
    let getting = "getting K3s from the bundle";
    let (wanted, k3s) = (&context.config.k3s, &unpacked.announced.contents.k3s);
    if wanted.version.value != k3s.version {
        return Err(anyhow::anyhow!(
            "orch.yaml asks for K3s {}, the bundle has {}",
            wanted.version.value,
            k3s.version
        ))
        .exit(
            Exit::Input,
            "put the version back, or install a bundle that was made with the other",
        );
    }
    let directory = unpacked.k3s();
    // The checksum file vouches for the others.
    coded(unpacked.check_k3s_sums(), getting)?;
    let request = artifacts::Request {
        version: &wanted.version.value,
        policy: Policy::Release,
        directory: Some(&directory),
        release_url: &wanted.release_url,
        cache: context.project.cache(),
        standin: &directory,
        standin_runs: false,
        locked: &BTreeMap::new(),
    };
    let acquired = artifacts::acquire(&request, progress).await;
    let mut artifacts = acquired.exit(Exit::Machine, getting)?;
    if k3s.standin {
        artifacts.source = Source::Standin {
            reason: "the bundle holds it".to_owned(),
        };
    }
    if !unpacked.announced.contents.images.is_empty() {
        let (path, sum) = unpacked.archive();
        coded(unpacked.check(&path), "checking the images of the bundle")?;
        artifacts.archives = vec![(path, sum)];
    }
    Ok(artifacts)
}

/// The provisioner, verified.
pub(super) fn provisioner(unpacked: &Unpacked) -> Result<std::path::PathBuf, BundleError> {
    let path = unpacked.provisioner();
    unpacked.check(&path)?;
    Ok(path)
}
