//! K3s's release assets on this host: found or fetched once, verified every time, kept in the cache.
//!
//! Boundary: files in, files out. Nodes get copies; what they do with them is the provisioner's.
//! Order: a directory that was named, the cache, the release with its own checksum file, and the
//! stand-in where the release host cannot be reached. A wrong checksum is an error that names both
//! sums, and the file that has it is not kept.

mod release;
mod standin;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::process::RunError;
use crate::progress::Progress;

/// Where the assets may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Cache, release, stand-in.
    Any,
    /// Cache or release.
    Release,
    /// The stand-in only.
    Standin,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// A K3s release such as `v1.34.2+k3s1`.
    pub version: &'a str,
    pub policy: Policy,
    /// A folder with the assets; it wins over everything else.
    pub directory: Option<&'a Path>,
    pub release_url: &'a str,
    /// orch's cache.
    pub cache: &'a Path,
    /// The folder with the stand-in's sources.
    pub standin: &'a Path,
    /// Whether the nodes can run the stand-in, which needs the programs of orch's own node image.
    pub standin_runs: bool,
    /// Checksums that earlier runs locked, by asset name.
    pub locked: &'a BTreeMap<String, String>,
}

/// Where the assets did come from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "source")]
pub enum Source {
    Directory,
    Cache,
    Release,
    /// Not K3s. `reason` says why K3s could not be had.
    Standin {
        reason: String,
    },
}

/// Verified release assets.
#[derive(Debug, Clone)]
pub struct Artifacts {
    pub directory: PathBuf,
    pub source: Source,
    /// Asset name -> SHA-256 in hex; the checksum file itself is not among them.
    pub sha256: BTreeMap<String, String>,
    /// Further archives of images that the nodes are given, with their SHA-256.
    pub archives: Vec<(PathBuf, String)>,
}

impl Artifacts {
    pub fn is_standin(&self) -> bool {
        matches!(self.source, Source::Standin { .. })
    }

    /// The assets and their checksum file.
    pub fn files(&self) -> Vec<PathBuf> {
        let names = self.sha256.keys().map(String::as_str);
        names
            .chain([checksum_file()])
            .map(|name| self.directory.join(name))
            .collect()
    }

    /// SHA-256 of the further archives by file name.
    pub fn archive_sums(&self) -> BTreeMap<String, String> {
        let named = self.archives.iter().filter_map(|(path, sum)| {
            let name = path.file_name()?.to_string_lossy().into_owned();
            Some((name, sum.clone()))
        });
        named.collect()
    }

    /// The K3s program itself.
    pub fn binary(&self) -> PathBuf {
        self.directory.join(binary_name())
    }
}

/// Why there are no assets.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    #[error(
        "the release host does not answer at {url}; put the assets of {version} into a folder and name it in orch.yaml (k3s.source: directory)"
    )]
    Unreachable {
        url: String,
        version: String,
        source: reqwest::Error,
    },
    #[error("{url} answered {status}; is {version} a K3s release?")]
    Status {
        url: String,
        status: u16,
        version: String,
    },
    #[error("lost the download of {url}; run the same command again")]
    Download { url: String, source: reqwest::Error },
    #[error(
        "{file} has sha256 {actual}, but {expected_by} says {expected}; nothing was installed. Delete the file and fetch it again, or correct the lock if the release was replaced on purpose"
    )]
    Checksum {
        file: PathBuf,
        actual: String,
        expected: String,
        expected_by: String,
    },
    #[error(
        "{directory} lacks {asset}; it must hold {}, {} and {}",
        binary_name(),
        images_name(),
        checksum_file()
    )]
    Incomplete { directory: PathBuf, asset: String },
    #[error(
        "the stand-in for K3s runs on nodes of the docker provider on x86-64 only; give k3s.source another value in orch.yaml"
    )]
    NoStandin,
    #[error("cannot {operation}")]
    Io {
        operation: String,
        source: std::io::Error,
    },
    #[error("cannot build the stand-in for K3s ({reason})")]
    Standin { reason: String, source: RunError },
}

fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> ArtifactError {
    let operation = operation.into();
    move |source| ArtifactError::Io { operation, source }
}

/// K3s's name for this host's architecture.
const fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

const fn binary_name() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "k3s-arm64"
    } else {
        "k3s"
    }
}

