//! K3s's assets for this cluster, and their checksums in `images.lock`.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Context, bundled, publish};
use crate::artifacts::{self, Artifacts, Source};
use crate::config::K3sSource;
use crate::exit::{Exit, WithExit as _};
use crate::images::lock::Lock;
use crate::machines::Provider;
use crate::progress::Progress;

/// The step of its own that most commands begin with.
pub(super) async fn step(context: &Context) -> anyhow::Result<Artifacts> {
    let step = context.ui.step("artifacts");
    let artifacts = acquire(context, context.provider(), step.as_ref()).await?;
    step.done("verified");
    Ok(artifacts)
}

/// K3s's release assets, or the stand-in's, held from now on to the checksums that they have now.
pub(super) async fn acquire(
    context: &Context,
    provider: Provider,
    progress: &dyn Progress,
) -> anyhow::Result<Artifacts> {
    let artifacts = find(context, provider, progress).await?;
    hold(context, &artifacts)?;
    Ok(artifacts)
}

/// The same without a change to the project: for plans.
pub(super) async fn find(
    context: &Context,
    provider: Provider,
    progress: &dyn Progress,
) -> anyhow::Result<Artifacts> {
    if let Some(unpacked) = bundled::find(context)? {
        return bundled::artifacts(context, &unpacked, progress).await;
    }
    let k3s = &context.config.k3s;
    let directory = k3s.directory.as_ref().map(|path| context.path(path));
    let standin = context.path("ci/k3s-standin".as_ref());
    let lock = publish::lock_file(context);
    let locked = locked_sums(&lock, &k3s.version.value)?;
    let request = artifacts::Request {
        version: &k3s.version.value,
        policy: match k3s.source {
            K3sSource::Auto | K3sSource::Directory => artifacts::Policy::Any,
            K3sSource::Release => artifacts::Policy::Release,
            K3sSource::Standin => artifacts::Policy::Standin,
        },
        directory: directory
            .as_deref()
            .filter(|_| k3s.source == K3sSource::Directory),
        release_url: &k3s.release_url,
        cache: context.project.cache(),
        standin: &standin,
        standin_runs: cfg!(target_arch = "x86_64")
            && (provider == Provider::Docker || k3s.source == K3sSource::Standin),
        locked: &locked,
    };
    artifacts::acquire(&request, progress)
        .await
        .exit(Exit::Machine, "getting K3s")
}

/// Locks the checksums of a release that is used for the first time.
pub(super) fn hold(context: &Context, artifacts: &Artifacts) -> anyhow::Result<()> {
    let lock = publish::lock_file(context);
    let version = &context.config.k3s.version.value;
    let is_release = matches!(artifacts.source, Source::Release | Source::Cache);
    if is_release && locked_sums(&lock, version)?.is_empty() {
        lock_sums(&lock, version, &artifacts.sha256)?;
    }
    Ok(())
}

/// The key of `images.lock` under which K3s's checksums are kept: version, asset, sum.
const LOCK_KEY: &str = "k3s";

/// The sums that the first use of this version locked.
fn locked_sums(lock: &Path, version: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let lock = Lock::read(lock).exit(Exit::Input, "reading the lock")?;
    let sums = lock.other.get(LOCK_KEY).and_then(|k3s| k3s.get(version));
    sums.map_or_else(
        || Ok(BTreeMap::new()),
        |sums| {
            serde_json::from_value(sums.clone())
                .exit(Exit::Input, "reading K3s's checksums in the lock")
        },
    )
}

fn lock_sums(path: &Path, version: &str, sums: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let mut lock = Lock::read(path).exit(Exit::Input, "reading the lock")?;
    let mut versions: BTreeMap<String, serde_json::Value> = lock
        .other
        .remove(LOCK_KEY)
        .map_or_else(|| Ok(BTreeMap::new()), serde_json::from_value)?;
    versions.insert(version.to_owned(), serde_json::to_value(sums)?);
    lock.other
        .insert(LOCK_KEY.to_owned(), serde_json::to_value(versions)?);
    lock.write(path)
        .map(|_| ())
        .exit(Exit::Host, "locking K3s's checksums")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::{Output, Ui};

    #[test]
    fn sums_are_locked_for_their_version_and_nothing_else_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.lock");
        let sums = BTreeMap::from([("k3s".to_owned(), "ab".repeat(32))]);
        assert!(locked_sums(&path, "v1+k3s1").unwrap().is_empty());
        lock_sums(&path, "v1+k3s1", &sums).unwrap();
        lock_sums(&path, "v2+k3s1", &BTreeMap::new()).unwrap();
        assert_eq!(locked_sums(&path, "v1+k3s1").unwrap(), sums);
        assert!(Lock::read(&path).unwrap().components.is_empty());
    }

    #[test]
    fn a_release_is_held_to_its_first_sums_and_the_stand_in_to_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("orch.yaml");
        let text = "name: demo\nprovider: ssh\nk3s: { version: v1+k3s1 }\n\
                    nodes: [{ name: one, role: server, address: 10.0.0.11 }]\n";
        std::fs::write(&file, text).unwrap();
        let context = Context::load(&file, &Ui::new(Output::Json)).unwrap();
        let lock = publish::lock_file(&context);
        let got = |source, sum: &str| Artifacts {
            directory: folder.path().to_owned(),
            source,
            sha256: BTreeMap::from([("k3s".to_owned(), sum.repeat(32))]),
            archives: Vec::new(),
        };
        let reason = String::new();
        hold(&context, &got(Source::Standin { reason }, "ab")).unwrap();
        assert!(!lock.exists());
        let first = got(Source::Release, "ab");
        hold(&context, &first).unwrap();
        hold(&context, &got(Source::Cache, "cd")).unwrap();
        assert_eq!(locked_sums(&lock, "v1+k3s1").unwrap(), first.sha256);
    }
}
