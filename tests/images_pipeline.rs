//! The whole pipeline with a real builder and a real registry: names, layers, pushes, pins and checks.
//!
//! Needs Docker and, for the first run, a Debian mirror: the registry is this repository's own image.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests of pushing, which use more of it"
)]
mod images_fake;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use images_fake::FakeRegistry;
use orch::images::check::Finding;
use orch::images::component::{discover, host_platform};
use orch::images::destination::Destination;
use orch::images::engine::Engine;
use orch::images::event::{ImageEvent, Recorder};
use orch::images::execute::{Pipeline, Rehearsal, Settings};
use orch::images::plan::Action;
use orch::images::registry::Registry;
use orch::images::registry::retry::Policy;
use orch::images::registry::stand_in::StandIn;
use orch::images::{ImageError, execute::Report};

/// A project in a folder of its own, with a registry container that goes when this is dropped.
struct Project {
    folder: tempfile::TempDir,
    stand_in: StandIn,
    recorder: Arc<Recorder>,
}

impl Drop for Project {
    fn drop(&mut self) {
        let name = self.stand_in.name();
        for arguments in [["rm", "--force", &name], ["volume", "rm", &name]] {
            let _ = Command::new("docker").args(arguments).output();
        }
        let tags = Command::new("docker")
            .args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])
            .output();
        let tags = tags
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        let own = format!("{}/", self.stand_in.cluster);
        for tag in tags.lines().filter(|tag| tag.starts_with(&own)) {
            let _ = Command::new("docker").args(["rmi", tag]).output();
        }
    }
}

impl Project {
    /// Two components, one built on the other, and a manifest that uses both.
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let cluster = format!("images-dev-{name}-{}", std::process::id());
        let project = Self {
            folder,
            stand_in: StandIn { cluster, port },
            recorder: Arc::default(),
        };
        let registry = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfiles/registry");
        for item in fs::read_dir(registry).unwrap() {
            let item = item.unwrap();
            project.write(
                &format!("Dockerfiles/registry/{}", item.file_name().display()),
                &fs::read(item.path()).unwrap(),
            );
        }
        // Enough bytes that a layer is asked for before it is sent, and none that compress to nothing.
        let mut seed = 88_172_645_463_325_252_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        };
        let big: Vec<u8> = (0..3_000_000).map(|_| random()).collect();
        project.write(
            "Dockerfiles/below/Dockerfile",
            b"FROM scratch\nCOPY big /big\n",
        );
        project.write("Dockerfiles/below/big", &big);
        project.write(
            "Dockerfiles/app/Dockerfile",
            b"FROM below\nCOPY small /small\n",
        );
        project.write("Dockerfiles/app/small", b"one\n");
        project.write(
            "Dockerfiles/other/Dockerfile",
            b"FROM below\nCOPY --from=below /big /again\n",
        );
        project.write(
            "Manifests/pod.yaml",
            b"kind: Pod\nspec:\n  containers:\n  - image: app # mine\n  - {image: 'other'}\n",
        );
        project
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn pipeline_with(&self, engine: Engine, refresh: bool) -> Pipeline {
        let destination = Destination::choose(
            "docker.io",
            Some(&self.stand_in.cluster),
            false,
            self.stand_in.clone(),
        )
        .unwrap();
        assert!(
            destination.stand_in.is_some(),
            "these tests must not run with credentials for docker.io"
        );
        let settings = Settings {
            components: discover(&self.path("Dockerfiles"), &host_platform()).unwrap(),
            folder: self.path("Dockerfiles"),
            names: Vec::new(),
            manifests: vec![self.path("Manifests")],
            map: BTreeMap::new(),
            keep: Vec::new(),
            lock: self.path("images.lock"),
            cache: self.path("cache"),
            // Shared with real use: what debootstrap makes is the same for everybody.
            bases: orch::project::cache_directory().join("bases"),
            parallel_builds: 2,
            rehash: false,
            refresh,
            policy: Policy::default(),
            attest: orch::images::attest::Attest::default(),
        };
        Pipeline::new(settings, destination, engine, self.recorder.clone())
    }

    fn pipeline(&self) -> Pipeline {
        self.pipeline_with(Engine::default(), false)
    }

    /// A pipeline that fails as soon as it calls the engine.
    fn without_engine(&self) -> Pipeline {
        self.pipeline_with(Engine::new("/nonexistent/docker"), false)
    }

    async fn push(&self) -> Report {
        self.pipeline().push(true).await.unwrap()
    }

    fn client(&self) -> Arc<dyn Registry> {
        let destination = Destination::choose(
            "docker.io",
            Some(&self.stand_in.cluster),
            false,
            self.stand_in.clone(),
        )
        .unwrap();
        Arc::new(destination.client(&[], &Arc::default()).unwrap())
    }

    fn repository(&self, component: &str) -> String {
        format!("{}/{component}", self.stand_in.cluster)
    }
}

