//! `orch bundle create`: from a registry and a folder to a file.

use orch::bundle::read;

use crate::files::{Keeping, hex_of};
use crate::images_fake::FaultKind;
use crate::site::{Site, names};

const HIDDEN: &str = "a-password-of-this-cluster";

#[tokio::test(flavor = "multi_thread")]
async fn two_bundles_of_one_project_are_equal_and_hold_what_was_pushed() {
    let site = Site::new().await;
    let shared: Vec<u8> = (0..u32::from(u16::MAX))
        .flat_map(u32::to_le_bytes)
        .collect();
    let app = site.image("me/app", &[&shared, b"app"]);
    let other = site.image("me/other", &[&shared, b"other"]);
    let images = [
        site.name("me/app", ":v1", &app),
        site.name("me/other", "", &other),
        site.name("me/app", ":v2", &app),
    ];
    site.pods("app.yaml", &images);
    site.project
        .write("Manifests/app/notes.txt", "nothing that orch reads");
    let first = site.create("one.tar.zst");
    let second = site.create("two.tar.zst");
    let bytes = std::fs::read(site.path("one.tar.zst")).unwrap();
    assert_eq!(bytes, std::fs::read(site.path("two.tar.zst")).unwrap());
    assert_eq!(first["sha256"], hex_of(&bytes));
    assert_eq!(
        (&first["id"], &first["contents"]),
        (&second["id"], &second["contents"])
    );
    // The layer that both have was sent for once in each run.
    let layer = format!("sha256:{}", hex_of(&shared));
    let log = site.registry.log();
    let sent = log
        .iter()
        .filter(|line| line.starts_with("GET") && line.ends_with(&layer));
    assert_eq!(sent.count(), 2);

    let listed = site.done(&["bundle", "list", "one.tar.zst"]);
    assert_eq!(
        (&listed["id"], &listed["contents"]),
        (&first["id"], &first["contents"])
    );
    let digests: Vec<_> = listed["contents"]["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| (image["tag"].as_str(), image["digest"].as_str()))
        .collect();
    let (app, other) = (app["digest"].as_str(), other["digest"].as_str());
    assert_eq!(
        digests,
        [(Some("v1"), app), (Some("v2"), app), (None, other)]
    );

    let mut keeping = Keeping::default();
    read::read(&site.path("one.tar.zst"), &mut keeping).unwrap();
    assert_eq!(
        keeping.files[&format!("images/blobs/sha256/{}", hex_of(&shared))],
        shared
    );
    let index: serde_json::Value =
        serde_json::from_slice(&keeping.files["images/index.json"]).unwrap();
    let names: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            entry["annotations"]["io.containerd.image.name"]
                .as_str()
                .unwrap()
        })
        .collect();
    let address = &site.registry.address;
    assert_eq!(
        names,
        [
            format!("{address}/me/app:v1"),
            format!("{address}/me/app:v2"),
            format!("{address}/me/app@{}", app.unwrap()),
            format!("{address}/me/other@{}", other.unwrap()),
        ]
    );
    let project: Vec<_> = keeping
        .files
        .keys()
        .filter(|path| path.starts_with("project/"))
        .collect();
    assert_eq!(
        project,
        ["project/Manifests/app/app.yaml", "project/orch.yaml"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_cluster_gets_in() {
    let site = Site::new().await;
    let app = site.image("me/app", &[b"app"]);
    site.pods("app.yaml", &[site.name("me/app", "", &app)]);
    let secret = |value: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\nstringData: {{password: {value}}}\n"
        )
    };
    site.project.write(
        "Manifests/app/secrets.example.yaml",
        &secret("<generate:32>"),
    );
    site.project
        .write("Manifests/app/secrets.yaml", &secret(HIDDEN));
    site.project.write("Manifests/app/.hidden.yaml", HIDDEN);
    for file in [
        "keys/operator_key",
        "nodes/master/node.json",
        "k3s.yaml",
        "images.lock",
    ] {
        site.project.write(&format!(".orch/one/{file}"), HIDDEN);
    }
    site.project.write("k3s.yaml", HIDDEN);
    site.create("one.tar.zst");
    let mut keeping = Keeping::default();
    read::read(&site.path("one.tar.zst"), &mut keeping).unwrap();
    assert!(
        keeping
            .files
            .contains_key("project/Manifests/app/secrets.example.yaml")
    );
    for (path, bytes) in &keeping.files {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(HIDDEN), "{path}");
        assert!(
            !path.contains("/secrets.yaml") && !path.contains(".orch"),
            "{path}"
        );
    }

    // Secrets that could not be made anew are an error, and not a surprise where the bundle is installed.
    site.project.write(
        "Manifests/app/more.yaml",
        &secret("x").replace("name: a", "name: b"),
    );
    let said = site.refused(3, &["bundle", "create"]);
    assert!(
        said.contains("more.yaml:1:1") && said.contains("secrets.example.yaml"),
        "{said}"
    );
    std::fs::remove_file(site.path("Manifests/app/more.yaml")).unwrap();
    std::fs::remove_file(site.path("Manifests/app/secrets.example.yaml")).unwrap();
    let said = site.refused(3, &["bundle", "create"]);
    assert!(said.contains("secrets.yaml:1:1"), "{said}");
    assert!(!said.contains(HIDDEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_come_up_without_a_network_is_refused_with_its_place() {
    let site = Site::new().await;
    let app = site.image("me/app", &[b"app"]);
    let name = site.name("me/app", "", &app);
    site.pods("app.yaml", &[name.clone(), "redis:7".to_owned()]);
    let said = site.refused(3, &["bundle", "create", "-o", "b"]);
    assert!(
        said.contains("app.yaml:17:14") && said.contains("redis:7"),
        "{said}"
    );
    // Whoever says so has it on the nodes already.
    let made = site.done(&["bundle", "create", "-o", "b", "--keep", "redis"]);
    assert_eq!(made["contents"]["kept"], serde_json::json!(["redis:7"]));
    assert_eq!(made["contents"]["images"].as_array().unwrap().len(), 1);

    let always = format!("{name}\n      imagePullPolicy: Always");
    site.pods("app.yaml", &[always]);
    let said = site.refused(3, &["bundle", "create", "-o", "b"]);
    assert!(said.contains("imagePullPolicy"), "{said}");

    let lost = name.replace(&name[name.len() - 64..], &"0".repeat(64));
    site.pods("app.yaml", &[lost]);
    let said = site.refused(7, &["bundle", "create", "-o", "c"]);
    assert!(
        said.contains("app.yaml:8:14") && said.contains("does not have it"),
        "{said}"
    );
    assert!(!site.path("c").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_platforms_only_the_nodes_is_taken_and_the_index_stays_what_it_is() {
    let site = Site::new().await;
    let own = site.image("me/app", &[b"own"]);
    let other = site.image("me/app", &[b"other"]);
    let index = site.index("me/app", &own, &other);
    site.pods("app.yaml", &[site.name("me/app", ":v1", &index)]);
    let blobs = |made: &serde_json::Value| {
        let members = made["contents"]["members"].as_array().unwrap();
        let paths = members
            .iter()
            .map(|member| member["path"].as_str().unwrap().to_owned());
        let blobs =
            paths.filter_map(|path| Some(path.strip_prefix("images/blobs/sha256/")?.to_owned()));
        blobs.collect::<Vec<_>>()
    };
    let hex = |image: &serde_json::Value| image["digest"].as_str().unwrap()[7..].to_owned();
    let made = site.create("b");
    assert_eq!(made["contents"]["images"][0]["digest"], index["digest"]);
    let taken = blobs(&made);
    assert!(taken.contains(&hex(&index)) && taken.contains(&hex(&own)));
    assert!(!taken.contains(&hex(&other)) && !taken.contains(&hex_of(b"other")));
    let all = blobs(&site.done(&["bundle", "create", "-o", "b", "--all-platforms"]));
    assert!(all.contains(&hex(&other)) && all.contains(&hex_of(b"other")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_once_is_asked_again_and_one_that_lies_is_not_believed() {
    let site = Site::new().await;
    let app = site.image("me/app", &[b"layer"]);
    site.pods("app.yaml", &[site.name("me/app", "", &app)]);
    let good = site.create("good");
    site.registry
        .fail("GET", "/blobs/", FaultKind::Status(503, ""));
    site.registry
        .fail("GET", "/manifests/", FaultKind::Status(503, ""));
    assert_eq!(site.create("again")["id"], good["id"]);
    let layer = format!("sha256:{}", hex_of(b"layer"));
    site.registry
        .state
        .lock()
        .unwrap()
        .blobs
        .insert(layer, b"LAYER".to_vec());
    let said = site.refused(4, &["bundle", "create", "-o", "bad"]);
    assert!(said.contains(&hex_of(b"LAYER")), "{said}");
    let left: Vec<_> = names(site.project.path());
    assert!(
        !left
            .iter()
            .any(|name| name == "bad" || name.starts_with(".orch-bundle")),
        "{left:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_it_would_take_and_writes_nothing() {
    let site = Site::new().await;
    let app = site.image("me/app", &[b"layer"]);
    site.pods("app.yaml", &[site.name("me/app", "", &app)]);
    let before = names(site.project.path());
    let made = site.done(&["bundle", "create", "--dry-run"]);
    assert_eq!(made["contents"]["images"][0]["digest"], app["digest"]);
    assert_eq!(names(site.project.path()), before);
    assert_eq!(site.registry.count("GET /v2/me/app/blobs"), 0);
}
