//! What goes into a bundle: found, named and measured before a byte of it is written.
//!
//! Secrets, keys and all else that belongs to one cluster stay out: they are made anew where the bundle is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::images_exit::coded_while;
use super::{Context, artifacts as k3s, bundled, machines, publish};
use crate::artifacts::Artifacts;
use crate::bundle::contents::{
    Contents, IMAGES, Image, K3S, K3s, Member, PROGRAMS, PROJECT, SCHEMA,
};
use crate::bundle::layout;
use crate::cli::bundle::BundleCreateArgs;
use crate::exit::{Exit, WithExit as _};
use crate::images::attest::elf;
use crate::images::component::host_platform;
use crate::images::event::Reporter;
use crate::images::pin::{Asking, Kept};
use crate::images::reference;
use crate::images::registry::Registry;
use crate::images::registry::retry::Policy;
use crate::images::take;
use crate::machines::Provider;
use crate::manifests::{EXAMPLE_FILE, ImageUse, Pinned, SECRETS_FILE, Stack};
use crate::ui::Step;

/// Where a member's bytes come from.
pub(super) enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
    /// A blob of a repository.
    Blob(Arc<dyn Registry>, String),
}

/// A bundle that could be written now.
pub(super) struct Collected {
    pub(super) contents: Contents,
    /// By the member's path.
    pub(super) sources: BTreeMap<String, Source>,
}

#[derive(Default)]
struct Members {
    members: BTreeMap<String, Member>,
    sources: BTreeMap<String, Source>,
}

impl Members {
    fn add(&mut self, path: String, size: u64, sha256: String, executable: bool, source: Source) {
        let member = Member {
            path: path.clone(),
            size,
            sha256,
            executable,
        };
        self.members.insert(path.clone(), member);
        self.sources.insert(path, source);
    }

    fn bytes(&mut self, path: String, bytes: Vec<u8>) {
        let sum = hex::encode(Sha256::digest(&bytes));
        self.add(path, bytes.len() as u64, sum, false, Source::Bytes(bytes));
    }

    fn file(&mut self, path: String, file: &Path, executable: bool) -> anyhow::Result<()> {
        let reading = || format!("reading {}", file.display());
        let size = std::fs::metadata(file).exit(Exit::Host, reading())?.len();
        let sum = crate::files::sha256_of(file).exit(Exit::Host, reading())?;
        self.add(path, size, sum, executable, Source::File(file.to_owned()));
        Ok(())
    }
}

/// Finds everything. Without a dry run that gets K3s as well.
pub(super) async fn collect(
    context: &Context,
    arguments: &BundleCreateArgs,
    step: &Arc<Step>,
) -> anyhow::Result<Collected> {
    if bundled::find(context)?.is_some() {
        return Err(anyhow::anyhow!("this project came out of a bundle")).exit(
            Exit::Input,
            "a bundle is made where the images were pushed; copy the one that this came from",
        );
    }
    let mut members = Members::default();
    let mut left_out = Vec::new();
    let keep = [context.config.images.keep.as_slice(), &arguments.keep].concat();
    let (used, kept) = project(context, &keep, &mut members)?;
    let artifacts = if arguments.dry_run {
        left_out.push("K3s and the programs, which a dry run does not get".to_owned());
        None
    } else {
        let artifacts = k3s::acquire(context, context.provider(), step.as_ref()).await?;
        assets(&artifacts, &mut members)?;
        programs(&mut members, &mut left_out)?;
        Some(artifacts)
    };
    // Only then: getting K3s may have locked its checksums.
    lock(context, &mut members)?;
    let standin = artifacts.as_ref().is_some_and(Artifacts::is_standin);
    let platform = host_platform();
    // The stand-in's containerd takes no index of which a part is missing.
    let chosen = (!arguments.all_platforms && !standin).then_some(platform.as_str());
    let images = images(context, &used, chosen, &mut members, step).await?;
    let images: Vec<Image> = images.into_iter().collect();
    members.bytes(format!("{IMAGES}/{}", layout::MARKER), layout::marker());
    members.bytes(
        format!("{IMAGES}/{}", layout::INDEX),
        layout::index(&images),
    );
    Ok(Collected {
        contents: Contents {
            schema: SCHEMA,
            orch: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: context.cluster().to_owned(),
            platform,
            k3s: K3s {
                version: context.config.k3s.version.value.clone(),
                standin,
            },
            images,
            kept: kept.into_iter().collect(),
            left_out,
            members: members.members.into_values().collect(),
        },
        sources: members.sources,
    })
}

