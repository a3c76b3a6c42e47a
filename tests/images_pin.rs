//! `orch images pin` and `unpin`: a corpus of awkward YAML, byte for byte, and the commands against a registry in this process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod images_fake;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use images_fake::{FakeRegistry, FaultKind, digest};
use orch::images::lock::{Entry, Lock};
use orch::images::pin::{self, Manifest, Originals, Ours, PinError};

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A lock that says that the component `web` was pushed.
fn lock() -> Lock {
    let entry = Entry {
        digest: DIGEST.to_owned(),
        input: String::new(),
        parts: BTreeMap::new(),
        details: Default::default(),
        repository: "registry.example.org/acme/web".to_owned(),
        tag: "in-0123456789ab".to_owned(),
    };
    let mut lock = Lock::default();
    lock.components.insert("web".to_owned(), entry);
    lock
}

fn corpus(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/pin_corpus")
        .join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(".yaml") && !name.ends_with(".pinned.yaml")
        })
        .collect();
    files.sort();
    assert!(files.len() > 10, "{files:?}");
    files
}

fn edits(manifests: &[Manifest]) -> Result<Vec<pin::Edit>, PinError> {
    let lock = lock();
    let references = lock.components.iter();
    let references = references.map(|(name, entry)| (name.clone(), entry.pinned()));
    let ours = Ours::nowhere(vec!["web".to_owned()], &lock);
    pin::pin(manifests, &ours, &references.collect())
}

#[test]
fn the_corpus_is_pinned_and_unpinned_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let lock_file = folder.path().join("images.lock");
    let ours = Ours::nowhere(vec!["web".to_owned()], &lock());
    let copies: Vec<(PathBuf, PathBuf)> = corpus("")
        .into_iter()
        .map(|original| {
            let copy = folder.path().join(original.file_name().unwrap());
            fs::copy(&original, &copy).unwrap();
            (original, copy)
        })
        .collect();
    let places = [folder.path().to_owned()];
    let manifests = pin::read(&places).unwrap();
    assert_eq!(manifests.len(), copies.len());
    let found = edits(&manifests).unwrap();
    let originals = pin::record(&Originals::new(), &manifests, &found, &ours, &lock_file);
    pin::write(&found).unwrap();
    for (original, copy) in &copies {
        let expected = fs::read(original.with_extension("pinned.yaml")).unwrap();
        let is = String::from_utf8(fs::read(copy).unwrap()).unwrap();
        assert_eq!(
            is,
            String::from_utf8(expected).unwrap(),
            "{}",
            original.display()
        );
    }
    let manifests = pin::read(&places).unwrap();
    assert!(edits(&manifests).unwrap().is_empty());
    let back = pin::unpin(&manifests, &ours, &originals, &lock_file).unwrap();
    pin::write(&back).unwrap();
    for (original, copy) in &copies {
        let same = fs::read(original).unwrap() == fs::read(copy).unwrap();
        assert!(same, "{}", original.display());
    }
}

#[test]
fn what_cannot_be_pinned_is_refused_with_its_place() {
    for file in corpus("refused") {
        let expected = fs::read_to_string(file.with_extension("error")).unwrap();
        let expected = format!("{}:{}", file.display(), expected.trim_end());
        let read = pin::read(std::slice::from_ref(&file));
        let error = read.and_then(|manifests| edits(&manifests)).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with(&expected), "{error}\nand not\n{expected}");
    }
}

/// A folder with manifests, and nothing else that orch could go by.
struct Bench {
    folder: tempfile::TempDir,
}

struct Said {
    code: i32,
    out: String,
    error: String,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { folder }
    }

    async fn orch(&self, arguments: &[&str]) -> Said {
        let output = tokio::process::Command::new(assert_cmd::cargo::cargo_bin("orch"))
            .arg("images")
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("ORCH_FILE")
            .env_remove("DOCKER_HUB_USERNAME")
            .env("DOCKER_CONFIG", self.folder.path())
            .env("ORCH_CACHE", self.folder.path().join("cache"))
            // No engine answers here.
            .env("DOCKER_HOST", "unix:///nowhere.sock")
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            error: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path().join(path)).unwrap()
    }
}

fn pod(image: &str) -> String {
    format!("kind: Pod\r\nspec:\r\n  containers:\r\n  - image: {image} # kept\r\n")
}

