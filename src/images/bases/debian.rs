//! A Debian image from Debian's packages: debootstrap, the current updates, and the settings that Docker's official image has.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::BaseError;
use super::recipe::Kitchen;
use crate::images::context::SOURCE_DATE_EPOCH;
use crate::images::engine::child;
use crate::images::event::ImageEvent;

/// apt settings that keep layers small and runs unattended; the same as in the official image.
const APT_SETTINGS: [(&str, &str); 4] = [
    (
        "docker-autoremove-suggests",
        "Apt::AutoRemove::SuggestsImportant \"false\";\n",
    ),
    (
        "docker-clean",
        "DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true\"; };\n\
         APT::Update::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true\"; };\n\
         Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n",
    ),
    ("docker-gzip-indexes", "Acquire::GzipIndexes \"true\";\n"),
    ("docker-no-languages", "Acquire::Languages \"none\";\n"),
];

/// What the slim variant leaves out, now and with every package that is installed later. Copyright files stay.
const SLIM: &str = "path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\npath-exclude /usr/share/man/*\n\
path-exclude /usr/share/groff/*\npath-exclude /usr/share/info/*\npath-exclude /usr/share/lintian/*\n\
path-exclude /usr/share/linda/*\npath-exclude /usr/share/locale/*\npath-include /usr/share/locale/locale.alias\n";

/// Removes what [`SLIM`] excludes from an installation that was made without it.
const SLIM_DOWN: &str = "find /usr/share/doc -depth -type f ! -name copyright -delete; \
find /usr/share/doc -depth -type l -delete; find /usr/share/doc -depth -type d -empty -delete; \
rm -rf /usr/share/man/* /usr/share/groff/* /usr/share/info/* /usr/share/lintian/* /usr/share/linda/*; \
find /usr/share/locale -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} +";