/// `orch.yaml`, the Vagrantfile, the manifests; returns the images that they name, with and without a digest.
fn project(
    context: &Context,
    keep: &[String],
    members: &mut Members,
) -> anyhow::Result<(Vec<ImageUse>, BTreeSet<String>)> {
    let kept = Kept::new(keep).exit(Exit::Input, "reading which images may stay unpinned")?;
    let description = format!("{PROJECT}/{}", crate::config::FILE_NAME);
    members.file(description, context.project.file(), false)?;
    let vagrantfile = context.project.root().join("Vagrantfile");
    if context.provider() != Provider::Ssh && vagrantfile.is_file() {
        members.file(format!("{PROJECT}/Vagrantfile"), &vagrantfile, false)?;
    }
    let mut used = Vec::new();
    for stack in &context.config.stacks {
        let folder = below_root(&stack.manifests)?;
        let directory = context.path(&stack.manifests);
        for file in yaml_files(&directory)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if name == SECRETS_FILE {
                continue;
            }
            members.file(format!("{PROJECT}/{folder}{name}"), &file, false)?;
        }
        let loaded = Stack::load(&directory)
            .and_then(|stack| stack.pinned(|image| kept.keeps(image)))
            .exit(Exit::Input, "reading the manifests")?;
        used.extend(check(loaded, &directory)?);
    }
    let is_pinned = |image: &ImageUse| image.image.contains("@sha256:");
    let (pinned, unpinned): (Vec<_>, Vec<_>) = used.into_iter().partition(is_pinned);
    Ok((
        pinned,
        unpinned.into_iter().map(|image| image.image).collect(),
    ))
}

/// The images of a stack that would come up where there is no network, and whose Secrets can be made there.
fn check(stack: Stack<Pinned>, directory: &Path) -> anyhow::Result<Vec<ImageUse>> {
    let refused =
        |text: String| Err(anyhow::anyhow!(text)).exit(Exit::Input, "this cannot go into a bundle");
    let has_example = directory.join(EXAMPLE_FILE).is_file();
    let mut images = Vec::new();
    for mut manifest in stack.manifests {
        let origin = manifest.origin.clone();
        let generated = origin
            .file
            .file_name()
            .is_some_and(|name| name == SECRETS_FILE);
        if generated && !has_example {
            return refused(format!(
                "{origin}: Secrets are made for each cluster, and there is no {EXAMPLE_FILE} to make them from"
            ));
        }
        if manifest.kind == "Secret" && !generated {
            return refused(format!(
                "{origin}: a bundle carries no Secrets; move it to {EXAMPLE_FILE}, with `<generate:32>` in place of its value"
            ));
        }
        images.append(&mut manifest.images);
        if !generated && always_pulls(&manifest.into_object()) {
            return refused(format!(
                "{origin}: imagePullPolicy: Always asks a registry each time; leave it out, a digest is always the same image"
            ));
        }
    }
    Ok(images)
}

fn always_pulls(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            (key == "imagePullPolicy" && value == "Always") || always_pulls(value)
        }),
        Value::Array(items) => items.iter().any(always_pulls),
        _ => false,
    }
}

/// A folder of the project as part of a member's path: empty, or with a slash at its end.
fn below_root(folder: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for part in folder.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(part) => {
                text.push_str(&part.to_string_lossy());
                text.push('/');
            }
            _ => {
                return Err(anyhow::anyhow!(
                    "{} does not lie below the project's folder",
                    folder.display()
                ))
                .exit(Exit::Input, "this cannot go into a bundle");
            }
        }
    }
    Ok(text)
}

