use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::images::destination::Destination;
use crate::images::lock::{Entry, Lock, Original};
use crate::images::registry::http::Endpoint;

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn reference(name: &str) -> String {
    format!("docker.io/me/{name}:in-0123456789ab@{DIGEST}")
}

const COMPONENTS: [&str; 3] = ["app", "database", "1.5"];

fn ours_at(registry: &str, lock: &Lock) -> Ours {
    let destination = Destination {
        registry: registry.to_owned(),
        namespace: "me".to_owned(),
        endpoint: Endpoint::of(registry, false).unwrap(),
        credential: None,
        stand_in: None,
    };
    Ours::new(COMPONENTS.map(str::to_owned).to_vec(), &destination, lock)
}

fn ours() -> Ours {
    ours_at("docker.io", &Lock::default())
}

fn manifest(text: &str) -> Result<Manifest, PinError> {
    Manifest::parse(PathBuf::from("m.yaml"), text.to_owned())
}

fn pinned(text: &str) -> Result<String, PinError> {
    let manifest = manifest(text)?;
    let references = COMPONENTS
        .iter()
        .map(|name| ((*name).to_owned(), reference(name)))
        .collect();
    let mut edits = pin(std::slice::from_ref(&manifest), &ours(), &references)?;
    Ok(edits
        .pop()
        .map_or_else(|| manifest.text.to_string(), |edit| edit.after))
}

/// Pins `text` with `@` where the image stands and expects the same text with the reference there.
#[track_caller]
fn check(template: &str) {
    let text = template.replace('@', "app");
    assert_eq!(
        pinned(&text).unwrap(),
        template.replace('@', &reference("app"))
    );
    // Pinning what is pinned changes nothing.
    let text = template.replace('@', &reference("app"));
    assert_eq!(pinned(&text).unwrap(), text);
}

#[test]
fn comments_quotes_line_ends_and_a_bom_stay() {
    check("spec:\n  containers:\n  - image: @ # keep\n    name: x\n");
    check("spec:\r\n  containers:\r\n  - name: 'ä€😀'\r\n    image: \"@\"\r\n");
    check("\u{feff}spec: {containers: [{name: ü, image: '@'}, {image: @}]}");
    check("containers:\n- image:   @   \n  name: x");
    check("containers:\n- image:\n    @\n");
    check("containers:\n- image: !!str @\n- image: &a !!str '@'\n");
    check("{\"spec\": {\"containers\": [{\"image\": \"@\"}]}}\n");
}

#[test]
fn block_scalars_around_and_as_the_image() {
    check("data:\n  text: |\n    containers:\n    - image: other\ncontainers:\n- image: @\n");
    check("containers:\n- image: >-\n    @\n  name: x\n");
}

#[test]
fn every_kind_with_a_pod_template() {
    check(
        "kind: CronJob\nspec:\n  jobTemplate:\n    spec:\n      template:\n        spec:\n          initContainers:\n          - image: @\n          containers:\n          - image: @\n",
    );
    check(
        "kind: List\nitems:\n- kind: Pod\n  spec:\n    containers: [{image: @}]\n- kind: Service\n",
    );
    check(
        "---\nkind: Pod\nspec: {containers: [{image: @}]}\n---\n# nothing\n---\nkind: Pod\nspec: {containers: [{image: @}]}\n...\n",
    );
}

#[test]
fn image_volumes_are_images() {
    check(
        "spec:\n  volumes:\n  - name: model\n    image:\n      reference: @ # keep\n      pullPolicy: Always\n  - {name: x, image: {reference: '@'}}\n",
    );
    let error = pinned("volumes:\n- name: model\n  image: {reference: other:1}\n").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("m.yaml:3:22: nobody builds `other:1`"),
        "{error}"
    );
    let error = pinned("volumes:\n- image: {reference: [app]}\n").unwrap_err();
    assert!(error.to_string().starts_with("m.yaml:2:22: "), "{error}");
    // A disk image of some other kind of volume.
    let text = "volumes:\n- rbd: {image: app, reference: app}\n  image: app\n- image: {nested: {reference: app}}\n";
    assert_eq!(pinned(text).unwrap(), text);
}

