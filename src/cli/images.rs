//! `orch images`: the command line of the image pipeline. Parses, decides nothing.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::attest::{AttestArgs, AttestOptions, SbomArgs, VerifyArgs};

/// What `orch images --help` says besides the commands.
const PAGE: &str = "\
A folder with a Dockerfile is a component; its name is the image's. The tag is a hash of everything that goes in, so equal sources
have equal names everywhere, and what a registry has is not built again. `images.lock` remembers what was pushed: commit it with the
manifests.

Start, in any repository (a Kubernetes manifest says `image: web`, and services/web has a Dockerfile):
  orch images plan --dockerfiles services --manifests deploy        what would happen, and why
  orch images push --pin --dockerfiles services --manifests deploy --registry ghcr.io --namespace acme
  git add images.lock deploy && git commit

Where manifests call it something else, or use other people's images:
  orch images push --pin --map acme/web=web --keep redis:7          one is ours, one may stay
  orch images pin --upstream                                        redis:7 -> redis:7@sha256:...
  orch images unpin                                                 every byte as it was

Every day:
  orch images why web                                               which file, argument or base gave it a new name
  orch images push --pin                                            nothing changed: one request an image
  orch images push --pin --refresh                                  take in distribution updates
  orch images push --pin --build-arg VERSION=1.4                    part of the name, so `check` and `why` want it, too

In CI (exit 10: sources changed, 11: not pinned, 12: pin missing, 13: tag moved):
  orch images check --offline                                       no network, engine or secrets needed
  orch images check --output json

Before a release:
  orch images reproduce                                             do two cold builds give one digest?
  orch images attest --sign --key cosign.key                        then: cosign verify --key cosign.pub IMAGE
  orch images gc                                                    what could be deleted from the registry

Flags that never change belong into orch.yaml:
  registry: { namespace: acme }
  images:
    keep: [redis:7]
    components:
      - { name: web, context: services/web, target: runtime, args: { V: \"1\" }, references: [ghcr.io/acme/site] }

Who may push: `docker login`, or ORCH_REGISTRY_USERNAME and ORCH_REGISTRY_PASSWORD. Results go to stdout, progress to stderr; Ctrl-C
leaves nothing half done. docs/images.md has the rules.";

/// Build images, name them by content, push what is missing, and pin it in manifests.
#[derive(Debug, Args)]
#[command(after_long_help = PAGE)]
pub struct ImagesArgs {
    #[command(subcommand)]
    pub command: ImagesCommand,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What every subcommand takes. Defaults come from orch.yaml, if there is one.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Folder in and below which folders with a Dockerfile are the components [default: orch.yaml, ./Dockerfiles, or .]
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Images")]
    pub dockerfiles: Option<PathBuf>,
    /// Folder of manifests, or one file; may be given several times
    #[arg(long, global = true, value_name = "PATH", help_heading = "Images")]
    pub manifests: Vec<PathBuf>,
    /// Take the folders below the manifests' folders, too
    #[arg(long, short = 'R', global = true, help_heading = "Images")]
    pub recursive: bool,
    /// Repository in manifests that stands for a component of another name; may be given several times
    #[arg(long, global = true, value_name = "REPOSITORY=COMPONENT", value_parser = pair, help_heading = "Images")]
    pub map: Vec<(String, String)>,
    /// Image in manifests to leave as it is, e.g. redis or redis:7; may be given several times
    #[arg(long, global = true, value_name = "IMAGE", help_heading = "Images")]
    pub keep: Vec<String>,
    /// The lock file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Images")]
    pub lock: Option<PathBuf>,
    /// Registry in image references; docker.io without credentials means the local registry
    #[arg(long, global = true, value_name = "HOST", help_heading = "Images")]
    pub registry: Option<String>,
    /// Namespace at the registry [default: orch.yaml, DOCKER_HUB_USERNAME, or the login's user]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Images")]
    pub namespace: Option<String>,
    /// Talk plain HTTP to the registry; loopback addresses always do
    #[arg(long, global = true, help_heading = "Images")]
    pub plain_http: bool,
    /// Certificate of a CA that registries may have theirs from, in PEM form, besides those that the system trusts
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "ORCH_CA_FILE",
        help_heading = "Images"
    )]
    pub ca_file: Option<PathBuf>,
    /// Platforms of the images, separated by commas; several make an index [default: orch.yaml, or this host's]
    #[arg(
        long = "platform",
        global = true,
        value_name = "OS/ARCH",
        value_delimiter = ',',
        help_heading = "Images"
    )]
    pub platforms: Vec<String>,
    /// Build argument, for the components whose Dockerfiles have an ARG of this name; without a value, that of the environment; may be given several times
    #[arg(
        long = "build-arg",
        global = true,
        value_name = "KEY[=VALUE]",
        value_parser = argument,
        help_heading = "Images"
    )]
    pub build_args: Vec<(String, Option<String>)>,
    /// Read every file of the contexts again, also those that seem to be unchanged since an earlier run
    #[arg(long, global = true, help_heading = "Images")]
    pub rehash: bool,
    /// Who builds; the name of an image does not depend on it
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "ORCH_BUILDER",
        help_heading = "Images"
    )]
    pub builder: BuilderName,
}

