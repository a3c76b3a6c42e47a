//! Lists of packages of real executables: one that Go built, and one with what `cargo auditable` puts into executables.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use orch::images::attest::sbom::Subject;
use orch::images::attest::spdx::Bom;
use orch::images::context::Context;
use sha2::{Digest, Sha256};

fn run(folder: &Path, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "")
        .env("GOPROXY", "off")
        .env("GOTOOLCHAIN", "local");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

/// An executable of a tagged module with a dependency, stripped as for an image.
fn built_by_go(folder: &Path) -> Vec<u8> {
    write(
        folder,
        &[
            (
                "go.mod",
                "module example.org/tiny\n\ngo 1.22\n\nrequire example.org/dep v1.0.0\n",
            ),
            (
                "main.go",
                "package main\n\nimport \"example.org/dep\"\n\nfunc main() { dep.Do() }\n",
            ),
            (
                "vendor/modules.txt",
                "# example.org/dep v1.0.0\n## explicit; go 1.22\nexample.org/dep\n",
            ),
            (
                "vendor/example.org/dep/dep.go",
                "package dep\n\nfunc Do() {}\n",
            ),
        ],
    );
    let named = ["-c", "user.name=x", "-c", "user.email=x@example.org"];
    for arguments in [
        ["init", "--quiet"].as_slice(),
        &["add", "."],
        &["commit", "--quiet", "--message", "x"],
        &["tag", "v1.2.3"],
    ] {
        run(folder, "git", &[&named, arguments].concat());
    }
    let out = folder.join(".git/tiny");
    let path = out.to_str().unwrap();
    run(
        folder,
        "go",
        &["build", "-buildvcs=true", "-ldflags=-s -w", "-o", path, "."],
    );
    fs::read(out).unwrap()
}

/// An executable that carries a list in the way of `cargo auditable`.
fn built_by_rustc(folder: &Path) -> Vec<u8> {
    let list = r#"{"packages":[
        {"name":"app","version":"0.1.0","source":"local","dependencies":[1],"root":true},
        {"name":"serde","version":"1.0.200","source":"crates.io"}]}"#;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(list.as_bytes()).unwrap();
    let list = encoder.finish().unwrap();
    let source = format!(
        "#[used]\n#[no_mangle]\n#[link_section = \".dep-v0\"]\n\
         pub static AUDITABLE_VERSION_INFO: [u8; {}] = *include_bytes!(\"list\");\nfn main() {{}}\n",
        list.len()
    );
    fs::write(folder.join("list"), list).unwrap();
    write(folder, &[("main.rs", &source)]);
    let keep = "link-arg=-Wl,--undefined=AUDITABLE_VERSION_INFO";
    let options = ["--edition", "2021", "-C", keep, "-C", "strip=symbols"];
    run(
        folder,
        "rustc",
        &[&options[..], &["-o", "app", "main.rs"]].concat(),
    );
    fs::read(folder.join("app")).unwrap()
}

/// The packages of an image that has these layers of files with modes.
fn describe(layers: &[&[(&str, u32, &[u8])]]) -> Bom {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    let context = Context::scan(folder.path(), &folder.path().join("Dockerfile")).unwrap();
    let layers = layers.iter().map(|files| {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, mode, content) in *files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, path, *content).unwrap();
        }
        let bytes = archive.into_inner().unwrap();
        let digest = hex::encode(Sha256::digest(&bytes));
        let path = folder.path().join(&digest);
        fs::write(&path, bytes).unwrap();
        (format!("sha256:{digest}"), path)
    });
    let subject = Subject {
        repository: "docker.io/me/app".to_owned(),
        digest: "sha256:aa".to_owned(),
        platform: "linux/amd64".to_owned(),
        layers: layers.collect(),
    };
    subject.describe(&context).unwrap()
}

fn purls(bom: &Bom) -> BTreeSet<String> {
    bom.packages
        .iter()
        .map(|package| package.purl.clone())
        .collect()
}

#[test]
fn what_go_linked_is_listed_with_its_versions() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = built_by_go(folder.path());
    let bom = describe(&[&[("usr/bin/tiny", 0o755, &tiny)]]);
    assert_eq!(bom.remarks, Vec::<String>::new());
    let found = purls(&bom);
    for wanted in [
        "pkg:golang/example.org/tiny@v1.2.3",
        "pkg:golang/example.org/dep@v1.0.0",
    ] {
        assert!(found.contains(wanted), "{found:?}");
    }
    let version = Command::new("go").args(["env", "GOVERSION"]).output();
    let version = String::from_utf8(version.unwrap().stdout).unwrap();
    let version = version.trim().split(' ').next().unwrap();
    let version = version.strip_prefix("go").unwrap();
    assert!(found.contains(&format!("pkg:golang/stdlib@{version}")));
    assert_eq!(found.len(), 3, "{found:?}");
    let document = String::from_utf8(bom.to_json().unwrap()).unwrap();
    assert!(document.contains("linked into /usr/bin/tiny"), "{document}");
}

#[test]
fn what_cargo_auditable_noted_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let app = built_by_rustc(folder.path());
    let bom = describe(&[&[("app", 0o755, &app)]]);
    assert_eq!(bom.remarks, Vec::<String>::new());
    let found = purls(&bom);
    assert_eq!(
        found.iter().collect::<Vec<_>>(),
        ["pkg:cargo/app@0.1.0", "pkg:cargo/serde@1.0.200"]
    );
}

#[test]
fn only_executables_that_are_still_there_count() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = built_by_go(folder.path());
    let lower: &[(&str, u32, &[u8])] = &[("usr/bin/tiny", 0o755, &tiny)];
    for upper in [
        ("usr/bin/.wh.tiny", 0o644, b"".as_slice()),
        ("usr/bin/tiny", 0o755, b"#!/bin/sh\n"),
        ("usr/.wh..wh..opq", 0o644, b""),
        ("usr", 0o644, b"a file now"),
    ] {
        let bom = describe(&[lower, &[upper]]);
        assert_eq!(purls(&bom), BTreeSet::new(), "{:?}", upper.0);
    }
    // A plugin or an archive's member is not run.
    let bom = describe(&[&[("usr/share/tiny", 0o644, &tiny)]]);
    assert_eq!(purls(&bom), BTreeSet::new());
    let bom = describe(&[lower, &[("usr/bin/other", 0o755, b"#!/bin/sh\n")]]);
    assert_eq!(purls(&bom).len(), 3);
}

#[test]
fn a_list_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = built_by_go(folder.path());
    let magic = b"\xff Go buildinf:";
    let at = tiny.windows(magic.len()).position(|bytes| bytes == magic);
    // As before Go 1.18.
    tiny[at.unwrap() + 15] = 0;
    let bom = describe(&[&[("usr/bin/tiny", 0o755, &tiny)]]);
    let [remark] = bom.remarks.as_slice() else {
        unreachable!("{:?}", bom.remarks);
    };
    assert!(
        remark.contains("/usr/bin/tiny: it was built by a Go before 1.18"),
        "{remark}"
    );
}