#[test]
fn only_images_of_pods_are_images() {
    let text = "kind: Thing\nimage: app\nspec:\n  images: [app]\n  containers:\n  - name: app\n    args: [image, app]\n    env: [{name: image, value: app}]\n";
    assert_eq!(pinned(text).unwrap(), text);
}

#[test]
fn anchors_are_followed_unless_that_would_change_something_else() {
    check("containers:\n- image: &image @\n- image: *image\n");
    check("x-image: &image @\ncontainers:\n- image: *image\n");
    let error = pinned("containers:\n- image: &image app\n  name: *image\n").unwrap_err();
    assert!(error.to_string().starts_with("m.yaml:3:9: "), "{error}");
    let error = pinned("x: &image app\nname: *image\ncontainers:\n- image: *image\n").unwrap_err();
    assert!(error.to_string().starts_with("m.yaml:2:7: "), "{error}");
}

#[test]
fn templates_and_what_nobody_builds_are_refused_with_their_place() {
    for (text, place) in [
        (
            "containers:\n- image: {{ .Values.image }}\n",
            "m.yaml:2:10: this is a Helm template",
        ),
        (
            "containers:\n- image: \"{{ .Values.image }}:1\"\n",
            "m.yaml:2:10: this is a Helm template",
        ),
        (
            "{{- if .Values.on }}\na: b\n{{- end }}\n",
            "this is a Helm template",
        ),
        (
            "containers:\n- image: [a]\n",
            "m.yaml:2:10: the name of an image must be",
        ),
        (
            "containers:\n  - name: x\n    image: nginx:1\n",
            "m.yaml:3:12: nobody builds `nginx:1`",
        ),
        (
            "containers:\n- image: ghcr.io/other/app:1\n",
            "nobody builds `ghcr.io/other/app:1`",
        ),
        (
            "containers:\n- image: app:2\n",
            "m.yaml:2:10: `app:2` is ambiguous: the component `app` is written `app`",
        ),
        (
            "containers:\n- image: acme/databse:2\n",
            "none of the components (database, app, 1.5) and not pinned by digest; for a component write its name or add `--map acme/databse=database`",
        ),
        ("a: [b\nc: d\n", "m.yaml:"),
    ] {
        let error = pinned(text).unwrap_err().to_string();
        assert!(error.contains(place), "{text:?} gives {error}");
    }
    let foreign = format!("containers:\n- image: quay.io/other/tool:1@{DIGEST}\n");
    assert_eq!(pinned(&foreign).unwrap(), foreign);
}

#[test]
fn every_way_to_name_a_component_is_pinned() {
    for image in [
        "app",
        "me/app",
        "docker.io/me/app:1",
        &format!("me/app@{DIGEST}"),
        "old/app:in-0123456789ab",
        "127.0.0.1:5000/old/app:in-0123456789ab",
    ] {
        let text = format!("containers:\n- image: {image}\n");
        assert_eq!(
            pinned(&text).unwrap(),
            format!("containers:\n- image: {}\n", reference("app")),
            "{image}"
        );
    }
}

#[test]
fn what_merely_ends_in_a_components_name_is_somebody_elses() {
    for image in [
        "app:22",
        "library/app",
        "bitnami/app:3",
        "app:in-0123456789a",
        "bitnami/app:in-0123456789aB",
        "quay.io/me/app:in-0123456789ab",
    ] {
        assert_eq!(ours().component_of(image), None, "{image}");
        let text = format!("containers:\n- image: {image}@{DIGEST}\n");
        assert_eq!(pinned(&text).unwrap(), text);
        assert!(
            unpin(
                &[manifest(&text).unwrap()],
                &ours(),
                &Originals::new(),
                Path::new("images.lock")
            )
            .unwrap()
            .is_empty()
        );
    }
}

