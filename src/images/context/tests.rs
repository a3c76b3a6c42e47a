use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    fs::create_dir_all(folder.path().join("src/empty")).unwrap();
    fs::write(folder.path().join("src/main.rs"), "fn main() {}\n").unwrap();
    symlink("main.rs", folder.path().join("src/link")).unwrap();
    folder
}

fn hash(folder: &Path) -> Sha256Digest {
    Context::scan(folder, &folder.join("Dockerfile"))
        .unwrap()
        .hash()
        .unwrap()
}

/// Applies one change and says whether the name changed.
fn changes(change: impl FnOnce(&Path)) -> bool {
    let folder = folder();
    let before = hash(folder.path());
    change(folder.path());
    before != hash(folder.path())
}

#[test]
fn everything_that_reaches_the_builder_changes_the_hash() {
    assert!(changes(|root| fs::write(
        root.join("src/main.rs"),
        "fn main() { }\n"
    )
    .unwrap()));
    assert!(changes(|root| fs::rename(
        root.join("src/main.rs"),
        root.join("src/mein.rs")
    )
    .unwrap()));
    assert!(changes(|root| {
        fs::set_permissions(root.join("src/main.rs"), fs::Permissions::from_mode(0o755)).unwrap();
    }));
    assert!(changes(
        |root| fs::remove_dir(root.join("src/empty")).unwrap()
    ));
    assert!(changes(|root| {
        fs::remove_file(root.join("src/link")).unwrap();
        symlink("other", root.join("src/link")).unwrap();
    }));
    assert!(changes(|root| {
        fs::remove_file(root.join("src/link")).unwrap();
        fs::write(root.join("src/link"), "main.rs").unwrap();
    }));
}

#[test]
fn a_name_that_is_not_utf8_may_be_ignored_and_nothing_else() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let folder = folder();
    let root = folder.path();
    fs::write(root.join(OsStr::from_bytes(b"caf\xe9.txt")), "").unwrap();
    fs::create_dir(root.join(OsStr::from_bytes(b"m\xfcll"))).unwrap();
    let scan = || Context::scan(root, &root.join("Dockerfile"));
    assert!(matches!(scan(), Err(ContextError::Name { .. })));
    fs::write(root.join(".dockerignore"), "caf*\n").unwrap();
    assert!(matches!(scan(), Err(ContextError::Name { .. })));
    fs::write(root.join(".dockerignore"), "caf*\nm?ll\n").unwrap();
    let listed = scan().unwrap().entries;
    assert!(listed.iter().all(|entry| entry.path.is_ascii()));
    // What a pattern may bring back has to have a name.
    fs::write(root.join(".dockerignore"), "caf*\nm?ll\n!**/kept\n").unwrap();
    assert!(matches!(scan(), Err(ContextError::Name { .. })));
}

#[test]
fn what_does_not_reach_the_builder_does_not() {
    assert!(!changes(|root| {
        let path = root.join("src/main.rs");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
    }));
    let folder = folder();
    fs::write(folder.path().join(".dockerignore"), "notes\n").unwrap();
    let before = hash(folder.path());
    fs::write(folder.path().join("notes"), "not sent").unwrap();
    assert_eq!(before, hash(folder.path()));
}

#[test]
fn the_staged_copy_has_the_same_hash_and_fixed_times() {
    let folder = folder();
    let stage = tempfile::tempdir().unwrap();
    let context = Context::scan(folder.path(), &folder.path().join("Dockerfile")).unwrap();
    let mut visitor = stage::Stage::new(stage.path());
    let digest = context.visit(&mut visitor).unwrap();
    visitor.finish().unwrap();
    assert_eq!(digest, hash(folder.path()));
    assert_eq!(digest, hash(stage.path()));
    for name in ["src", "src/main.rs", "src/link", "src/empty"] {
        let modified = fs::symlink_metadata(stage.path().join(name))
            .unwrap()
            .modified()
            .unwrap();
        let seconds = modified
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert_eq!(seconds, SOURCE_DATE_EPOCH, "{name}");
    }
}

#[test]
fn an_ignore_file_beside_the_dockerfile_wins() {
    let folder = folder();
    fs::write(folder.path().join(".dockerignore"), "src\n").unwrap();
    fs::write(
        folder.path().join("Dockerfile.dockerignore"),
        "Dockerfile*\n",
    )
    .unwrap();
    let context = Context::scan(folder.path(), &folder.path().join("Dockerfile")).unwrap();
    let paths: Vec<&str> = context
        .entries
        .iter()
        .map(|entry| entry.path.as_str())
        .collect();
    assert_eq!(
        paths,
        [
            ".dockerignore",
            "src",
            "src/empty",
            "src/link",
            "src/main.rs"
        ]
    );
}

#[test]
fn a_pipe_is_refused_by_name() {
    let folder = folder();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let error = Context::scan(folder.path(), &folder.path().join("Dockerfile")).unwrap_err();
    assert!(error.to_string().contains("pipe"), "{error}");
}
