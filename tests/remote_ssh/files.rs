//! Files onto a node: skipped, whole, or not there at all.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use orch::files::sha256_of;
use orch::remote::{PrivateFile, Privilege, Reason, Uploaded};
use zeroize::Zeroizing;

use crate::support::Server;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_file_is_uploaded_once() {
    let server = Server::start("");
    let connection = server.connect().await;
    let content: Vec<u8> = (0..3_000_001u32)
        .map(|number| (number % 253) as u8)
        .collect();
    let local = server.path("local");
    fs::write(&local, &content).unwrap();
    let sum = sha256_of(&local).unwrap();
    let folder = server.path("a folder");
    let remote = folder.join("it's k3s");
    let path = remote.to_str().unwrap();
    let upload = async |mode| {
        connection
            .upload_if_changed(&Privilege::Root, &local, &sum, path, mode)
            .await
    };

    assert_eq!(upload(0o755).await.unwrap(), Uploaded::Written);
    assert_eq!(fs::read(&remote).unwrap(), content);
    assert_eq!(mode(&remote), 0o755);
    let inode = fs::metadata(&remote).unwrap().ino();
    assert_eq!(upload(0o755).await.unwrap(), Uploaded::Unchanged);
    assert_eq!(upload(0o600).await.unwrap(), Uploaded::Unchanged);
    assert_eq!(
        (mode(&remote), fs::metadata(&remote).unwrap().ino()),
        (0o600, inode)
    );

    fs::write(&remote, "something else").unwrap();
    assert_eq!(upload(0o644).await.unwrap(), Uploaded::Written);
    assert_eq!(fs::read(&remote).unwrap(), content);
    assert_eq!(names(&folder), ["it's k3s"]);
}

#[tokio::test]
async fn a_file_that_is_not_what_it_should_be_replaces_nothing() {
    let server = Server::start("");
    let connection = server.connect().await;
    let local = server.path("local");
    fs::write(&local, "new").unwrap();
    let folder = server.path("there");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "old").unwrap();
    let remote = folder.join("file");
    let upload = async |file: &Path, sum: &str, remote: &str| {
        let uploaded = connection
            .upload_if_changed(&Privilege::Root, file, sum, remote, 0o644)
            .await;
        *uploaded.unwrap_err().reason
    };
    let reason = upload(&local, &"0".repeat(64), remote.to_str().unwrap()).await;
    let actual = sha256_of(&local).unwrap();
    assert!(
        matches!(&reason, Reason::WrongSum { actual: found, .. } if *found == actual),
        "{reason}"
    );
    let reason = upload(&server.path("missing"), &actual, remote.to_str().unwrap()).await;
    assert!(matches!(reason, Reason::LocalFile { .. }), "{reason}");
    let reason = upload(&local, &actual, folder.to_str().unwrap()).await;
    assert!(reason.to_string().contains("is a directory"), "{reason}");
    let reason = upload(&local, &actual, "relative").await;
    assert!(matches!(reason, Reason::Invalid { .. }), "{reason}");
    assert_eq!(fs::read(&remote).unwrap(), b"old");
    // What was begun is cleared away by the node when the channel closes.
    gone(&folder, &["file"]).await;
}

/// Waits for what is on its way out.
async fn gone(folder: &Path, left: &[&str]) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while names(folder) != left {
        assert!(std::time::Instant::now() < deadline, "{:?}", names(folder));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn an_upload_that_is_cut_off_leaves_what_was_there() {
    let mut server = Server::start("");
    let connection = server.connect().await;
    // Sparse, and far more than goes through before somebody looks.
    let local = server.path("local");
    fs::File::create(&local)
        .unwrap()
        .set_len(20_000_000_000)
        .unwrap();
    let folder = server.path("there");
    fs::create_dir(&folder).unwrap();
    let remote = folder.join("file");
    fs::write(&remote, "old").unwrap();
    let sum = "0".repeat(64);
    let upload = connection.upload_if_changed(
        &Privilege::Root,
        &local,
        &sum,
        remote.to_str().unwrap(),
        0o644,
    );
    let begun = || {
        let staged = names(&folder)
            .into_iter()
            .find(|name| name.starts_with(".file.orch-"));
        staged.is_some_and(|name| {
            fs::metadata(folder.join(name)).is_ok_and(|found| found.len() > 1_000_000)
        })
    };
    let killing = async {
        while !begun() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        server.cut_connections();
    };
    let (result, ()) = tokio::join!(upload, killing);
    let error = result.unwrap_err();
    assert!(matches!(*error.reason, Reason::Ended { .. }), "{error}");
    gone(&folder, &["file"]).await;
    assert_eq!(fs::read(&remote).unwrap(), b"old");
}

#[tokio::test]
async fn secret_files_are_private_and_whole() {
    let server = Server::start("");
    let connection = server.connect().await;
    let folder = server.path("there/secrets");
    let path = folder.to_str().unwrap();
    let file = |name: &str, content: &[u8]| PrivateFile {
        name: name.into(),
        content: Zeroizing::new(content.to_vec()),
    };
    let large = vec![7; 300_000];
    let files = [
        file("token", b"one\n"),
        file("empty", b""),
        file("large", &large),
    ];
    connection
        .write_private(&Privilege::Root, &files, path)
        .await
        .unwrap();
    assert_eq!((mode(&folder), mode(&server.path("there"))), (0o700, 0o755));
    assert_eq!(names(&folder), ["empty", "large", "token"]);
    assert_eq!(fs::read(folder.join("large")).unwrap(), large);
    for name in names(&folder) {
        assert_eq!(mode(&folder.join(&name)), 0o600, "{name}");
    }
    // Replaced, also where somebody had opened it up; the others stay.
    fs::set_permissions(folder.join("token"), fs::Permissions::from_mode(0o666)).unwrap();
    connection
        .write_private(&Privilege::Root, &[file("token", b"two\n")], path)
        .await
        .unwrap();
    assert_eq!(fs::read(folder.join("token")).unwrap(), b"two\n");
    assert_eq!(mode(&folder.join("token")), 0o600);
    assert_eq!(names(&folder), ["empty", "large", "token"]);

    // One that cannot be put where it belongs, and none of them is.
    fs::create_dir(folder.join("taken")).unwrap();
    let files = [file("fresh", b"x"), file("taken", b"x")];
    let error = connection
        .write_private(&Privilege::Root, &files, path)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("taken is a directory"),
        "{error}"
    );
    assert_eq!(names(&folder), ["empty", "large", "taken", "token"]);
    for name in ["../x", "a/b", ""] {
        let error = connection
            .write_private(&Privilege::Root, &[file(name, b"x")], path)
            .await
            .unwrap_err();
        assert!(matches!(*error.reason, Reason::Invalid { .. }), "{error}");
    }
}