#[tokio::test]
async fn a_known_digest_needs_no_dockerfile_lock_or_engine() {
    let bench = Bench::new(&[
        ("k8s/a.yaml", &pod("'web'")),
        ("k8s/b.yml", &pod("redis:7")),
    ]);
    let reference = format!("ghcr.io/acme/web@{DIGEST}");
    let set = format!("web={reference}");
    let arguments = [
        "pin",
        "--set",
        &set,
        "--manifests",
        "k8s",
        "--output",
        "json",
    ];
    let said = bench.orch(&[&arguments[..], &["--dry-run"]].concat()).await;
    assert_eq!(said.code, 0, "{}", said.error);
    assert_eq!(bench.read("k8s/a.yaml"), pod("'web'"));
    assert!(!bench.folder.path().join("images.lock").exists());
    let said = bench.orch(&arguments).await;
    assert_eq!(said.code, 0, "{}", said.error);
    let changes: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(
        changes,
        serde_json::json!([{"file": "k8s/a.yaml", "line": 4, "column": 12, "before": "web", "after": reference}])
    );
    assert_eq!(bench.read("k8s/a.yaml"), pod(&format!("'{reference}'")));
    assert_eq!(bench.read("k8s/b.yml"), pod("redis:7"));
    assert_eq!(bench.orch(&arguments).await.out.trim(), "[]");
    let said = bench.orch(&["unpin", "--manifests", "k8s"]).await;
    assert_eq!(said.code, 0, "{}", said.error);
    assert_eq!(bench.read("k8s/a.yaml"), pod("'web'"));
    let said = bench
        .orch(&[
            "pin",
            "--set",
            &set.replace("web=", "wbe="),
            "--manifests",
            "k8s",
        ])
        .await;
    assert_eq!(said.code, 3);
    assert!(
        said.error.contains("they have: web, redis"),
        "{}",
        said.error
    );
}

#[tokio::test]
async fn foreign_tags_are_resolved_once_each_and_taken_back() {
    let registry = FakeRegistry::start().await;
    let put = |tag: &str, bytes: &[u8]| {
        let manifests = &mut registry.state.lock().unwrap().manifests;
        manifests.insert(format!("acme/redis/{tag}"), bytes.to_vec());
    };
    put("7", b"{\"seven\": 1}");
    put("latest", b"{\"latest\": 1}");
    let (seven, latest) = (
        format!("{}/acme/redis:7", registry.address),
        format!("{}/acme/redis", registry.address),
    );
    let kept = format!("kept.example.org/x:1@{DIGEST}");
    let files = [
        ("k8s/a.yaml", pod(&seven)),
        ("k8s/b.yaml", pod(&format!("\"{latest}\""))),
        ("k8s/c.yaml", pod(&kept)),
        ("k8s/below/d.yaml", pod(&seven)),
        ("k8s/e.yaml", pod("nowhere.invalid/left:1")),
    ];
    let files = files.each_ref().map(|(path, text)| (*path, text.as_str()));
    let bench = Bench::new(&files);
    let arguments = [
        "pin",
        "--upstream",
        "--manifests",
        "k8s",
        "-R",
        "--keep",
        "nowhere.invalid/left",
    ];
    let said = bench.orch(&arguments).await;
    assert_eq!(said.code, 0, "{}", said.error);
    assert_eq!(registry.count("HEAD"), 2, "{:?}", registry.log());
    assert_eq!(registry.count(""), 2, "{:?}", registry.log());
    let pinned = |image: &str, bytes: &[u8]| format!("{image}@{}", digest(bytes));
    let first = pinned(&seven, b"{\"seven\": 1}");
    assert_eq!(bench.read("k8s/a.yaml"), pod(&first));
    assert_eq!(bench.read("k8s/below/d.yaml"), pod(&first));
    let other = pinned(&latest, b"{\"latest\": 1}");
    assert_eq!(bench.read("k8s/b.yaml"), pod(&format!("\"{other}\"")));
    assert_eq!(bench.read("k8s/c.yaml"), pod(&kept));
    // Nothing is asked about what is pinned, unless somebody wants it.
    assert_eq!(bench.orch(&arguments).await.out, "");
    assert_eq!(registry.count(""), 2);
    put("7", b"{\"seven\": 2}");
    let said = bench
        .orch(
            &[
                &arguments[..],
                &["--update", "--keep", "kept.example.org/x"],
            ]
            .concat(),
        )
        .await;
    assert_eq!(said.code, 0, "{}", said.error);
    assert_eq!(
        bench.read("k8s/a.yaml"),
        pod(&pinned(&seven, b"{\"seven\": 2}"))
    );
    let said = bench.orch(&["unpin", "--manifests", "k8s", "-R"]).await;
    assert_eq!(said.code, 0, "{}", said.error);
    for (path, text) in files {
        assert_eq!(bench.read(path), text, "{path}");
    }
    assert!(!bench.read("images.lock").contains("originals"));
}