#[test]
fn the_map_names_components_and_kept_images_stay() {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        let pairs = pairs.iter().copied();
        pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
    };
    let mapped = ours()
        .with(&map(&[("acme/web", "app"), ("web", "database")]), &[])
        .unwrap();
    assert_eq!(mapped.component_of("acme/web:2"), Some("app"));
    assert_eq!(mapped.component_of("docker.io/acme/web"), Some("app"));
    assert_eq!(mapped.component_of("web:1"), Some("database"));
    assert_eq!(mapped.component_of("ghcr.io/acme/web:2"), None);
    for (pairs, expected) in [
        (
            map(&[("acme/web", "datebase")]),
            "no such component: database, app, 1.5",
        ),
        (
            map(&[("me/app", "database")]),
            "`docker.io/me/app` is ambiguous: it belongs to `app`",
        ),
        (
            map(&[("web", "app"), ("docker.io/library/web", "database")]),
            "`docker.io/library/web` is ambiguous",
        ),
        (
            map(&[("Not a name", "app")]),
            "`Not a name` is not the name of an image",
        ),
    ] {
        let error = ours().with(&pairs, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let kept = ["redis:7", "localhost:5000/tool", "app:22"].map(str::to_owned);
    let kept = ours().with(&BTreeMap::new(), &kept).unwrap();
    for (image, stays) in [
        ("redis:7", true),
        ("docker.io/library/redis:7", true),
        ("redis:8", false),
        ("localhost:5000/tool:3", true),
        ("localhost:5000/tool", true),
        ("localhost/tool", false),
        ("app:22", true),
    ] {
        assert_eq!(kept.keeps(image), stays, "{image}");
        let manifest = manifest(&format!("containers:\n- image: {image}\n")).unwrap();
        let result = pin(&[manifest], &kept, &BTreeMap::new());
        assert_eq!(result.is_ok(), stays, "{image}");
    }
    for image in ["app", "me/app:3"] {
        let error = ours().with(&BTreeMap::new(), &[image.to_owned()]);
        assert!(error.unwrap_err().to_string().contains("component `app`"));
    }
}

#[test]
fn another_registry_is_ours_while_images_go_there_or_the_lock_says_so() {
    let image = format!("ghcr.io/me/app:in-0123456789ab@{DIGEST}");
    let text = format!("containers:\n- image: {image}\n");
    let manifests = [manifest(&text).unwrap()];
    let mut lock = Lock::default();
    let entry = Entry {
        details: crate::images::difference::Details::default(),
        digest: DIGEST.to_owned(),
        input: String::new(),
        parts: BTreeMap::new(),
        repository: "ghcr.io/me/app".to_owned(),
        tag: "in-0123456789ab".to_owned(),
    };
    lock.components.insert("app".to_owned(), entry);
    for ours in [
        ours_at("ghcr.io", &Lock::default()),
        ours_at("docker.io", &lock),
    ] {
        assert_eq!(ours.component_of(&image), Some("app"));
        let references = BTreeMap::from([("app".to_owned(), reference("app"))]);
        let edits = pin(&manifests, &ours, &references).unwrap();
        assert_eq!(edits[0].changes[0].after, reference("app"));
        let edits = unpin(
            &manifests,
            &ours,
            &Originals::new(),
            Path::new("images.lock"),
        )
        .unwrap();
        assert_eq!(edits[0].changes[0].after, "app");
    }
    assert_eq!(ours().component_of(&image), None);
}

#[test]
fn a_component_without_digest_stays_pinned_or_is_an_error() {
    let none = BTreeMap::new();
    let kept = manifest(&format!("containers:\n- image: {}\n", reference("app"))).unwrap();
    assert!(pin(&[kept], &ours(), &none).unwrap().is_empty());
    let bare = manifest("containers:\n- image: app\n").unwrap();
    let error = pin(&[bare], &ours(), &none).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("m.yaml:2:10: `app` has not been pushed"),
        "{error}"
    );
}

