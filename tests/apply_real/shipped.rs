//! The stack that this repository ships.

use std::fs;
use std::path::Path;

use orch::commands::apply::ApplyOutcome;
use orch::kube::ApplyResult;

use crate::fixture::{Fixture, IMAGE};
use crate::kubelet;

/// The shipped manifests with a digest behind every image that has none.
fn copy_movies(target: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("Manifests/movies");
    let digest = IMAGE.split_once('@').unwrap().1;
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name == "secrets.yaml" {
            continue;
        }
        let pin = |line: &str| match line
            .trim_start()
            .trim_start_matches("- ")
            .strip_prefix("image: ")
        {
            Some(image) if !image.contains('@') => format!("{line}@{digest}\n"),
            _ => format!("{line}\n"),
        };
        let text: String = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(pin)
            .collect();
        fs::write(target.join(name), text).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_stack_passes_strict_validation_and_is_unchanged_the_second_time() {
    let fixture = Fixture::new("microservices").await;
    fs::remove_file(fixture.path().join("namespace.yaml")).unwrap();
    copy_movies(fixture.path());
    kubelet::add_node(&fixture.client, "movies-node").await;
    let kubelet = kubelet::run(&fixture.client, &fixture.namespace, kubelet::ready(IMAGE));
    let first = fixture.apply().await;
    assert!(
        first.len() >= 20 && first.iter().all(|line| line.ends_with(" created")),
        "{first:#?}"
    );
    let ApplyOutcome::Applied { stacks, ready } = fixture.run().await.unwrap() else {
        panic!("planned instead of applied");
    };
    kubelet.abort();
    assert_eq!(ready.len(), 6);
    let changed: Vec<_> = stacks[0]
        .objects
        .iter()
        .filter(|object| object.result != ApplyResult::Unchanged)
        .collect();
    assert!(changed.is_empty(), "{changed:#?}");
}
