use super::*;

fn member(path: &str) -> Member {
    Member {
        path: path.to_owned(),
        size: 0,
        sha256: "0".repeat(64),
        executable: false,
    }
}

#[test]
fn paths_are_those_of_a_bundle() {
    for path in [
        "bin/orch",
        "k3s/k3s",
        "images/index.json",
        "project/orch.yaml",
        "project/a b/ü.yaml",
    ] {
        assert_eq!(check_path(path), Ok(()), "{path}");
    }
    for path in [
        "orch",
        "bin/a/b",
        "project",
        "project/..",
        "project/a/../b",
        "bin/.x",
        "bin/a\0",
    ] {
        assert!(check_path(path).is_err(), "{path}");
    }
}

#[test]
fn a_member_is_below_its_folder_and_no_other() {
    assert_eq!(
        member("images/index.json").below(IMAGES),
        Some("index.json")
    );
    assert_eq!(member("imagesx/index.json").below(IMAGES), None);
    assert_eq!(member("k3s/k3s").below(IMAGES), None);
}

#[test]
fn the_index_has_each_image_by_digest_and_by_tag() {
    let image = |tag: Option<&str>| Image {
        repository: "docker.io/me/app".to_owned(),
        tag: tag.map(str::to_owned),
        digest: format!("sha256:{}", "a".repeat(64)),
        media_type: "x".to_owned(),
        size: 1,
    };
    let index = layout::index(&[image(Some("b")), image(Some("a")), image(None)]);
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap_or_default();
    let names: Vec<_> = index["manifests"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| {
            entry["annotations"]["io.containerd.image.name"]
                .as_str()
                .unwrap_or_default()
        })
        .collect();
    let digest = layout::name(&image(None));
    assert_eq!(names, ["docker.io/me/app:a", "docker.io/me/app:b", &digest]);
}