#[test]
fn unpinning_gives_the_bare_name() {
    let text = format!(
        "containers:\n- image: {} # c\n- image: '{}'\n",
        reference("app"),
        reference("1.5")
    );
    let edit = unpin(
        &[manifest(&text).unwrap()],
        &ours(),
        &Originals::new(),
        Path::new("images.lock"),
    )
    .unwrap()
    .remove(0);
    assert_eq!(
        edit.after,
        "containers:\n- image: app # c\n- image: '1.5'\n"
    );
    let plain = manifest(&format!("containers:\n- image: {}\n", reference("1.5"))).unwrap();
    assert_eq!(
        unpin(
            &[plain],
            &ours(),
            &Originals::new(),
            Path::new("images.lock")
        )
        .unwrap()
        .remove(0)
        .after,
        "containers:\n- image: \"1.5\"\n"
    );
}

#[test]
fn a_second_run_leaves_the_files_alone_and_a_failed_one_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.yaml"), folder.path().join("b.yml"));
    fs::write(&first, "containers:\n- image: app\n").unwrap();
    fs::write(&second, "containers:\n- image: nginx\n").unwrap();
    fs::write(
        folder.path().join("c.example.yaml"),
        "containers:\n- image: nginx\n",
    )
    .unwrap();
    let folders = [folder.path().to_owned()];
    let references = BTreeMap::from([("app".to_owned(), reference("app"))]);
    assert!(pin(&read(&folders).unwrap(), &ours(), &references).is_err());
    assert_eq!(
        fs::read_to_string(&first).unwrap(),
        "containers:\n- image: app\n"
    );
    fs::remove_file(&second).unwrap();
    let edits = pin(&read(&folders).unwrap(), &ours(), &references).unwrap();
    write(&edits).unwrap();
    let modified = || -> SystemTime { fs::metadata(&first).unwrap().modified().unwrap() };
    let before = modified();
    assert!(
        pin(&read(&folders).unwrap(), &ours(), &references)
            .unwrap()
            .is_empty()
    );
    assert_eq!(before, modified());
    // Written from what was read before somebody else saved the file.
    fs::write(&first, "containers: []\n").unwrap();
    assert!(write(&edits).is_err());
    assert_eq!(fs::read_to_string(&first).unwrap(), "containers: []\n");
}

/// Pins and unpins `text` with what is remembered in between. The text pinned, and the text unpinned.
fn round_trip(text: &str) -> Result<(String, String), PinError> {
    let folder = tempfile::tempdir().unwrap();
    let (path, lock) = (
        folder.path().join("m.yaml"),
        folder.path().join("images.lock"),
    );
    fs::write(&path, text).unwrap();
    let at = |text: &str| Manifest::parse(path.clone(), text.to_owned());
    let references = BTreeMap::from(COMPONENTS.map(|name| (name.to_owned(), reference(name))));
    let before = [at(text)?];
    let edits = pin(&before, &ours(), &references)?;
    let mut originals = record(&Originals::new(), &before, &edits, &ours(), &lock);
    let pinned = edits.first().map_or(text, |edit| edit.after.as_str());
    // Pinning again changes neither the text nor what is remembered.
    let again = [at(pinned)?];
    let edits = pin(&again, &ours(), &references)?;
    assert!(edits.is_empty(), "{text:?}");
    assert_eq!(
        record(&originals, &again, &edits, &ours(), &lock),
        originals
    );
    // Nor does pinning to something newer forget anything.
    let newer = references.keys().map(|name| {
        let digest = DIGEST.replace('0', "1");
        (
            name.clone(),
            format!("docker.io/me/{name}:in-ba9876543210@{digest}"),
        )
    });
    let edits = pin(&again, &ours(), &newer.collect())?;
    originals = record(&originals, &again, &edits, &ours(), &lock);
    let newest = edits.first().map_or(pinned, |edit| edit.after.as_str());
    let edits = unpin(&[at(newest)?], &ours(), &originals, &lock)?;
    let back = edits.first().map_or(newest, |edit| edit.after.as_str());
    // Unpinning what is not pinned changes nothing.
    assert!(unpin(&[at(back)?], &ours(), &Originals::new(), &lock)?.is_empty());
    Ok((pinned.to_owned(), back.to_owned()))
}

