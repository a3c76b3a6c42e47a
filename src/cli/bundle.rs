//! `orch bundle`: types and help.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orch bundle create                     cluster.orch.tar.zst: K3s, images, manifests, provisioner
  orch bundle list FILE                  verify it and say what it holds
  orch bundle install FILE               the cluster, on a machine without a network
  orch bundle install FILE --unpack      only the project, to change addresses in orch.yaml before `orch create`

Exit codes:
  0 done   3 the bundle is damaged, an image has no digest, a folder is taken   4 this host: disk, files
  5 machines   7 registry   8 apply   130 interrupted")]
pub struct BundleArgs {
    #[command(subcommand)]
    pub command: BundleCommand,
}

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Put K3s, its images, all images that the manifests name, the manifests and orch.yaml into one file
    Create(BundleCreateArgs),
    /// Verify a bundle and say what it holds
    List(BundleListArgs),
    /// Verify a bundle, unpack it, and make the cluster from it without a network
    Install(BundleInstallArgs),
}

#[derive(Debug, Args)]
pub struct BundleCreateArgs {
    /// The bundle [default: <cluster>.orch.tar.zst]
    #[arg(short, long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,
    /// Of images for several platforms keep all, not only the nodes'
    #[arg(long)]
    pub all_platforms: bool,
    /// An image that the manifests may name without a digest; it is not put in
    #[arg(long, value_name = "IMAGE")]
    pub keep: Vec<String>,
    /// Say what would be put in, and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct BundleListArgs {
    /// The bundle
    pub bundle: PathBuf,
}

#[derive(Debug, Args)]
pub struct BundleInstallArgs {
    /// The bundle
    pub bundle: PathBuf,
    /// The project's folder [default: the cluster's name]
    #[arg(long, value_name = "FOLDER")]
    pub into: Option<PathBuf>,
    /// What `bundle create` and `bundle list` call the bundle's id; another bundle is refused
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Stop when it is unpacked; `orch create` in the folder goes on
    #[arg(long, conflicts_with = "dry_run")]
    pub unpack: bool,
    /// Verify the bundle and say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds that the rollouts may take together
    #[arg(long, default_value_t = 600)]
    pub timeout: u64,
}
