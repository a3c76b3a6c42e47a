//! `orch images attest`, `sbom` and `verify`, and the options of `push` that they share.

use std::path::PathBuf;

use clap::Args;

/// What is attached to images.
#[derive(Debug, Clone, Default, Args)]
pub struct AttestOptions {
    /// Attach a list of packages (SPDX 2.3), or do not, whatever orch.yaml says
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Attest")]
    pub sbom: Option<bool>,
    /// Attach what the image was built from (SLSA provenance v1), or do not, whatever orch.yaml says
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Attest")]
    pub provenance: Option<bool>,
    /// Sign with this private key: ECDSA P-256 as PKCS#8 PEM, or cosign.key
    #[arg(long, value_name = "FILE", help_heading = "Attest")]
    pub key: Option<PathBuf>,
    /// Sign nothing, although orch.yaml names a key
    #[arg(long, conflicts_with_all = ["key", "password_file"], help_heading = "Attest")]
    pub no_key: bool,
    /// File whose first line is the key's password [default: COSIGN_PASSWORD]
    #[arg(long, value_name = "FILE", help_heading = "Attest")]
    pub password_file: Option<PathBuf>,
}

/// Arguments of `orch images attest`.
#[derive(Debug, Args)]
pub struct AttestArgs {
    /// Components [default: those that manifests use]
    pub names: Vec<String>,
    #[command(flatten)]
    pub options: AttestOptions,
    /// Sign, with --key or the key of orch.yaml, and attach nothing else
    #[arg(long, help_heading = "Attest")]
    pub sign: bool,
}

/// Arguments of `orch images sbom`.
#[derive(Debug, Args)]
pub struct SbomArgs {
    /// The component
    pub name: String,
}

/// Arguments of `orch images verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Components [default: those that manifests use]
    pub names: Vec<String>,
    /// The public key of whoever is to have signed: PEM, such as cosign.pub
    #[arg(long, value_name = "FILE", help_heading = "Attest")]
    pub key: PathBuf,
}