#[test]
fn unpinning_gives_back_every_byte() {
    for text in [
        "containers:\n- image: app # c\n- image: me/app:1\n- image: docker.io/me/app\r\n- image: 'app'\n",
        "containers:\n- image: 1.5\n- image: \"1.5\"\n",
        "containers:\n- image: \"a\\x70p\"\n- image: !!str app\n- image: &x \"app\"\n- image: *x\n",
        "\u{feff}containers: [{image: app}, {image: >-\n me/app:3}]",
        "containers:\n- image: >-\n    me/database:3\n- name: \"image: app\"\n  image: |\n    app",
        "x-c: &c\n  image: app\ncontainers:\n- <<: *c\n  name: one\n- <<: [*c]\n",
    ] {
        if let Ok((pinned, back)) = round_trip(text) {
            assert_ne!(pinned, text);
            assert_eq!(back, text);
        } else {
            assert!(text.contains(">-\n me"), "{text:?}: {:?}", round_trip(text));
        }
    }
}

#[test]
fn merged_and_aliased_containers_are_found() {
    check("x: &c {image: @}\ncontainers:\n- <<: *c\n  name: a\n- *c\n- <<: [*c, {image: @}]\n");
    check("x: &l\n- image: @\ncontainers: *l\ninitContainers: *l\n");
    check("a: &a {image: @}\nb: &b {<<: *a}\ncontainers: [{<<: *b}]\n");
    check("a: &a {reference: @}\nvolumes:\n- image: *a\n- image: {<<: *a}\n");
    let error = pinned("a: &a {image: app}\ncontainers: [*a]\nother: *a\n").unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("m.yaml:3:8: this value is shared with the image in line 1"),
        "{error}"
    );
    let error = pinned("containers:\n- &a {image: app}\nother: *a\n").unwrap_err();
    assert!(error.to_string().starts_with("m.yaml:3:8: "), "{error}");
}

#[test]
fn no_depth_overflows_the_stack() {
    for (text, fine) in [
        ("[".repeat(100_000), false),
        ("- ".repeat(20_000), true),
        (format!("{}a", "? ".repeat(20_000)), true),
        (format!("{}{}", "[".repeat(200), "]".repeat(200)), true),
        (
            (0..3000)
                .map(|depth| format!("{}a:\n", " ".repeat(depth)))
                .collect(),
            true,
        ),
    ] {
        assert_eq!(pinned(&text).is_ok(), fine, "{}", &text[..10]);
    }
}

#[test]
fn what_is_remembered_follows_the_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("k8s")).unwrap();
    let path = folder.path().join("k8s/m.yaml");
    let lock = folder.path().join("images.lock");
    let references = BTreeMap::from(COMPONENTS.map(|name| (name.to_owned(), reference(name))));
    let foreign = format!(
        "containers:\n- image: {}\n- image: me/app:2\n- image: app\n",
        reference("app")
    );
    fs::write(&path, &foreign).unwrap();
    let read_again = || read(&[folder.path().join("k8s")]).unwrap();
    let before = read_again();
    let edits = pin(&before, &ours(), &references).unwrap();
    let mut known = Originals::from([("gone.yaml".to_owned(), Vec::new())]);
    known = record(&known, &before, &edits, &ours(), &lock);
    let original = |text: Option<&str>| Original {
        image: "app".to_owned(),
        text: text.map(str::to_owned),
    };
    let expected = vec![
        original(None),
        original(Some("me/app:2")),
        original(Some("app")),
    ];
    assert_eq!(
        known,
        Originals::from([("k8s/m.yaml".to_owned(), expected)])
    );
    write(&edits).unwrap();
    // Somebody pinned the first one by hand: nothing but its component's name is known of it.
    let edits = unpin(&read_again(), &ours(), &known, &lock).unwrap();
    assert_eq!(
        edits[0].after,
        "containers:\n- image: app\n- image: me/app:2\n- image: app\n"
    );
    // A run that does not know the component gives nothing back, and so must not forget it.
    let nobody = Ours::nowhere(Vec::new(), &Lock::default());
    assert_eq!(forget(&known, &read_again(), &nobody, &lock), known);
    assert_eq!(
        forget(&known, &read_again(), &ours(), &lock),
        Originals::new()
    );
    fs::remove_file(&path).unwrap();
    assert_eq!(forget(&known, &[], &ours(), &lock), Originals::new());
}