fn actions(steps: &[orch::images::plan::Step]) -> BTreeMap<&str, &Action> {
    steps
        .iter()
        .map(|step| (step.component.as_str(), &step.action))
        .collect()
}

#[tokio::test]
async fn from_nothing_to_pinned_and_nothing_more_to_do() {
    let project = Project::new("cold");
    let cold = project.push().await;
    assert!(cold.bytes_sent > 2_000_000, "{}", cold.bytes_sent);
    let pinned = project.read("Manifests/pod.yaml");
    let (app, other) = (&cold.references["app"], &cold.references["other"]);
    assert_eq!(
        pinned,
        format!(
            "kind: Pod\nspec:\n  containers:\n  - image: {app} # mine\n  - {{image: '{other}'}}\n"
        )
    );
    assert!(
        !cold.references.contains_key("below"),
        "a base of others is not published"
    );

    // What was pushed runs: the engine can pull it by the pinned digest.
    let digest = app.split_once('@').unwrap().1;
    let reference = format!(
        "{}/{}@{digest}",
        project.stand_in.host(),
        project.repository("app")
    );
    let pulled = Command::new("docker")
        .args(["pull", "--quiet", &reference])
        .output()
        .unwrap();
    assert!(
        pulled.status.success(),
        "{}",
        String::from_utf8_lossy(&pulled.stderr)
    );
    Command::new("docker")
        .args(["rmi", &reference])
        .output()
        .unwrap();

    let written = |path: &str| -> SystemTime {
        fs::metadata(project.path(path))
            .unwrap()
            .modified()
            .unwrap()
    };
    let before = (written("Manifests/pod.yaml"), written("images.lock"));
    let warm = project.without_engine().push(true).await.unwrap();
    assert_eq!(
        (warm.requests, warm.bytes_sent),
        (2, 0),
        "one HEAD for each image"
    );
    assert!(warm.pinned.is_empty());
    assert_eq!(
        before,
        (written("Manifests/pod.yaml"), written("images.lock"))
    );
    assert!(
        project
            .without_engine()
            .check(false)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn nothing_goes_to_another_registry_at_the_same_port() {
    let registry = FakeRegistry::start().await;
    let mut project = Project::new("foreign");
    project.stand_in.port = registry
        .address
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let error = project.without_engine().push(true).await.unwrap_err();
    assert!(matches!(error, ImageError::Registry(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("taken by another registry"), "{text}");
    assert!(text.contains("ports.registry"), "{text}");
    assert!(
        registry
            .log()
            .iter()
            .all(|line| line.starts_with("GET /v2/")),
        "{:?}",
        registry.log()
    );
}

#[tokio::test]
async fn a_small_change_costs_a_small_push() {
    let project = Project::new("change");
    let first = project.push().await;
    project.write("Dockerfiles/app/small", b"two\n");
    let plan = project.pipeline().plan(Rehearsal::Pin).await.unwrap();
    assert_eq!(actions(&plan)["app"], &Action::Build);
    assert!(matches!(actions(&plan)["other"], Action::Skip { .. }));
    let second = project.push().await;
    assert!(second.bytes_sent < 5000, "{} bytes", second.bytes_sent);
    // Two HEADs to plan, layer and configuration POST + PUT, HEAD and PUT of the manifest.
    assert_eq!(second.requests, 8);
    assert_ne!(first.references["app"], second.references["app"]);
    assert_eq!(first.references["other"], second.references["other"]);
    // Going back is free: the registry still has it.
    project.write("Dockerfiles/app/small", b"one\n");
    let third = project.without_engine().push(true).await.unwrap();
    assert_eq!((third.requests, third.bytes_sent), (2, 0));
    assert_eq!(third.references, first.references);
}

#[tokio::test]
async fn another_machine_adopts_what_the_registry_has() {
    let project = Project::new("adopt");
    let first = project.push().await;
    // A fresh clone: sources and lock, no cache, manifests as they were before.
    fs::remove_dir_all(project.path("cache")).unwrap();
    fs::remove_file(project.path("images.lock")).unwrap();
    project.write(
        "Manifests/pod.yaml",
        b"kind: Pod\nspec:\n  containers:\n  - image: app\n  - image: other\n",
    );
    let again = project.without_engine().push(true).await.unwrap();
    assert_eq!(again.references, first.references);
    assert_eq!((again.requests, again.bytes_sent), (2, 0));
}

#[tokio::test]
async fn check_tells_the_four_disagreements_apart() {
    let project = Project::new("check");
    let report = project.push().await;
    let client = project.client();
    let (repository, tag) = (
        project.repository("app"),
        report
            .steps
            .iter()
            .find(|step| step.component == "app")
            .unwrap()
            .tag
            .clone(),
    );
    let digest = report.references["app"]
        .split_once('@')
        .unwrap()
        .1
        .to_owned();

    project.write("Dockerfiles/app/small", b"two\n");
    let findings = project.without_engine().check(true).await.unwrap();
    let [
        Finding::SourceChanged {
            component, reason, ..
        },
    ] = &findings[..]
    else {
        panic!("{findings:?}");
    };
    assert_eq!(
        (component.as_str(), reason.as_str()),
        ("app", "small modified")
    );
    project.write("Dockerfiles/app/small", b"one\n");

    let pinned = project.read("Manifests/pod.yaml");
    project.write(
        "Manifests/pod.yaml",
        pinned
            .replace(&report.references["app"], "app:latest")
            .as_bytes(),
    );
    let findings = project.without_engine().check(true).await.unwrap();
    assert!(
        matches!(
            &findings[..],
            [Finding::ManifestUnpinned {
                line: 4,
                column: 12,
                ..
            }]
        ),
        "{findings:?}"
    );
    project.write("Manifests/pod.yaml", pinned.as_bytes());

    // Somebody stores another image under the tag.
    let other = report.references["other"].split_once('@').unwrap().1;
    let manifest = client
        .get_manifest(&project.repository("other"), other)
        .await
        .unwrap()
        .unwrap();
    let parsed: serde_json::Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let blobs = parsed["layers"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&parsed["config"]]);
    for blob in blobs {
        client
            .mount_blob(
                &repository,
                blob["digest"].as_str().unwrap(),
                &project.repository("other"),
            )
            .await
            .unwrap();
    }
    client
        .put_manifest(&repository, &tag, &manifest)
        .await
        .unwrap();
    let findings = project.without_engine().check(false).await.unwrap();
    let moved = |finding: &Finding| matches!(finding, Finding::TagMoved { found: Some(found), .. } if found == other);
    assert!(findings.len() == 1 && moved(&findings[0]), "{findings:?}");

    // And then the pinned one is deleted.
    let url = format!(
        "http://{}/v2/{repository}/manifests/{digest}",
        project.stand_in.host()
    );
    let answer = reqwest::Client::new().delete(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    let findings = project.without_engine().check(false).await.unwrap();
    assert!(
        matches!(&findings[..], [Finding::PinMissing { .. }]),
        "{findings:?}"
    );
    assert!(
        project
            .without_engine()
            .check(true)
            .await
            .unwrap()
            .is_empty(),
        "offline, nobody can know"
    );
}

#[tokio::test]
async fn a_lost_tag_costs_one_manifest() {
    let project = Project::new("retag");
    let report = project.push().await;
    let path = format!(
        "/var/lib/registry/docker/registry/v2/repositories/{}/_manifests/tags",
        project.repository("app")
    );
    let removed = Command::new("docker")
        .args(["exec", &project.stand_in.name(), "rm", "-r", &path])
        .output()
        .unwrap();
    assert!(
        removed.status.success(),
        "{}",
        String::from_utf8_lossy(&removed.stderr)
    );
    // Nor does the engine have it any more.
    let tag = report.references["app"]
        .split_once('@')
        .unwrap()
        .0
        .trim_start_matches("docker.io/")
        .to_owned();
    Command::new("docker").args(["rmi", &tag]).output().unwrap();
    let again = project.push().await;
    let digest = report.references["app"]
        .split_once('@')
        .unwrap()
        .1
        .to_owned();
    assert_eq!(actions(&again.steps)["app"], &Action::Retag { digest });
    // A HEAD for each tag, one for the digest, GET and PUT of the manifest.
    assert_eq!(again.requests, 5);
    assert_eq!(again.references, report.references);
}

#[tokio::test]
async fn a_refresh_replaces_what_the_registry_has() {
    let project = Project::new("refresh");
    project.write(
        "Manifests/pod.yaml",
        b"kind: Pod\nspec:\n  containers:\n  - image: app\n",
    );
    let before = project.push().await;
    let tag = before.references["app"]
        .split_once('@')
        .unwrap()
        .0
        .to_owned();
    let client = project.client();
    let (repository, name) = (project.repository("app"), tag.rsplit(':').next().unwrap());
    let refreshed = project
        .pipeline_with(Engine::default(), true)
        .push(true)
        .await
        .unwrap();
    let there = client
        .head_manifest(&repository, name)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(refreshed.references["app"], format!("{tag}@{there}"));
    assert!(project.read("Manifests/pod.yaml").contains(&there));
    assert!(
        actions(&refreshed.steps)
            .values()
            .all(|action| **action == Action::Build)
    );
}

#[tokio::test]
async fn what_is_built_on_is_pulled_when_only_the_registry_has_it() {
    let project = Project::new("pull");
    let manifest = b"kind: Pod\nspec:\n  containers:\n  - image: app\n  - image: below\n";
    project.write("Manifests/pod.yaml", manifest);
    let first = project.push().await;
    for reference in first.references.values() {
        let tag = reference
            .split_once('@')
            .unwrap()
            .0
            .trim_start_matches("docker.io/")
            .to_owned();
        Command::new("docker").args(["rmi", &tag]).output().unwrap();
    }
    project.write("Dockerfiles/app/small", b"two\n");
    let second = project.push().await;
    assert_eq!(actions(&second.steps)["app"], &Action::Build);
    assert!(matches!(
        actions(&second.steps)["below"],
        Action::Skip { digest: Some(_) }
    ));
    assert!(
        second.bytes_sent < 5000,
        "{} bytes: the layers below are not sent again",
        second.bytes_sent
    );
}

#[tokio::test]
async fn a_base_from_a_registry_is_locked_by_digest() {
    let project = Project::new("base");
    let first = project.push().await;
    let base = format!(
        "{}/{}:{}",
        project.stand_in.host(),
        project.repository("app"),
        "stable"
    );
    let client = project.client();
    let pin = |report: &Report, name: &str| {
        report.references[name]
            .split_once('@')
            .unwrap()
            .1
            .to_owned()
    };
    let manifest = client
        .get_manifest(&project.repository("app"), &pin(&first, "app"))
        .await
        .unwrap()
        .unwrap();
    client
        .put_manifest(&project.repository("app"), "stable", &manifest)
        .await
        .unwrap();
    project.write(
        "Dockerfiles/other/Dockerfile",
        format!("FROM {base}\nCOPY small /more\n").as_bytes(),
    );
    project.write("Dockerfiles/other/small", b"x\n");
    let second = project.push().await;
    assert!(
        project
            .read("images.lock")
            .contains(&format!("\"{base}\": \"{}\"", pin(&first, "app")))
    );
    // The tag moves on; the lock does not, until somebody asks for it.
    project.write("Dockerfiles/app/small", b"two\n");
    let third = project.push().await;
    let manifest = client
        .get_manifest(&project.repository("app"), &pin(&third, "app"))
        .await
        .unwrap()
        .unwrap();
    client
        .put_manifest(&project.repository("app"), "stable", &manifest)
        .await
        .unwrap();
    let fourth = project.without_engine().push(true).await.unwrap();
    assert_eq!(fourth.references["other"], second.references["other"]);
}

#[tokio::test]
async fn a_failed_build_quotes_the_builder_and_pins_nothing() {
    let project = Project::new("broken");
    project.write(
        "Dockerfiles/other/Dockerfile",
        b"FROM below\nCOPY missing /\n",
    );
    let before = project.read("Manifests/pod.yaml");
    let error = project.pipeline().push(true).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Build(_)), "{error:?}");
    assert!(
        text.contains("other") && text.contains("missing") && text.contains("Dockerfile"),
        "{text}"
    );
    assert_eq!(before, project.read("Manifests/pod.yaml"));
    assert!(!project.path("images.lock").exists());
}

#[tokio::test]
async fn an_image_nobody_builds_stops_everything_before_the_first_build() {
    let project = Project::new("unknown");
    project.write(
        "Manifests/pod.yaml",
        b"kind: Pod\nspec:\n  containers:\n  - image: app\n  - image: nginx:1\n",
    );
    let error = project.without_engine().push(true).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("pod.yaml:5:12: nobody builds `nginx:1`"),
        "{error}"
    );
}

#[tokio::test]
async fn a_dropped_push_leaves_no_builder_behind() {
    let project = Project::new("cancel");
    project.pipeline().start_stand_in().await.unwrap();
    let marker = format!("marker-{}", project.stand_in.cluster);
    project.write(
        "Dockerfiles/below/Dockerfile",
        format!("FROM registry\nRUN echo {marker}; sleep 600\n").as_bytes(),
    );
    project.write("Dockerfiles/app/Dockerfile", b"FROM below\n");
    let pipeline = project.pipeline();
    let mut push = Box::pin(pipeline.push(true));
    let started = || {
        let line = |event: &ImageEvent| matches!(event, ImageEvent::BuildLine { line, .. } if line.ends_with(&marker));
        project.recorder.events().iter().any(line)
    };
    while !started() {
        tokio::select! {
            result = &mut push => panic!("it ended: {:?}", result.map(|report| report.references)),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
    }
    let running = || {
        let list = Command::new("ps").args(["-eo", "args"]).output().unwrap();
        String::from_utf8_lossy(&list.stdout)
            .lines()
            .any(|line| line.contains(&marker) && line.contains("sleep 600"))
    };
    assert!(running());
    drop(push);
    for _ in 0..100 {
        if !running() {
            assert!(!project.path("images.lock").exists());
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the build still runs");
}