/// Who builds.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub enum BuilderName {
    /// Docker if its engine answers, else podman, else buildah
    #[default]
    Auto,
    /// Docker, with buildx if it is there
    Docker,
    /// Docker without buildx and BuildKit: no RUN --mount
    Classic,
    Podman,
    Buildah,
}

/// `LEFT=RIGHT`, neither of them empty.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => {
            Ok((left.to_owned(), right.to_owned()))
        }
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

/// `KEY=VALUE`, where the value may be empty, or `KEY`.
fn argument(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    match name {
        "" => Err("write it as KEY=VALUE, or as KEY for the environment's value".to_owned()),
        name => Ok((name.to_owned(), value)),
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// Build what changed, push what the registry lacks, and pin it
    #[command(
        after_help = "Examples:\n  orch images push --pin              everything the manifests use\n  orch images push --pin api-gateway-app\n  orch images push --refresh          rebuild to take in distribution updates"
    )]
    Push(PushArgs),
    /// Say what push would do, and why
    #[command(
        visible_alias = "dry-run",
        after_help = "An image in a manifest that nobody builds is exit 3, as with `push --pin`; `push --dry-run` is about a push without pins.\n\nExample:\n  orch images plan --output json | jq '.[] | select(.action == \"build\")'"
    )]
    Plan(NamesArgs),
    /// Build into the local engine and push nothing
    #[command(after_help = "Example:\n  orch images build inventory-app")]
    Build(BuildArgs),
    /// Compare sources, lock, manifests and registry; change nothing
    #[command(
        after_help = "Exit status:\n  0   everything agrees\n  10  sources changed since the last push\n  11  a manifest does not name what was pushed\n  12  the registry lacks a pinned digest\n  13  a tag names another digest than the lock\nThe lowest that applies. On GitHub Actions findings are annotations, too.\n\nExamples:\n  orch images check --offline         in a CI job without a network\n  orch images check --output json | jq -r '.findings[].message'"
    )]
    Check(CheckArgs),
    /// Explain a component's name: what it is made from and what changed
    #[command(after_help = "Example:\n  orch images why rabbitmq")]
    Why(WhyArgs),
    /// Print the content hash of a build context, after .dockerignore
    #[command(
        after_help = "The same files give the same hash on every machine, whatever their owners, times and umask.\n\nExamples:\n  orch images hash .\n  orch images hash services/web --dockerfile services/web/Dockerfile.debug\n  orch images hash . --rehash --output json"
    )]
    Hash(HashArgs),
    /// Delete the images that no file, branch or cluster names; without --delete, only list them
    #[command(
        after_help = "Kept is what is named by: any file of any branch, tag or stash of the git repository, here or at its remotes; any \
file here; the lock; the sources as they are; the cluster. So is every digest that a tag has which is none of orch's, and what \
kept images consist of or are signed by.\n\nExamples:\n  orch images gc                      what would go, and why the rest stays\n  orch images gc --delete\n  orch images gc --protect in-0123456789ab --delete"
    )]
    Gc(GcArgs),
    /// Build twice without any earlier result, and name the layers and files that differ; push nothing
    #[command(
        after_help = "Exit status:\n  0   both builds have one digest\n  14  they differ\n\nExamples:\n  orch images reproduce rabbitmq\n  orch images reproduce --output json | jq '.[].differences[]'"
    )]
    Reproduce(ReproduceArgs),
    /// Attach a list of packages, provenance and a signature to images that were pushed
    #[command(
        after_help = "Documents become OCI referrers of the image's digest, which does not change. What is attached already is left alone.\n\nExamples:\n  orch images attest                          list of packages and provenance\n  orch images attest --sbom api-gateway-app\n  orch images attest --sign --key cosign.key  with the password in COSIGN_PASSWORD"
    )]
    Attest(AttestArgs),
    /// Print the list of an image's packages (SPDX 2.3 JSON)
    #[command(after_help = "Example:\n  orch images sbom rabbitmq > rabbitmq.spdx.json")]
    Sbom(SbomArgs),
    /// Check that images are signed by a key
    #[command(
        after_help = "Exit status:\n  0   every image is signed by the key\n  15  an image is not\n\nExample:\n  orch images verify --key cosign.pub"
    )]
    Verify(VerifyArgs),
    /// Write digests into manifests, without building or pushing anything
    #[command(
        after_help = "Examples:\n  orch images pin                     what images.lock says\n  orch images pin --upstream          redis:7 becomes redis:7@sha256:...\n  orch images pin --upstream --update tags that moved since\n  orch images pin --set web=ghcr.io/acme/web@sha256:0f3c... --manifests k8s/\n  orch images pin --map acme/web=web  manifests say acme/web for the component web\n\nAll files are changed or none, and only the bytes of images' names."
    )]
    Pin(PinArgs),
    /// Give the manifests back what stood there before they were pinned
    #[command(
        after_help = "Examples:\n  orch images unpin                   byte for byte, as images.lock remembers it\n  orch images unpin --dry-run"
    )]
    Unpin(UnpinArgs),
}