/// What unpinning gives back of `text` that was pinned at one registry to `first`, and then at another one, where nothing is known
/// of the first.
fn unpinned_after_a_move(text: &str, first: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let (path, lock) = (
        folder.path().join("m.yaml"),
        folder.path().join("images.lock"),
    );
    fs::write(&path, text).unwrap();
    let read_again = || read(std::slice::from_ref(&path)).unwrap();
    let old = ours_at("old.example.org", &Lock::default());
    let references = BTreeMap::from([("app".to_owned(), first.to_owned())]);
    let edits = pin(&read_again(), &old, &references).unwrap();
    let originals = record(&Originals::new(), &read_again(), &edits, &old, &lock);
    write(&edits).unwrap();

    let new = ours_at("new.example.org", &Lock::default());
    let both = new.clone().with(
        &BTreeMap::from([("old.example.org/me/app".to_owned(), "app".to_owned())]),
        &[],
    );
    let second = format!("new.example.org/me/app:in-ba9876543210@{DIGEST}");
    let references = BTreeMap::from([("app".to_owned(), second)]);
    let edits = pin(&read_again(), &both.unwrap(), &references).unwrap();
    assert!(!edits.is_empty());
    let originals = record(&originals, &read_again(), &edits, &new, &lock);
    write(&edits).unwrap();
    let edits = unpin(&read_again(), &new, &originals, &lock).unwrap();
    edits[0].after.clone()
}

#[test]
fn a_pin_at_another_registry_is_not_what_stood_there_before() {
    let text = "containers:\n- image: app # c\n";
    for first in [
        format!("old.example.org/me/app:in-0123456789ab@{DIGEST}"),
        format!("old.example.org/me/app@{DIGEST}"),
    ] {
        assert_eq!(unpinned_after_a_move(text, &first), text, "{first}");
    }
}

#[test]
fn what_a_run_does_not_know_stays_remembered() {
    let folder = tempfile::tempdir().unwrap();
    let (path, lock) = (
        folder.path().join("m.yaml"),
        folder.path().join("images.lock"),
    );
    let text = "containers:\n- image: app\n";
    fs::write(&path, text).unwrap();
    let read_again = || read(std::slice::from_ref(&path)).unwrap();
    let references = BTreeMap::from([("app".to_owned(), reference("app"))]);
    let edits = pin(&read_again(), &ours(), &references).unwrap();
    let known = record(&Originals::new(), &read_again(), &edits, &ours(), &lock);
    write(&edits).unwrap();
    let nobody = Ours::nowhere(Vec::new(), &Lock::default());
    assert_eq!(record(&known, &read_again(), &[], &nobody, &lock), known);
}

