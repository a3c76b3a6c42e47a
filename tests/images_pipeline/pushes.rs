//! What a push makes, and what it costs when little or nothing changed.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use orch::images::engine::Engine;
use orch::images::execute::Rehearsal;
use orch::images::plan::Action;

use crate::project::{Project, actions};

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
    // A HEAD for each tag, one for the digest, GET of the manifest, another look at the tag, and PUT.
    assert_eq!(again.requests, 6);
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
