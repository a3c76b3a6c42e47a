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
    Request {
        version: "v1.34.2+k3s1",
        policy: Policy::Release,
        directory: Some(directory),
        release_url: "https://127.0.0.1:1/releases",
        cache: directory,
        standin: directory,
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
