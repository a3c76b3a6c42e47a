//! What stops a push, and that nothing is pinned, locked or left running then.

use std::process::Command;

use orch::images::ImageError;
use orch::images::event::ImageEvent;

use crate::images_fake::FakeRegistry;
use crate::project::Project;

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
