//! Every builder makes the same of a project: docker with and without BuildKit, podman, buildah.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod images_project;
mod images_registry;

use std::process::Command;

use images_project::{Foreign, said, stdout};
use images_registry::{RealRegistry, docker};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What a component that runs a program in a base and one above it are like with every builder.
fn builds_with(builder: &str) {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        builder,
        &[
            (
                "below/Dockerfile",
                "FROM debian:bookworm-slim\nRUN echo made > /made && test ! -e /notes\nCOPY . /\n",
            ),
            ("below/.dockerignore", "notes\nDockerfile\n"),
            ("below/notes", "not for the image\n"),
            ("below/content", "content\n"),
            (
                "web/Dockerfile",
                "FROM below\nARG GREETING=none\nHEALTHCHECK CMD [\"true\"]\nRUN test -e /content && test ! -e /notes\n\
                 LABEL greeting=$GREETING\n",
            ),
            (
                "orch.yaml",
                "images: {components: [{name: web, args: {GREETING: hello}}]}\n",
            ),
            (
                "deploy/all.yaml",
                "kind: Pod\nspec: {containers: [{image: web}]}\n",
            ),
        ],
    );
    let common = [&["--builder", builder][..], &project.at(&registry.address)].concat();
    let orch =
        |arguments: &[&str]| stdout(project.orch_of_everyday(&[arguments, &common].concat()));
    orch(&["images", "push", "--pin"]);
    let pinned = project.read("deploy/all.yaml");
    let (_, digest) = pinned.split_once('@').unwrap();
    let digest = digest.split('}').next().unwrap();
    let repository = format!("/v2/{}/web", project.namespace);
    let manifest = registry.json(&format!("{repository}/manifests/{digest}"), MANIFEST);
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = registry.json(&format!("{repository}/blobs/{config}"), "*/*");
    assert_eq!(config["config"]["Labels"]["greeting"], "hello");
    assert!(config["config"]["Healthcheck"].is_object(), "{config}");
    let layers = manifest["layers"].as_array().unwrap().len();
    assert_eq!(
        config["rootfs"]["diff_ids"].as_array().unwrap().len(),
        layers
    );
    let again: serde_json::Value =
        serde_json::from_str(&orch(&["images", "push", "--pin", "--output", "json"])).unwrap();
    assert_eq!(
        (again["requests"].as_u64(), again["bytes_sent"].as_u64()),
        (Some(1), Some(0))
    );
    let reference = format!("{}/{}/web@{digest}", registry.address, project.namespace);
    docker(&["pull", "--quiet", &reference]);
    let run = ["run", "--rm", "--network", "none", &reference];
    let made = docker(&[&run[..], &["cat", "/made", "/content"]].concat());
    assert_eq!(made, "made\ncontent");
    docker(&["rmi", &reference]);
    if let Some(program) = ["podman", "buildah"]
        .into_iter()
        .find(|name| *name == builder)
    {
        for name in ["web", "below"] {
            let image = again["steps"]
                .as_array()
                .unwrap()
                .iter()
                .find(|step| step["component"] == name);
            let tag = image.unwrap()["tag"].as_str().unwrap();
            let tag = format!("{}/{}/{name}:{tag}", registry.address, project.namespace);
            Command::new(program).args(["rmi", &tag]).output().unwrap();
        }
    }
}

#[test]
fn docker_builds_without_buildkit() {
    builds_with("classic");
}

#[test]
fn podman_builds() {
    builds_with("podman");
}

#[test]
fn buildah_builds() {
    builds_with("buildah");
}

fn reproduced_with(builder: &str) {
    let project = Foreign::new(
        &format!("again-{builder}"),
        &[
            (
                "good/Dockerfile",
                "FROM debian:bookworm-slim\nRUN mkdir /made && date > /dev/null && touch /made/now\nCOPY file /\n",
            ),
            ("good/file", "content\n"),
            (
                "bad/Dockerfile",
                "FROM debian:bookworm-slim\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n",
            ),
        ],
    );
    let common = [
        "images",
        "reproduce",
        "--builder",
        builder,
        "--registry",
        "localhost:1",
        "--namespace",
        &project.namespace,
    ];
    let orch = |arguments: &[&str]| project.orch_of_everyday(&[&common, arguments].concat());
    let good = orch(&["good"]);
    assert!(good.status.success(), "{}", said(&good));
    assert!(
        said(&good).contains("both builds are sha256:"),
        "{}",
        said(&good)
    );
    let bad = orch(&["bad", "--output", "json"]);
    assert_eq!(bad.status.code(), Some(14), "{}", said(&bad));
    let found: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_ne!(found[0]["first"], found[0]["second"]);
    let differences = found[0]["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1, "{found}");
    assert_eq!(differences[0]["path"], "stamp");
    assert_eq!(differences[0]["what"][0]["what"], "content");
    let instruction = differences[0]["instruction"].as_str().unwrap();
    assert!(instruction.contains("random/uuid"), "{found}");
    let left = docker(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]);
    let ours = |line: &&str| line.contains(&project.namespace) && line.contains("-cold-");
    assert_eq!(left.lines().find(ours), None);
}

#[test]
fn two_cold_builds_are_equal_or_the_file_that_differs_is_named() {
    reproduced_with("docker");
}

#[test]
fn podmans_and_buildahs_cold_builds_are_equal_as_well() {
    reproduced_with("podman");
    reproduced_with("buildah");
}

/// A project with one component, which leaves something in a cache mount.
fn caching(name: &str, run: &str) -> Foreign {
    let mount = format!(
        "--mount=type=cache,id=orch-test-{name}-{},target=/cache",
        std::process::id()
    );
    let dockerfile = format!("FROM debian:bookworm-slim\nRUN {mount} {run}\n");
    Foreign::new(name, &[("app/Dockerfile", &dockerfile)])
}

fn reproduce_app(project: &Foreign, builder: &str) -> String {
    let names = [
        "--registry",
        "localhost:1",
        "--namespace",
        &project.namespace,
    ];
    let reproduce = ["images", "reproduce", "app", "--builder", builder];
    stdout(project.orch_of_everyday(&[&reproduce[..], &names].concat()))
}

#[test]
fn a_cold_build_finds_nothing_in_a_cache_mount() {
    // The second build would fail if it saw what the first one left.
    let project = caching(
        "cold-cache",
        "test ! -e /cache/left && touch /cache/left /made",
    );
    let said = reproduce_app(&project, "docker");
    assert!(said.contains("both builds are sha256:"), "{said}");
    assert!(!said.contains("not from nothing"), "{said}");
}

#[test]
fn a_cache_mount_that_a_builder_cannot_empty_is_told() {
    let project = caching("kept-cache", "touch /cache/left /made");
    let said = reproduce_app(&project, "podman");
    assert!(
        said.contains("not from nothing") && said.contains("cache mounts: /cache\n"),
        "{said}"
    );
}