/// What orch reads of a folder of manifests, and the examples beside it.
fn yaml_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).exit(Exit::Input, reading())? {
        let path = entry.exit(Exit::Input, reading())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_yaml = name.ends_with(".yaml") || name.ends_with(".yml");
        if is_yaml && !name.starts_with('.') && path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// K3s's release assets.
fn assets(artifacts: &Artifacts, members: &mut Members) -> anyhow::Result<()> {
    for file in artifacts.files() {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        members.file(format!("{K3S}/{name}"), &file, file == artifacts.binary())?;
    }
    Ok(())
}

/// The provisioner, and orch itself where it depends on nothing that another machine may lack.
fn programs(members: &mut Members, left_out: &mut Vec<String>) -> anyhow::Result<()> {
    let provisioner = machines::built_provisioner()?;
    members.file(format!("{PROGRAMS}/orch-provision"), &provisioner, true)?;
    let orch = std::env::current_exe().exit(Exit::Host, "finding orch's own program")?;
    if is_static(&orch).exit(Exit::Host, format!("reading {}", orch.display()))? {
        members.file(format!("{PROGRAMS}/orch"), &orch, true)?;
    } else {
        left_out.push(
            "orch itself, which is linked to this system's libraries: build it for a musl target, or bring orch to the other machine yourself".to_owned(),
        );
    }
    Ok(())
}

/// Whether a program asks for no interpreter, which would bring it libraries.
fn is_static(program: &Path) -> std::io::Result<bool> {
    const LONGEST: u64 = 1024 * 1024;
    let mut file = std::fs::File::open(program)?;
    let [interpreter, names] = elf::sections(&mut file, [".interp", ".shstrtab"], LONGEST)?;
    Ok(interpreter.is_none() && names.is_some())
}

/// `images.lock` of the project's main cluster; that of any other is state.
fn lock(context: &Context, members: &mut Members) -> anyhow::Result<()> {
    let path = publish::lock_file(context);
    if context.project.is_default() && path.is_file() {
        members.file(format!("{PROJECT}/images.lock"), &path, false)?;
    }
    Ok(())
}

/// Asks for every image that is used, and adds what belongs to it.
async fn images(
    context: &Context,
    used: &[ImageUse],
    platform: Option<&str>,
    members: &mut Members,
    step: &Arc<Step>,
) -> anyhow::Result<BTreeSet<Image>> {
    let taking = "taking the images from their registries";
    let mut registries = Registries::new(context, step);
    let mut images = BTreeSet::new();
    let mut asked = BTreeMap::new();
    for image in used {
        let parsed = reference::parse(&image.image).ok();
        let parsed = parsed.and_then(|parsed| Some((parsed.digest()?.to_owned(), parsed)));
        let Some((digest, parsed)) = parsed else {
            return Err(anyhow::anyhow!(
                "{}: {:?} is no image's name",
                image.origin,
                image.image
            ))
            .exit(Exit::Input, "reading the manifests");
        };
        let (registry, path) = (parsed.registry().to_owned(), parsed.repository().to_owned());
        let key = (registry.clone(), path.clone(), digest.clone());
        if !asked.contains_key(&key) {
            let client = registries.client(&registry, &path).await?;
            let taken = take::ask(client.as_ref(), &path, &digest, platform).await;
            let taken = coded_while(&format!("{}: {taking}", image.origin), taken)?;
            for bytes in taken.manifests.values() {
                let hex = hex::encode(Sha256::digest(bytes));
                members.bytes(format!("{IMAGES}/{}", layout::blob(&hex)), bytes.to_vec());
            }
            for (digest, size) in &taken.blobs {
                let hex = digest.trim_start_matches("sha256:");
                let member = format!("{IMAGES}/{}", layout::blob(hex));
                if !members.members.contains_key(&member) {
                    let source = Source::Blob(Arc::clone(&client), path.clone());
                    members.add(member, *size, hex.to_owned(), false, source);
                }
            }
            asked.insert(key.clone(), taken);
        }
        if let Some(taken) = asked.get(&key) {
            images.insert(Image {
                repository: format!("{registry}/{path}"),
                tag: parsed.tag().map(str::to_owned),
                digest,
                media_type: taken.top.media_type.clone(),
                size: taken.top.bytes.len() as u64,
            });
        }
    }
    Ok(images)
}

/// The ways to the registries that the images are at.
struct Registries<'a> {
    context: &'a Context,
    step: &'a Arc<Step>,
    asking: Asking,
    clients: BTreeMap<(String, bool), Arc<dyn Registry>>,
}

impl<'a> Registries<'a> {
    fn new(context: &'a Context, step: &'a Arc<Step>) -> Self {
        Self {
            context,
            step,
            asking: Asking {
                policy: Policy::default(),
                plain_http: false,
                ca_file: None,
                reporter: Arc::clone(step) as Arc<dyn Reporter>,
                meter: Arc::default(),
            },
            clients: BTreeMap::new(),
        }
    }

    /// Where `registry/repository` is: this project's own images may be in the registry that stands in for Docker Hub.
    async fn client(
        &mut self,
        registry: &str,
        repository: &str,
    ) -> anyhow::Result<Arc<dyn Registry>> {
        let ours = publish::own_registry(self.context, registry, repository)?;
        let key = (registry.to_owned(), ours.is_some());
        if let Some(client) = self.clients.get(&key) {
            return Ok(Arc::clone(client));
        }
        let client = match ours {
            Some(destination) => {
                let reporter = Arc::clone(self.step) as Arc<dyn Reporter>;
                publish::run_stand_in(self.context, &destination, Arc::clone(&reporter)).await?;
                destination.registry(&[], &self.asking.meter, self.asking.policy, &reporter)
            }
            None => self.asking.client(registry),
        };
        let client = coded_while("finding the images' registry", client.map_err(Into::into))?;
        self.clients.insert(key, Arc::clone(&client));
        Ok(client)
    }
}
