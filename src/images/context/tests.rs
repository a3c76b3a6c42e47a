use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

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
        .contents(None)
        .unwrap()
        .hash()
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
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
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

/// A context of every size that is read in its own way, and a cache beside it, all older than clocks are coarse.
fn cached() -> (tempfile::TempDir, StatCache) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("context");
    for name in 0..200 {
        let folder = root.join(format!("{}/{}", name % 10, name % 20));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name.to_string()), vec![b'x'; name]).unwrap();
    }
    fs::write(root.join("large"), vec![7; 5 << 20]).unwrap();
    let cache = StatCache::new(&folder.path().join("cache"))
        .at(SystemTime::now() + Duration::from_secs(10));
    (folder, cache)
}

fn read_with(root: &Path, cache: &StatCache) -> Contents {
    let context = Context::scan(root, &root.join("Dockerfile")).unwrap();
    context.contents(Some(cache)).unwrap()
}

#[test]
fn a_second_look_reads_nothing_and_a_change_is_read_alone() {
    let (folder, cache) = cached();
    let root = folder.path().join("context");
    let cold = read_with(&root, &cache);
    assert_eq!(cold.read().1, 201);
    let warm = read_with(&root, &cache);
    assert_eq!((warm.hash(), warm.read()), (cold.hash(), (0, 0)));
    // The same length and, as far as a program can set it, the same time.
    let file = root.join("7/7/7");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, b"yyyyyyy").unwrap();
    File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    fs::remove_file(root.join("8/8/8")).unwrap();
    fs::write(root.join("8/8/80"), "new").unwrap();
    let changed = read_with(&root, &cache);
    assert_eq!(changed.read(), (10, 2));
    assert_eq!(changed.hash(), hash(&root));
    assert_eq!(read_with(&root, &cache.clone().rehash()).read().1, 201);
}

#[test]
fn what_was_changed_a_moment_ago_is_read_again() {
    let (folder, cache) = cached();
    let root = folder.path().join("context");
    let cache = cache.at(SystemTime::now());
    read_with(&root, &cache);
    assert_eq!(read_with(&root, &cache).read().1, 201);
}

#[test]
fn a_damaged_cache_is_no_cache() {
    let (folder, cache) = cached();
    let root = folder.path().join("context");
    let cold = read_with(&root, &cache).hash();
    let path = fs::read_dir(folder.path().join("cache"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let whole = fs::read(&path).unwrap();
    for length in [0, 10, 48, 49, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let read = read_with(&root, &cache);
        assert_eq!((read.hash(), read.read().1), (cold, 201), "{length}");
    }
    for at in [3, 20, 60, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        fs::write(&path, flipped).unwrap();
        let read = read_with(&root, &cache);
        assert_eq!((read.hash(), read.read().1), (cold, 201), "{at}");
    }
    // A cache that cannot be written is none either.
    fs::remove_dir_all(folder.path().join("cache")).unwrap();
    fs::write(folder.path().join("cache"), "").unwrap();
    assert_eq!(read_with(&root, &cache).hash(), cold);
}

#[test]
fn a_file_that_is_not_the_listed_one_is_an_error_that_names_it() {
    let (folder, cache) = cached();
    let root = folder.path().join("context");
    let context = Context::scan(&root, &root.join("Dockerfile")).unwrap();
    fs::write(root.join("7/7/7"), "another").unwrap();
    let error = context.contents(Some(&cache)).unwrap_err();
    assert!(error.to_string().contains("7/7/7 changed"), "{error}");
    fs::remove_file(root.join("7/7/7")).unwrap();
    symlink("8", root.join("7/7/7")).unwrap();
    assert!(context.contents(None).is_err());
}

proptest::proptest! {
    #[test]
    fn no_cache_file_makes_it_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let (folder, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(root.path().join("file"), "x").unwrap();
        let cache = StatCache::new(folder.path());
        cache.write_body(&Context::scan(root.path(), Path::new("Dockerfile")).unwrap(), &body);
        proptest::prop_assert_eq!(read_with(root.path(), &cache).read().1, 1);
    }
}
