//! `orch bundle install`: from a file to a project that asks no network for anything.

use crate::site::{Site, names};

async fn made() -> Site {
    let site = Site::new().await;
    let app = site.image("me/app", &[b"layer"]);
    site.pods("app.yaml", &[site.name("me/app", ":v1", &app)]);
    site.create("b");
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_unpacked_once_and_goes_on_where_it_is() {
    let site = made().await;
    let id = site.done(&["bundle", "list", "b"])["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let unpack = [
        "bundle", "install", "b", "--unpack", "--into", "there", "--id", &id,
    ];
    site.done(&unpack);
    assert_eq!(
        names(&site.path("there")),
        ["Manifests", "orch-bundle", "orch.yaml"]
    );
    // What people change at the site stays.
    let changed = std::fs::read_to_string(site.path("there/orch.yaml")).unwrap() + "# changed\n";
    std::fs::write(site.path("there/orch.yaml"), &changed).unwrap();
    site.done(&unpack);
    assert_eq!(
        std::fs::read_to_string(site.path("there/orch.yaml")).unwrap(),
        changed
    );
    std::fs::write(site.path("there/orch-bundle/bin/orch-provision"), "other").unwrap();
    let said = site.refused(4, &unpack);
    assert!(
        said.contains("orch-provision") && said.contains("unpack the bundle again"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_something_else_is_left_alone() {
    let site = made().await;
    site.project.write("there/mine", "mine");
    let said = site.refused(3, &["bundle", "install", "b", "--into", "there"]);
    assert!(
        said.contains("holds something else") && said.contains("--into"),
        "{said}"
    );
    assert_eq!(names(&site.path("there")), ["mine"]);
    site.done(&["bundle", "install", "b", "--unpack"]);
    let app = site.image("me/app", &[b"another layer"]);
    site.pods("app.yaml", &[site.name("me/app", ":v2", &app)]);
    site.create("c");
    let said = site.refused(3, &["bundle", "install", "c"]);
    assert!(said.contains("one holds the bundle"), "{said}");
    let other = "0".repeat(64);
    let said = site.refused(3, &["bundle", "install", "b", "--id", &other]);
    assert!(said.contains("was asked for"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_bundle_is_used_for_nothing() {
    let site = made().await;
    let mut bytes = std::fs::read(site.path("b")).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(site.path("b"), bytes).unwrap();
    for command in [
        ["bundle", "list", "b"].as_slice(),
        &["bundle", "install", "b"],
        &["bundle", "install", "b", "--dry-run"],
    ] {
        let said = site.refused(3, command);
        assert!(
            said.contains("b: ") && said.contains("nothing of it was used"),
            "{said}"
        );
    }
    assert!(!site.path("one").exists() && !site.path(".one.orch-partial").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_unpacked_needs_neither_registry_nor_release() {
    let site = made().await;
    let asked = site.registry.log().len();
    let output = site.orch(&["bundle", "install", "b", "--dry-run"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("would be unpacked into one"), "{said}");
    assert!(!site.path("one").exists());
    site.done(&["bundle", "install", "b", "--unpack"]);
    // Where the cluster is, there is no registry, no folder of assets and nothing that was built here.
    std::fs::remove_dir_all(site.path("assets")).unwrap();
    std::fs::remove_file(site.path("orch-provision")).unwrap();
    let plan = site.done(&["--file", "one/orch.yaml", "create", "--dry-run"]);
    let plan = plan["plan"].to_string();
    assert!(plan.contains("would be given to every node"), "{plan}");
    assert!(
        !plan.contains("buildx") && !plan.contains("Docker"),
        "{plan}"
    );
    // The plan of the nodes gets as far as asking the first of them, which nobody has.
    let said = site.refused(5, &["--file", "one/orch.yaml", "cluster", "plan"]);
    assert!(said.contains("192.0.2.10"), "{said}");
    let said = site.refused(3, &["--file", "one/orch.yaml", "bundle", "create"]);
    assert!(said.contains("came out of a bundle"), "{said}");
    let yaml = std::fs::read_to_string(site.path("one/orch.yaml")).unwrap();
    let other = yaml.replace("k3s: {", "k3s: {version: v1.33.4+k3s1, ");
    std::fs::write(site.path("one/orch.yaml"), other).unwrap();
    let said = site.refused(3, &["--file", "one/orch.yaml", "cluster", "plan"]);
    assert!(said.contains("v1.33.4+k3s1, the bundle has"), "{said}");
    assert_eq!(site.registry.log().len(), asked);
}