#[tokio::test]
async fn a_digest_that_was_written_by_hand_comes_back_after_updates() {
    let registry = FakeRegistry::start().await;
    let put = |bytes: &[u8]| {
        let manifests = &mut registry.state.lock().unwrap().manifests;
        manifests.insert("acme/redis/7".to_owned(), bytes.to_vec());
    };
    put(b"{\"first\": 1}");
    let image = format!("{}/acme/redis:7", registry.address);
    let hand = format!("{image}@{DIGEST}");
    let other = format!("{image}@sha256:{}", "b".repeat(64));
    // The same image in every way, and one that is right already.
    let current = format!("{image}@{}", digest(b"{\"first\": 1}"));
    let mixed = format!(
        "containers:\r\n- image: '{hand}'  # by hand\r\n- image: {image}\r\n- {{image: \"{other}\"}}\r\n\
         - image: >-\r\n    {hand}\r\n- image: {current}\r\n"
    );
    let bench = Bench::new(&[("k8s/a.yaml", &mixed), ("k8s/b.yaml", &pod(&hand))]);
    let orch = async |arguments: &[&str]| {
        let said = bench
            .orch(&[arguments, &["--manifests", "k8s"]].concat())
            .await;
        assert_eq!(said.code, 0, "{}", said.error);
    };
    let update = ["pin", "--upstream", "--update"];
    orch(&["pin", "--upstream"]).await;
    assert_eq!(bench.read("k8s/b.yaml"), pod(&hand));
    for moved in [b"{\"first\": 1}", b"{\"later\": 1}", b"{\"again\": 1}"] {
        put(moved);
        orch(&update).await;
        let now = format!("{image}@{}", digest(moved));
        assert_eq!(bench.read("k8s/b.yaml"), pod(&now));
        let text = bench.read("k8s/a.yaml");
        assert_eq!(text.matches(&now).count(), 5, "{text}");
    }
    orch(&["unpin"]).await;
    assert_eq!(bench.read("k8s/a.yaml"), mixed);
    assert_eq!(bench.read("k8s/b.yaml"), pod(&hand));
    assert!(!bench.read("images.lock").contains("originals"));
    orch(&["unpin"]).await;
    assert_eq!(bench.read("k8s/a.yaml"), mixed);
}

#[tokio::test]
async fn one_image_that_cannot_be_resolved_changes_no_file() {
    let registry = FakeRegistry::start().await;
    let image = |name: &str| format!("{}/acme/{name}:7", registry.address);
    let manifests = || registry.state.clone();
    manifests()
        .lock()
        .unwrap()
        .manifests
        .insert("acme/redis/7".to_owned(), b"{}".to_vec());
    let files = [pod(&image("redis")), pod(&image("gone"))];
    let bench = Bench::new(&[("k8s/a.yaml", &files[0]), ("k8s/b.yaml", &files[1])]);
    let said = bench
        .orch(&["pin", "--upstream", "--manifests", "k8s"])
        .await;
    assert_eq!(said.code, 3, "{}", said.error);
    assert!(said.error.contains("b.yaml:4:12: "), "{}", said.error);
    assert!(said.error.contains("/acme/gone:7`"), "{}", said.error);
    registry.fail("HEAD", "redis", FaultKind::Status(403, ""));
    fs::remove_file(bench.folder.path().join("k8s/b.yaml")).unwrap();
    let said = bench
        .orch(&["pin", "--upstream", "--manifests", "k8s/a.yaml"])
        .await;
    assert_eq!(said.code, 7, "{}", said.error);
    assert_eq!(bench.read("k8s/a.yaml"), files[0]);
    assert!(!bench.folder.path().join("images.lock").exists());
}

#[tokio::test]
async fn the_lock_is_pinned_without_a_network_and_a_chart_is_refused() {
    let lock = serde_json::to_string(&lock()).unwrap();
    let bench = Bench::new(&[
        ("images.lock", &lock),
        ("Dockerfiles/web/Dockerfile", "FROM scratch\n"),
        ("k8s/a.yaml", &pod("acme/shop-web:3")),
        (
            "k8s/kustomization.yaml",
            "images:\n- {name: web, newTag: '7'}\n",
        ),
        ("chart/Chart.yaml", "name: web\n"),
        (
            "chart/templates/a.yaml",
            "kind: Pod\nspec: {containers: [{image: web}]}\n",
        ),
    ]);
    let said = bench.orch(&["pin", "--manifests", "k8s"]).await;
    assert_eq!(said.code, 3);
    let message =
        "a.yaml:4:12: nobody builds `acme/shop-web:3`: it is none of the components (web)";
    assert!(said.error.contains(message), "{}", said.error);
    let map = "--map=acme/shop-web=web";
    assert!(
        said.error.contains("`--map acme/shop-web=web`"),
        "{}",
        said.error
    );
    let said = bench.orch(&["pin", "--manifests", "k8s", map]).await;
    assert_eq!(said.code, 0, "{}", said.error);
    let reference = format!("registry.example.org/acme/web:in-0123456789ab@{DIGEST}");
    assert_eq!(bench.read("k8s/a.yaml"), pod(&reference));
    assert!(
        said.out
            .ends_with(&format!("acme/shop-web:3 -> {reference}\n")),
        "{}",
        said.out
    );
    let said = bench.orch(&["unpin", "--manifests", "k8s"]).await;
    assert_eq!(
        (said.code, bench.read("k8s/a.yaml")),
        (0, pod("acme/shop-web:3"))
    );
    let said = bench.orch(&["pin", "--manifests", "chart", "-R"]).await;
    assert_eq!(said.code, 3);
    assert!(
        said.error
            .contains("this is a Helm template: render it first (`helm template`)"),
        "{}",
        said.error
    );
    let said = bench.orch(&["pin"]).await;
    assert_eq!(said.code, 3);
    assert!(said.error.contains("--manifests"), "{}", said.error);
}
