//! What orch hashes is what Docker sends: every context is also built by plain `docker build`, and the listings are compared.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use orch::images::context::stage::Stage;
use orch::images::context::{Context, Kind};

/// Path -> what is there, in words that both sides can say.
type Listing = BTreeMap<String, String>;

fn file(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A folder with something for every pattern below.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    file(root, "Dockerfile", "FROM scratch\nCOPY . /\n");
    for path in [
        "README.md",
        "README-secret.md",
        "notes.md",
        "src/main.rs",
        "src/lib.rs",
        "src/deep/er/keep.txt",
        "src/deep/er/drop.tmp",
        "target/debug/app",
        "target/release/app",
        "target/keep/me",
        "docs/a.md",
        "docs/b/c.md",
        "a/b/foo",
        "a/foo",
        "foo",
        "temp1/x",
        "ab/temp2/y",
        "with space/ü.txt",
        "[brackets]",
        "node_modules/pkg/index.js",
        "web/node_modules/pkg/index.js",
        ".hidden/file",
        ".env",
    ] {
        file(root, path, &format!("content of {path}\n"));
    }
    fs::create_dir_all(root.join("empty/inner")).unwrap();
    fs::set_permissions(root.join("src/main.rs"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("main.rs", root.join("src/link")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    symlink("docs", root.join("link-to-folder")).unwrap();
    folder
}

fn docker(root: &Path, context: &Path) -> Listing {
    let archive = root.join("out.tar");
    let output = Command::new("docker")
        .args(["buildx", "build", "--provenance=false", "--output"])
        .arg(format!("type=tar,dest={}", archive.display()))
        .arg(context)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut listing = Listing::new();
    for entry in tar::Archive::new(fs::File::open(&archive).unwrap())
        .entries()
        .unwrap()
    {
        let mut entry = entry.unwrap();
        let path = entry
            .path()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_matches('/')
            .trim_start_matches("./")
            .to_owned();
        if path.is_empty() || path == "." {
            continue;
        }
        let kind = entry.header().entry_type();
        let words = if kind.is_dir() {
            "folder".to_owned()
        } else if kind.is_symlink() {
            format!("link {}", entry.link_name().unwrap().unwrap().display())
        } else {
            let executable = entry.header().mode().unwrap() & 0o111 != 0;
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            format!("file {executable} {content}")
        };
        listing.insert(path, words);
    }
    listing
}

fn orch(context: &Path) -> Listing {
    let scanned = Context::scan(context, &context.join("Dockerfile")).unwrap();
    let entries = scanned.entries.iter().map(|entry| {
        let words = match &entry.kind {
            Kind::Directory => "folder".to_owned(),
            Kind::Symlink { target } => format!("link {target}"),
            Kind::File { executable, .. } => {
                let content = fs::read_to_string(context.join(&entry.path)).unwrap();
                format!("file {executable} {content}")
            }
        };
        (entry.path.clone(), words)
    });
    entries.collect()
}

const RULES: [&str; 22] = [
    "",
    "*.md\n!README*.md\nREADME-secret.md\n",
    "*\n!src\n",
    "*\n!src/deep/er/keep.txt\n!target/keep\n",
    "target\nnode_modules\n",
    "**/node_modules\n**/*.tmp\n",
    "**/foo\n!a/foo\n",
    "/foo\n./docs/\n",
    "*/temp*\n*/*/temp*\ntemp?\n",
    "src/**\n!src/deep/**/keep.txt\n",
    "**\n!**/*.md\n",
    "docs/**/*.md\nempty\n",
    "Dockerfile\n.dockerignore\n",
    "*\n!Dockerfile\n!link-to-folder\n!src/link\n",
    "\\[brackets\\]\nwith space\n",
    "[a-d]*\n",
    ".*\n!.env\n",
    "target/*\n!target/keep\ntarget/keep/me\n",
    "  # not a comment because of the blanks\n# comment\n\n  docs  \n",
    "a/../docs\nsrc//deep\n",
    "docs/\n!docs/b\ndocs/b/c.md\n",
    "empty/*\n!empty/inner\na\n!a/b\n",
];

#[test]
fn every_rule_lets_through_what_docker_lets_through() {
    for rules in RULES {
        let work = tempfile::tempdir().unwrap();
        let context = folder();
        fs::write(context.path().join(".dockerignore"), rules).unwrap();
        let (ours, theirs) = (orch(context.path()), docker(work.path(), context.path()));
        assert_eq!(ours, theirs, "\nwith .dockerignore:\n{rules}");
    }
}

#[test]
fn the_ignore_file_beside_the_dockerfile_wins_there_as_well() {
    let work = tempfile::tempdir().unwrap();
    let context = folder();
    fs::write(context.path().join(".dockerignore"), "src\n").unwrap();
    fs::write(context.path().join("Dockerfile.dockerignore"), "docs\n").unwrap();
    assert_eq!(orch(context.path()), docker(work.path(), context.path()));
}

#[test]
fn what_is_staged_for_the_builder_is_what_docker_would_have_sent() {
    let work = tempfile::tempdir().unwrap();
    let context = folder();
    fs::write(
        context.path().join(".dockerignore"),
        "*\n!src\n!Dockerfile\n!dangling\n",
    )
    .unwrap();
    let staged = tempfile::tempdir().unwrap();
    let scanned = Context::scan(context.path(), &context.path().join("Dockerfile")).unwrap();
    let mut stage = Stage::new(staged.path());
    scanned.visit(&mut stage).unwrap();
    stage.finish().unwrap();
    assert_eq!(
        docker(work.path(), staged.path()),
        docker(work.path(), context.path())
    );
}
