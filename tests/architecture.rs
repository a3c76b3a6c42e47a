//! Dependencies point one way: between crates, and between the folders of `src/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What a crate of the workspace may depend on inside it.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("orch", ["orch-contract", "orch-ssh"].as_slice()),
        (
            "orch-provision",
            &["orch-contract", "orch-runner", "orch-ssh"],
        ),
        ("orch-runner", &["orch-contract"]),
        ("orch-ssh", &["orch-contract"]),
        ("orch-contract", &[]),
    ])
}

#[test]
fn crates_depend_downwards_only() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let allowed = allowed();
    for package in metadata.workspace_packages() {
        let inside = allowed[package.name.as_str()];
        for dependency in &package.dependencies {
            if dependency.name.starts_with("orch") && dependency.kind == DependencyKind::Normal {
                assert!(
                    inside.contains(&dependency.name.as_str()),
                    "{} must not depend on {}",
                    package.name,
                    dependency.name
                );
            }
        }
    }
}

#[test]
fn what_runs_on_a_node_knows_no_cluster_registry_or_terminal() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    for package in metadata.workspace_packages() {
        if package.name.as_str() == "orch" {
            continue;
        }
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            assert!(
                !["kube", "k8s-openapi", "oci-client", "indicatif"].contains(&name),
                "{} must not depend on {name}",
                package.name
            );
        }
    }
}

/// Folders of `src/` and what each may name; everything may use the leaves.
#[test]
fn domains_never_import_one_another() {
    let leaves = ["files", "process", "progress", "project", "remote"];
    let domains = [
        "artifacts",
        "bundle",
        "config",
        "host",
        "images",
        "kube",
        "machines",
        "manifests",
        "nodes",
        "remote",
    ];
    let upper = ["cli", "commands", "ui", "exit"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for domain in domains {
        for file in walkdir::WalkDir::new(root.join(domain)) {
            let file = file.unwrap();
            if file
                .path()
                .extension()
                .is_none_or(|extension| extension != "rs")
            {
                continue;
            }
            let text = std::fs::read_to_string(file.path()).unwrap();
            for other in domains.iter().chain(&upper) {
                let import = format!("crate::{other}::");
                assert!(
                    *other == domain || !text.contains(&import) || leaves.contains(other),
                    "{} imports {other}",
                    file.path().display()
                );
            }
        }
    }
}

#[test]
fn main_is_small() {
    let main = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs");
    assert!(std::fs::read_to_string(main).unwrap().lines().count() < 30);
}
