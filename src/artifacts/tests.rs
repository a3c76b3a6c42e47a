use sha2::{Digest, Sha256};

use super::*;
use crate::progress::Silent;

fn folder(binary: &[u8], sum_of: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(binary_name()), binary).unwrap();
    std::fs::write(folder.path().join(images_name()), b"images").unwrap();
    let sums = format!(
        "{}  {}\n{}  {}\n",
        hex::encode(Sha256::digest(sum_of)),
        binary_name(),
        hex::encode(Sha256::digest(b"images")),
        images_name()
    );
    std::fs::write(folder.path().join(checksum_file()), sums).unwrap();
    folder
}

fn request<'a>(directory: &'a Path, locked: &'a BTreeMap<String, String>) -> Request<'a> {
    // What `commands::run` does once for the program.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Request {
        version: "v1.34.2+k3s1",
        policy: Policy::Release,
        directory: Some(directory),
        release_url: "https://127.0.0.1:1/releases",
        cache: directory,
        standin: directory,
        standin_runs: false,
        locked,
    }
}

#[tokio::test]
async fn a_good_folder_is_taken_as_it_is() {
    let folder = folder(b"k3s", b"k3s");
    let locked = BTreeMap::new();
    let artifacts = acquire(&request(folder.path(), &locked), &Silent)
        .await
        .unwrap();
    assert_eq!(artifacts.source, Source::Directory);
    assert_eq!(artifacts.files().len(), 3);
}

#[tokio::test]
async fn a_wrong_checksum_names_both_sums() {
    let folder = folder(b"tampered", b"k3s");
    let locked = BTreeMap::new();
    let error = acquire(&request(folder.path(), &locked), &Silent)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&hex::encode(Sha256::digest(b"tampered"))),
        "{error}"
    );
    assert!(
        error.contains(&hex::encode(Sha256::digest(b"k3s"))),
        "{error}"
    );
}

#[tokio::test]
async fn a_lock_wins_over_a_matching_checksum_file() {
    let folder = folder(b"other", b"other");
    let locked = BTreeMap::from([(binary_name().to_owned(), "0".repeat(64))]);
    let error = acquire(&request(folder.path(), &locked), &Silent)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("images.lock says 0000"), "{error}");
}

#[tokio::test]
async fn a_missing_asset_is_named() {
    let folder = folder(b"k3s", b"k3s");
    std::fs::remove_file(folder.path().join(images_name())).unwrap();
    let locked = BTreeMap::new();
    let error = acquire(&request(folder.path(), &locked), &Silent)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("lacks k3s-airgap-images"), "{error}");
}

#[test]
fn both_forms_of_sha256sum_are_read() {
    let sum = "a".repeat(64);
    let sums = parse_sums(&format!("{sum}  text\n{sum} *binary\nnot a sum\n"));
    assert_eq!(sums.keys().collect::<Vec<_>>(), ["binary", "text"]);
}

/// A release host that answers with `binary` as K3s, on plain HTTP, for as many connections as come.
async fn release_host(binary: &'static [u8]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sums = format!(
        "{}  {}\n{}  {}\n",
        hex::encode(Sha256::digest(b"k3s")),
        binary_name(),
        hex::encode(Sha256::digest(b"images")),
        images_name()
    );
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let line = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = line.split_whitespace().nth(1).unwrap();
            let (status, body) = match path.rsplit_once('/') {
                Some(("/releases/v1.34.2%2Bk3s1", name)) if name == binary_name() => (200, binary),
                Some(("/releases/v1.34.2%2Bk3s1", name)) if name == images_name() => {
                    (200, b"images".as_slice())
                }
                Some(("/releases/v1.34.2%2Bk3s1", name)) if name == checksum_file() => {
                    (200, sums.as_bytes())
                }
                _ => (404, b"".as_slice()),
            };
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            stream
                .write_all(&[head.as_bytes(), body].concat())
                .await
                .unwrap();
        }
    });
    format!("http://{address}/releases")
}

fn download<'a>(
    url: &'a str,
    cache: &'a Path,
    locked: &'a BTreeMap<String, String>,
) -> Request<'a> {
    Request {
        directory: None,
        release_url: url,
        ..request(cache, locked)
    }
}

#[tokio::test]
async fn a_release_is_fetched_verified_and_then_taken_from_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let locked = BTreeMap::new();
    let url = release_host(b"k3s").await;
    let request = download(&url, cache.path(), &locked);
    let first = acquire(&request, &Silent).await.unwrap();
    assert_eq!(first.source, Source::Release);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(first.binary()).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o755, "`k3s kubectl` has to run");
    let second = acquire(&request, &Silent).await.unwrap();
    assert_eq!(second.source, Source::Cache);
}

#[tokio::test]
async fn a_damaged_asset_in_the_cache_is_fetched_again_once_it_is_deleted() {
    let cache = tempfile::tempdir().unwrap();
    let locked = BTreeMap::new();
    let url = release_host(b"k3s").await;
    let request = download(&url, cache.path(), &locked);
    let binary = acquire(&request, &Silent).await.unwrap().binary();
    std::fs::write(&binary, "damaged").unwrap();
    let error = acquire(&request, &Silent).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Checksum { .. }), "{error}");
    std::fs::remove_file(&binary).unwrap();
    let mended = acquire(&request, &Silent).await.unwrap();
    assert_eq!(std::fs::read(mended.binary()).unwrap(), b"k3s");
}

#[tokio::test]
async fn a_download_with_a_wrong_checksum_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let locked = BTreeMap::new();
    let url = release_host(b"replaced").await;
    let request = download(&url, cache.path(), &locked);
    let error = acquire(&request, &Silent).await.unwrap_err();
    assert!(matches!(error, ArtifactError::Checksum { .. }), "{error}");
    let folder = cache.path().join("k3s/v1.34.2+k3s1");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
}

#[tokio::test]
async fn nodes_that_cannot_run_the_stand_in_are_not_given_it() {
    let cache = tempfile::tempdir().unwrap();
    let locked = BTreeMap::new();
    let wanted = |policy| Request {
        policy,
        directory: None,
        ..request(cache.path(), &locked)
    };
    let error = acquire(&wanted(Policy::Any), &Silent).await.unwrap_err();
    assert!(
        matches!(error, ArtifactError::Unreachable { .. }),
        "{error}"
    );
    let error = acquire(&wanted(Policy::Standin), &Silent)
        .await
        .unwrap_err();
    assert!(matches!(error, ArtifactError::NoStandin), "{error}");
}