/// Everything that differs from run to run and that nobody needs.
const CLEAN: &str = "rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
/var/lib/dpkg/*-old /var/log/* /tmp/* /etc/hostname /etc/resolv.conf /etc/machine-id";

/// Starts nothing while packages are installed.
const POLICY: &str = "#!/bin/sh\nexit 101\n";

/// Where this host gets a suite from: repository URL by suite (`bookworm`, `bookworm-updates`, `bookworm-security`).
pub(super) type Sources = BTreeMap<String, String>;

/// Makes the image, or imports the archive that an earlier run kept.
pub(super) async fn make(
    kitchen: &Kitchen<'_>,
    suite: &str,
    slim: bool,
    tag: &str,
    identity: &str,
) -> Result<(), BaseError> {
    let name = identity.trim_start_matches("sha256:");
    let archive = kitchen
        .cache
        .join(format!("{name}-{}.tar.gz", kitchen.architecture()));
    if kitchen.refresh || !archive.exists() {
        fs::create_dir_all(kitchen.cache)
            .map_err(|source| kitchen.write_failed(kitchen.cache, source))?;
        bootstrap(kitchen, suite, slim, &archive).await?;
    }
    let path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let imported = kitchen
        .engine
        .import(&archive, tag, &[path, "CMD [\"bash\"]"])
        .await;
    imported.map_err(|error| kitchen.engine_failed(error))
}

async fn bootstrap(
    kitchen: &Kitchen<'_>,
    suite: &str,
    slim: bool,
    archive: &Path,
) -> Result<(), BaseError> {
    let sources = host_sources(kitchen, suite).await?;
    if !is_root() && child::output(as_root("true")).await.is_err() {
        return Err(kitchen.cannot(
            "debootstrap needs root: run `sudo --validate` and this again within a few minutes, or this once as root; the \
             result is kept",
        ));
    }
    let folder = tempfile::Builder::new()
        .prefix("orch-base-")
        .tempdir()
        .map_err(|source| kitchen.write_failed(&std::env::temp_dir(), source))?;
    let made = bootstrap_in(kitchen, suite, slim, archive, &sources, folder.path()).await;
    // Its files are root's, so the folder's own clearing would not get rid of them.
    let mut clear = as_root("rm");
    clear.args(["--recursive", "--force", "--one-file-system"]);
    clear.arg(folder.path().join(ROOT));
    let cleared = run(kitchen, clear).await;
    made.and(cleared)
}

/// The new system's folder in the temporary one.
const ROOT: &str = "root";
/// What is laid over it.
const OVERLAY: &str = "overlay";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program` with root's rights. Asks for no password: it runs where no terminal can be had.
fn as_root(program: &str) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", "--", program]);
    command
}

async fn bootstrap_in(
    kitchen: &Kitchen<'_>,
    suite: &str,
    slim: bool,
    archive: &Path,
    sources: &Sources,
    folder: &Path,
) -> Result<(), BaseError> {
    let root = folder.join(ROOT);
    let mirror = sources.get(suite).map(String::as_str).unwrap_or_default();
    let mut command = as_root("debootstrap");
    command.args([
        "--variant=minbase",
        "--force-check-gpg",
        "--arch",
        kitchen.architecture(),
        suite,
    ]);
    command.arg(&root).arg(mirror);
    run(kitchen, command).await?;
    let overlay = folder.join(OVERLAY);
    configure(kitchen, &overlay, suite, slim, sources)?;
    // Only for an https mirror, and only while packages are fetched: later builds bring their own.
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    let own_bundle = Path::new("/").join(bundle);
    let lent = own_bundle.exists() && !root.join(bundle).exists();
    if lent {
        let copy = overlay.join(bundle);
        make_parents(&overlay, &copy)
            .and_then(|()| fs::copy(&own_bundle, &copy))
            .and_then(|_| fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)))
            .map_err(|source| kitchen.write_failed(&copy, source))?;
    }
    let mut lay = as_root("cp");
    lay.args(["--recursive", "--preserve=mode", "--no-target-directory"]);
    lay.arg(&overlay).arg(&root);
    run(kitchen, lay).await?;
    chroot(
        kitchen,
        &root,
        // debootstrap's own list would name the same mirror twice.
        "rm -f /etc/apt/sources.list; apt-get update && apt-get -y -o Dpkg::Options::=--force-confold dist-upgrade",
    )
    .await?;
    if slim {
        chroot(kitchen, &root, SLIM_DOWN).await?;
    }
    chroot(kitchen, &root, CLEAN).await?;
    let mut remove = as_root("rm");
    remove.args(["--force", "--"]);
    remove.arg(root.join("usr/sbin/policy-rc.d"));
    if lent {
        remove.arg(root.join(bundle));
    }
    run(kitchen, remove).await?;
    pack(kitchen, &root, archive).await
}

/// Writes what makes a Debian a Docker image of Debian, to be laid over it.
fn configure(
    kitchen: &Kitchen<'_>,
    overlay: &Path,
    suite: &str,
    slim: bool,
    sources: &Sources,
) -> Result<(), BaseError> {
    let mut lists = String::new();
    for name in [
        suite.to_owned(),
        format!("{suite}-updates"),
        format!("{suite}-security"),
    ] {
        if let Some(url) = sources.get(&name) {
            lists.push_str(&format!(
                "Types: deb\nURIs: {url}\nSuites: {name}\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
            ));
        }
    }
    let mut files: Vec<(PathBuf, &str, u32)> = vec![
        (
            overlay.join("etc/apt/sources.list.d/debian.sources"),
            lists.trim_end(),
            0o644,
        ),
        (overlay.join("usr/sbin/policy-rc.d"), POLICY, 0o755),
    ];
    for (name, text) in APT_SETTINGS {
        files.push((overlay.join("etc/apt/apt.conf.d").join(name), text, 0o644));
    }
    if slim {
        files.push((overlay.join("etc/dpkg/dpkg.cfg.d/docker"), SLIM, 0o644));
    }
    for (path, text, mode) in files {
        make_parents(overlay, &path)
            .and_then(|()| fs::write(&path, format!("{}\n", text.trim_end())))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
            .map_err(|source| kitchen.write_failed(&path, source))?;
    }
    Ok(())
}

/// Makes the folders between `overlay` and `path` with the modes that they have in every Debian: laying them over the system
/// sets its folders' modes, too.
fn make_parents(overlay: &Path, path: &Path) -> std::io::Result<()> {
    let parent = path.parent().unwrap_or(overlay);
    fs::create_dir_all(parent)?;
    let mut folders = parent
        .ancestors()
        .take_while(|folder| folder.starts_with(overlay));
    folders.try_for_each(|folder| fs::set_permissions(folder, fs::Permissions::from_mode(0o755)))
}

async fn chroot(kitchen: &Kitchen<'_>, root: &Path, script: &str) -> Result<(), BaseError> {
    let mut command = as_root("env");
    command.args([
        "DEBIAN_FRONTEND=noninteractive",
        "LC_ALL=C.UTF-8",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "chroot",
    ]);
    command.arg(root).args(["sh", "-euc", script]);
    run(kitchen, command).await
}

/// One archive with names in order and fixed times; it appears whole or not at all.
async fn pack(kitchen: &Kitchen<'_>, root: &Path, archive: &Path) -> Result<(), BaseError> {
    let mut partial = archive.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    // Made first, so that it is this user's whoever writes it.
    fs::File::create(&partial).map_err(|source| kitchen.write_failed(&partial, source))?;
    let mut command = as_root("tar");
    command.args([
        "--create",
        "--gzip",
        "--numeric-owner",
        "--sort=name",
        "--one-file-system",
        "--xattrs",
    ]);
    command
        .arg(format!("--mtime=@{SOURCE_DATE_EPOCH}"))
        .arg("--exclude=./dev/*")
        .arg("--file")
        .arg(&partial);
    command.arg("--directory").arg(root).arg(".");
    let packed = run(kitchen, command).await;
    if packed.is_err() {
        // What is left of it has no use; that it cannot be removed matters less than why packing failed.
        let _ = fs::remove_file(&partial);
        return packed;
    }
    fs::File::open(&partial)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&partial, archive))
        .map_err(|source| kitchen.write_failed(archive, source))
}

async fn run(kitchen: &Kitchen<'_>, command: Command) -> Result<(), BaseError> {
    let finished = child::succeed(command, |line| {
        let component = kitchen.reference.to_owned();
        kitchen.reporter.event(ImageEvent::BuildLine {
            component,
            line: line.to_owned(),
        });
    });
    finished.await.map_err(|error| match error {
        crate::images::engine::EngineError::Start { program, .. } => kitchen.cannot(format!(
            "`{program}` is not installed: run `apt-get install {program}`"
        )),
        other => kitchen.engine_failed(other),
    })
}

/// The mirrors that this host's apt uses for a suite and its updates.
async fn host_sources(kitchen: &Kitchen<'_>, suite: &str) -> Result<Sources, BaseError> {
    let mut command = Command::new("apt-get");
    let format = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)";
    command.args(["indextargets", "--format", format]);
    let output = child::output(command).await.map_err(|_| {
        kitchen.cannot("this host has no apt: substitutes can be made on Debian; elsewhere, docker.io has to be reachable")
    })?;
    let sources = parse_sources(&output, suite);
    if sources.contains_key(suite) {
        return Ok(sources);
    }
    Err(kitchen.cannot(format!(
        "this host's apt has no http mirror of Debian {suite}: add one to /etc/apt/sources.list.d and run `apt-get update`"
    )))
}

/// Reads `CREATED_BY|REPO_URI|RELEASE|CODENAME|COMPONENT` lines.
fn parse_sources(output: &str, suite: &str) -> Sources {
    let mut sources = Sources::new();
    for line in output.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let ["Packages", url, release, codename, "main"] = fields.as_slice() else {
            continue;
        };
        if !url.starts_with("http://") && !url.starts_with("https://") {
            continue;
        }
        for wanted in [
            suite.to_owned(),
            format!("{suite}-updates"),
            format!("{suite}-security"),
        ] {
            if *release == wanted || *codename == wanted {
                sources.entry(wanted).or_insert_with(|| (*url).to_owned());
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_from_apts_own_list() {
        let output = "DEP-11|http://m/debian/|bookworm|bookworm|main\n\
                      Packages|http://m/debian/|stable|bookworm|main\n\
                      Packages|http://m/debian/|bookworm|bookworm|contrib\n\
                      Packages|http://m/security/|bookworm-security|bookworm-security|main\n\
                      Packages|cdrom:[x]/|bookworm-updates|bookworm-updates|main\nnonsense\n";
        let expected = [
            ("bookworm", "http://m/debian/"),
            ("bookworm-security", "http://m/security/"),
        ];
        let expected: Sources = expected
            .iter()
            .map(|(name, url)| ((*name).to_owned(), (*url).to_owned()))
            .collect();
        assert_eq!(parse_sources(output, "bookworm"), expected);
        assert!(parse_sources(output, "trixie").is_empty());
    }
}
