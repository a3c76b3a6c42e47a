//! Sources, manifests and registry that disagree.

use orch::images::check::Finding;

use crate::project::Project;

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
