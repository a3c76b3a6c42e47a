//! Images for several platforms: the index, what this host runs of them, and programs that it cannot run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod images_project;
mod images_registry;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use images_project::{Foreign, said};
use images_registry::{RealRegistry, docker};
use orch::commands::images::build_for_host;
use orch::commands::images_settings::ImageSettings;
use orch::images::component::{Definition, host_platform};
use orch::images::event::Recorder;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn two_platforms_make_an_index_of_two_images() {
    index_with("docker");
}

#[test]
fn podman_and_buildah_make_an_index_as_well() {
    index_with("podman");
    index_with("buildah");
}

fn index_with(builder: &str) {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        &format!("many-{builder}"),
        &[
            (
                "orch.yaml",
                "images:\n  components:\n  - {name: web, platforms: [linux/arm64, linux/amd64]}\n  \
                 - {name: below, platforms: [linux/arm64, linux/amd64]}\n",
            ),
            (
                "below/Dockerfile",
                "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /architecture\n",
            ),
            ("below/amd64", "amd64\n"),
            ("below/arm64", "arm64\n"),
            ("web/Dockerfile", "FROM below\nCOPY page /\n"),
            ("web/page", "hello\n"),
            (
                "deploy/all.yaml",
                "kind: Pod\nspec: {containers: [{image: web}]}\n",
            ),
        ],
    );
    let common = [&project.at(&registry.address)[..], &["--builder", builder]].concat();
    let with = |arguments: &[&'static str]| -> Vec<&str> {
        arguments.iter().chain(&common).copied().collect()
    };
    project.done(&with(&["images", "push", "--pin"]));
    let pinned = project.read("deploy/all.yaml");
    let (_, digest) = pinned.split_once('@').unwrap();
    let digest = digest.split('}').next().unwrap();
    let repository = format!("/v2/{}/web", project.namespace);
    let index = registry.json(&format!("{repository}/manifests/{digest}"), INDEX);
    assert_eq!(index["mediaType"], INDEX);
    let children = index["manifests"].as_array().unwrap();
    assert_eq!(children.len(), 2);
    let mut layers = Vec::new();
    for (child, architecture) in children.iter().zip(["amd64", "arm64"]) {
        assert_eq!(child["platform"]["architecture"], architecture);
        assert_eq!(child["platform"]["os"], "linux");
        let digest = child["digest"].as_str().unwrap();
        let manifest = registry.json(&format!("{repository}/manifests/{digest}"), MANIFEST);
        let config = manifest["config"]["digest"].as_str().unwrap();
        let config = registry.json(&format!("{repository}/blobs/{config}"), "*/*");
        assert_eq!(config["architecture"], architecture);
        layers.push(manifest["layers"].clone());
    }
    // What is above is the same, what is below comes from each platform's own image.
    assert_ne!(layers[0][0], layers[1][0]);
    assert_eq!(layers[0][1], layers[1][1]);
    let again = project.done(&with(&["images", "push", "--pin", "--output", "json"]));
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(
        (again["requests"].as_u64(), again["bytes_sent"].as_u64()),
        (Some(1), Some(0))
    );
    project.done(&with(&["images", "check"]));
}

#[test]
fn a_program_of_another_architecture_is_refused_with_the_way_out() {
    if Path::new("/proc/sys/fs/binfmt_misc/qemu-s390x").exists() {
        // This host runs them.
        return;
    }
    let project = Foreign::new(
        "alien",
        &[
            (
                "app/Dockerfile",
                "FROM scratch\nCOPY program /program\nRUN [\"/program\"]\n",
            ),
            ("app/.dockerignore", ""),
        ],
    );
    // The head of a program for s390x, which is enough for the kernel to refuse it.
    let mut program = vec![0x7f, b'E', b'L', b'F', 2, 2, 1, 0];
    program.resize(64, 0);
    program[17] = 2;
    program[19] = 22;
    let path = project.path().join("app/program");
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = project.orch(&["images", "build", "--platform", "linux/s390x"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("qemu-user-static"), "{text}");
    assert!(text.contains("linux/s390x"), "{text}");
}

#[tokio::test]
async fn what_runs_on_this_host_is_its_own_platforms_image() {
    let project = Foreign::new(
        "host",
        &[(
            "machine/Dockerfile",
            "FROM scratch\nARG TARGETARCH\nLABEL for=$TARGETARCH\nCOPY Dockerfile /\n",
        )],
    );
    let settings = ImageSettings {
        dockerfiles: project.path().to_owned(),
        lock: project.path().join("images.lock"),
        cache: project.path().join(".cache"),
        bases: project.path().join(".cache"),
        registry: "localhost:1".to_owned(),
        namespace: Some(project.namespace.clone()),
        definitions: vec![Definition {
            name: "machine".to_owned(),
            platforms: ["amd64", "arm64", "s390x"]
                .map(|name| format!("linux/{name}"))
                .into(),
            ..Definition::default()
        }],
        ..ImageSettings::default()
    };
    let recorder = Arc::new(Recorder::default());
    let tag = build_for_host(&settings, "machine", recorder)
        .await
        .unwrap();
    let format = "{{.Os}}/{{.Config.Labels.for}}";
    assert_eq!(
        docker(&["image", "inspect", "--format", format, &tag]),
        host_platform()
    );
}