fn images_name() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "k3s-airgap-images-arm64.tar.zst"
    } else {
        "k3s-airgap-images-amd64.tar.zst"
    }
}

fn checksum_file() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "sha256sum-arm64.txt"
    } else {
        "sha256sum-amd64.txt"
    }
}

/// Finds or fetches the assets and verifies them.
pub async fn acquire(
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<Artifacts, ArtifactError> {
    if let Some(directory) = request.directory {
        let sha256 = verify(directory, request.locked)?;
        return Ok(Artifacts {
            directory: directory.to_owned(),
            source: Source::Directory,
            sha256,
            archives: Vec::new(),
        });
    }
    let reason = match request.policy {
        Policy::Standin if !request.standin_runs => return Err(ArtifactError::NoStandin),
        Policy::Standin => "orch.yaml asks for it".to_owned(),
        Policy::Any | Policy::Release => {
            let directory = request.cache.join("k3s").join(request.version);
            match verify(&directory, request.locked) {
                Ok(sha256) => {
                    return Ok(Artifacts {
                        directory,
                        source: Source::Cache,
                        sha256,
                        archives: Vec::new(),
                    });
                }
                // Nothing is there yet, or somebody deleted a damaged file: what is missing is fetched.
                Err(ArtifactError::Incomplete { .. }) => {}
                Err(error) => return Err(error),
            }
            match release::fetch(request, &directory, progress).await {
                Ok(()) => {
                    let sha256 = verify(&directory, request.locked)?;
                    return Ok(Artifacts {
                        directory,
                        source: Source::Release,
                        sha256,
                        archives: Vec::new(),
                    });
                }
                Err(ArtifactError::Unreachable { url, .. })
                    if request.policy == Policy::Any && request.standin_runs =>
                {
                    format!("{url} cannot be reached")
                }
                Err(error) => return Err(error),
            }
        }
    };
    progress.note(&format!(
        "{reason}: using orch's stand-in for K3s, upstream Kubernetes behind K3s's command line"
    ));
    let directory = standin::build(request, &reason, progress).await?;
    let sha256 = verify(&directory, &BTreeMap::new())?;
    Ok(Artifacts {
        directory,
        source: Source::Standin { reason },
        sha256,
        archives: Vec::new(),
    })
}

/// Holds every asset against the checksum file, and against what was locked before.
fn verify(
    directory: &Path,
    locked: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, ArtifactError> {
    let sums_path = directory.join(checksum_file());
    let incomplete = |asset: &str| ArtifactError::Incomplete {
        directory: directory.to_owned(),
        asset: asset.to_owned(),
    };
    let text = std::fs::read_to_string(&sums_path).map_err(|_| incomplete(checksum_file()))?;
    let sums = parse_sums(&text);
    let mut verified = BTreeMap::new();
    for asset in [binary_name(), images_name()] {
        let file = directory.join(asset);
        if !file.exists() {
            return Err(incomplete(asset));
        }
        let actual = sha256_of(&file)?;
        let listed = sums
            .get(asset)
            .map(|sum| (sum, sums_path.display().to_string()));
        let lock = locked.get(asset).map(|sum| (sum, "images.lock".to_owned()));
        for (expected, expected_by) in listed.into_iter().chain(lock) {
            if *expected != actual {
                return Err(ArtifactError::Checksum {
                    file,
                    actual,
                    expected: expected.clone(),
                    expected_by,
                });
            }
        }
        if !sums.contains_key(asset) {
            return Err(incomplete(&format!("a checksum of {asset}")));
        }
        verified.insert(asset.to_owned(), actual);
    }
    Ok(verified)
}

/// Reads sha256sum(1)'s format: sum, two characters, name.
fn parse_sums(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let (sum, name) = line.split_once(char::is_whitespace)?;
            let name = name.trim_start().trim_start_matches('*');
            let is_sum = sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
            is_sum.then(|| (name.to_owned(), sum.to_ascii_lowercase()))
        })
        .collect()
}

/// SHA-256 of a file, in hex, read in pieces.
pub fn sha256_of(path: &Path) -> Result<String, ArtifactError> {
    crate::files::sha256_of(path).map_err(io(format!("read {}", path.display())))
}

#[cfg(test)]
mod tests;
