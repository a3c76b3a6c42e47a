//! K3s's release download: the checksum file first, then each asset into a temporary file that gets
//! its name only once its sum is right.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::{
    ArtifactError, Request, arch, binary_name, checksum_file, images_name, io, parse_sums,
    sha256_of,
};
use crate::progress::Progress;

/// How long the release host may take to accept a connection before it counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a download may stand still.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn fetch(
    request: &Request<'_>,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<(), ArtifactError> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .user_agent(concat!("orch/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|source| ArtifactError::Download {
            url: request.release_url.to_owned(),
            source,
        })?;
    let base = format!(
        "{}/{}",
        request.release_url.trim_end_matches('/'),
        // GitHub serves the tag with its plus sign escaped.
        request.version.replace('+', "%2B")
    );
    let sums_url = format!("{base}/{}", checksum_file());
    let text = get(&client, &sums_url, request)
        .await?
        .text()
        .await
        .map_err(|source| ArtifactError::Download {
            url: sums_url.clone(),
            source,
        })?;
    let sums = parse_sums(&text);
    std::fs::create_dir_all(directory).map_err(io(format!("make {}", directory.display())))?;
    for asset in [binary_name(), images_name()] {
        let url = format!("{base}/{asset}");
        let Some(expected) = sums.get(asset) else {
            return Err(ArtifactError::Incomplete {
                directory: directory.to_owned(),
                asset: format!("a checksum of {asset} ({}) in {sums_url}", arch()),
            });
        };
        // Fetched by a run that was interrupted before the other asset.
        if sha256_of(&directory.join(asset)).is_ok_and(|actual| actual == *expected) {
            continue;
        }
        download(
            &client,
            &url,
            expected,
            &directory.join(asset),
            request,
            progress,
        )
        .await?;
    }
    // Last, because its presence says that the folder is complete.
    let path = directory.join(checksum_file());
    let partial = path.with_extension("partial");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, &path))
        .map_err(io(format!("write {}", path.display())))
}

async fn get(
    client: &reqwest::Client,
    url: &str,
    request: &Request<'_>,
) -> Result<reqwest::Response, ArtifactError> {
    let response = client.get(url).send().await.map_err(|source| {
        if source.is_connect() || source.is_timeout() {
            ArtifactError::Unreachable {
                url: request.release_url.to_owned(),
                version: request.version.to_owned(),
                source,
            }
        } else {
            ArtifactError::Download {
                url: url.to_owned(),
                source,
            }
        }
    })?;
    if !response.status().is_success() {
        return Err(ArtifactError::Status {
            url: url.to_owned(),
            status: response.status().as_u16(),
            version: request.version.to_owned(),
        });
    }
    Ok(response)
}

async fn download(
    client: &reqwest::Client,
    url: &str,
    expected: &str,
    target: &Path,
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<(), ArtifactError> {
    let response = get(client, url, request).await?;
    let total = response.content_length();
    let name = target
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let partial = target.with_extension("partial");
    let writing = || format!("write {}", partial.display());
    let mut file = tokio::fs::File::create(&partial)
        .await
        .map_err(io(writing()))?;
    let mut hasher = Sha256::new();
    let mut done = 0;
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|source| ArtifactError::Download {
            url: url.to_owned(),
            source,
        })?;
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(io(writing()))?;
        done += piece.len() as u64;
        progress.bytes(&name, done, total);
    }
    file.sync_all().await.map_err(io(writing()))?;
    let actual = hex::encode(hasher.finalize());
    if actual != expected {
        std::fs::remove_file(&partial).map_err(io(format!("remove {}", partial.display())))?;
        return Err(ArtifactError::Checksum {
            file: target.to_owned(),
            actual,
            expected: expected.to_owned(),
            expected_by: checksum_file().to_owned(),
        });
    }
    // `orch kubectl` runs the K3s binary where no kubectl is installed.
    std::fs::set_permissions(&partial, std::fs::Permissions::from_mode(0o755))
        .and_then(|()| std::fs::rename(&partial, target))
        .map_err(io(format!("write {}", target.display())))
}