#[test]
fn given_digests_need_no_components() {
    let none = Ours::nowhere(Vec::new(), &Lock::default());
    let text = "containers:\n- image: web:1\n- image: ghcr.io/acme/api:2\n- image: redis:7\n";
    let manifests = [manifest(text).unwrap()];
    let set = |pairs: &[(&str, &str)], ours: &Ours| -> Result<String, String> {
        let pairs: Vec<(String, String)> = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        let given = Given::new(&pairs, ours).map_err(|error| error.to_string())?;
        let edits = futures::executor::block_on(pin_given(&manifests, ours, &given, None));
        let edits = edits.map_err(|error| error.to_string())?;
        Ok(edits.into_iter().map(|edit| edit.after).collect())
    };
    let (web, api) = (
        format!("ghcr.io/acme/web@{DIGEST}"),
        format!("ghcr.io/acme/api:3@{DIGEST}"),
    );
    let expected = text
        .replace("web:1", &web)
        .replace("ghcr.io/acme/api:2", &api);
    assert_eq!(
        set(&[("web", &web), ("ghcr.io/acme/api", &api)], &none).unwrap(),
        expected
    );
    // The repository that it is set to says which image is meant, too.
    assert!(set(&[("api", &api)], &none).unwrap().contains(&api));
    for (pairs, message) in [
        (
            vec![("wep", web.as_str())],
            "--set wep: no manifest has such an image; they have: web, ",
        ),
        (vec![("web", "ghcr.io/acme/web:1")], "with its digest"),
        (vec![("web", &web), ("web", &api)], "given twice"),
        (
            vec![("one", &web), ("two", &web)],
            "`ghcr.io/acme/web` is ambiguous",
        ),
    ] {
        let error = set(&pairs, &none).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    let error = pin(&manifests, &none, &BTreeMap::new())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("m.yaml:2:10: `web:1` is not pinned by digest, and there are no components"),
        "{error}"
    );
    // Docker Hub's `web` is not the component `web`.
    let one = Ours::nowhere(vec!["web".to_owned()], &Lock::default());
    assert!(set(&[("web", &web)], &one).is_err());
}

/// Text that may stand around an image without changing what the image is.
fn noise() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "# ä € 😀 comment\n",
        "name: \"q\\\"uo\\u00e9te\"\n",
        "text: |\n  containers:\n  - image: x\n",
        "anchor: &a {k: [1, '2', \"3\"]}\n",
        "alias-free: >-\n  folded\n  text\n",
        "? complex\n: value\n",
        "\n",
        "empty:\n",
        "key with spaces: 'it''s'\n",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    #[test]
    fn nothing_but_the_image_changes(
        before in prop::collection::vec(noise(), 0..5),
        after in prop::collection::vec(noise(), 0..5),
        style in 0..4_usize,
        crlf in any::<bool>(),
        bom in any::<bool>(),
    ) {
        let mut before = before;
        let mut after = after;
        before.dedup();
        after.dedup();
        let image = ["@", "'@'", "\"@\"", "@ # c"][style];
        let mut number = 0;
        // Keys must be different from one another to be legal.
        let mut unique = |part: &String| {
            number += 1;
            let starts_with_key = part.starts_with(|c: char| c.is_alphabetic());
            if starts_with_key { format!("k{number}{part}") } else { part.clone() }
        };
        let before: String = before.iter().map(&mut unique).collect();
        let after: String = after.iter().map(&mut unique).collect();
        let mut template = format!("{before}containers:\n- image: {image}\n  name: x\n{after}");
        if crlf {
            template = template.replace('\n', "\r\n");
        }
        if bom {
            template.insert(0, '\u{feff}');
        }
        let text = template.replace('@', "app");
        if let Ok(result) = pinned(&text) {
            prop_assert_eq!(result, template.replace('@', &reference("app")));
            let (_, back) = round_trip(&text).unwrap();
            prop_assert_eq!(back, text);
        } else {
            prop_assert!(before.contains("? complex") && after.contains("? complex"), "{}", text);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "([a-c:&*!|>{}\\[\\],#'\"\\-? \n\r\t]|image: app|containers:|ä|\u{feff}){0,30}") {
        let _ = pinned(&text);
    }
}

#[test]
fn a_tag_in_a_map_or_a_name_stands_for_no_other_image_of_its_repository() {
    let map = BTreeMap::from([("acme/mono:web".to_owned(), "app".to_owned())]);
    assert!(matches!(
        ours().with(&map, &[]),
        Err(PinError::Repository {
            option: "--map",
            ..
        })
    ));
    let digest = format!("redis:7@sha256:{}", "0".repeat(64));
    let given = Given::new(&[("redis:7".to_owned(), digest.clone())], &ours()).unwrap();
    assert_eq!(given.find("redis:7", &ours()), Some(("redis:7", &*digest)));
    assert_eq!(given.find("redis:6", &ours()), None);
}