/// Arguments of `orch images pin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Pin this image to a known digest, and only what is named so; may be given several times. NAME is a component, or a repository in the manifests
    #[arg(long, value_name = "NAME=REF@DIGEST", value_parser = pair)]
    pub set: Vec<(String, String)>,
    /// Pin images that are nobody's here to the digests that their tags name now
    #[arg(long)]
    pub upstream: bool,
    /// Ask again for foreign images that are pinned already
    #[arg(long, requires = "upstream")]
    pub update: bool,
    /// Say what would be changed and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `orch images unpin`.
#[derive(Debug, Args)]
pub struct UnpinArgs {
    /// Say what would be changed and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `orch images reproduce`.
#[derive(Debug, Args)]
pub struct ReproduceArgs {
    /// Components [default: those that manifests use]
    pub names: Vec<String>,
    /// Components at the same time [default: orch.yaml, or 2]
    #[arg(long, short, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub jobs: Option<usize>,
}

/// Arguments of `orch images push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Components [default: those that manifests use]
    pub names: Vec<String>,
    /// Write the digests into the manifests
    #[arg(long)]
    pub pin: bool,
    /// Build again although the sources are the same
    #[arg(long)]
    pub refresh: bool,
    /// Say what would be done and do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub attest: AttestOptions,
    /// Builds at the same time [default: orch.yaml, or 2]
    #[arg(long, short, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub jobs: Option<usize>,
}

/// Arguments of `orch images build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Components [default: those that manifests use]
    pub names: Vec<String>,
    /// Build again although the sources are the same
    #[arg(long)]
    pub refresh: bool,
    /// Builds at the same time [default: orch.yaml, or 2]
    #[arg(long, short, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub jobs: Option<usize>,
}

/// Arguments of subcommands that only take components.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// Components [default: those that manifests use]
    pub names: Vec<String>,
}

/// Arguments of `orch images check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Components [default: those that manifests use]
    pub names: Vec<String>,
    /// Do not ask the registry
    #[arg(long)]
    pub offline: bool,
}

/// Arguments of `orch images gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Delete; without this, only say what would go
    #[arg(long)]
    pub delete: bool,
    /// Keep this digest (sha256:...) or tag (in-...), too; may be given several times
    #[arg(long, value_name = "DIGEST|TAG")]
    pub protect: Vec<String>,
    /// Go by the files here alone, where there is no git repository or only a shallow clone
    #[arg(long)]
    pub no_git: bool,
    /// Do not make sure that this clone has all branches of its remotes
    #[arg(long)]
    pub no_remote: bool,
    /// Do not ask the cluster what it runs
    #[arg(long, conflicts_with = "kubeconfigs")]
    pub no_cluster: bool,
    /// A cluster to ask; may be given several times [default: this project's, if it has one]
    #[arg(long = "kubeconfig", value_name = "FILE")]
    pub kubeconfigs: Vec<PathBuf>,
}

/// Arguments of `orch images why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The component
    pub name: String,
}

/// Arguments of `orch images hash`.
#[derive(Debug, Args)]
pub struct HashArgs {
    /// The context's folder
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The Dockerfile, because of its ignore file [default: FOLDER/Dockerfile]
    #[arg(long, value_name = "FILE")]
    pub dockerfile: Option<PathBuf>,
}
