//! What images are built on: other components, and what a registry has.

use std::process::Command;

use orch::images::execute::Report;
use orch::images::plan::Action;

use crate::project::{Project, actions};

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
