//! `orch images` in projects that know nothing of orch, against the real builder and the real registry.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod images_project;
mod images_registry;

use std::fs;
use std::process::{Output, Stdio};

use images_project::{Foreign, said};
use images_registry::RealRegistry;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn a_repository_without_orch_yaml_is_built_pushed_pinned_and_checked() {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        "acme",
        &[
            ("services/web/Dockerfile", "FROM scratch\nCOPY page /\n"),
            ("services/web/page", "hello\n"),
            ("services/api/Dockerfile", "FROM web\nCOPY code /\n"),
            ("services/api/code", "code\n"),
            ("node_modules/web/Dockerfile", "FROM nowhere\n"),
            (
                "deploy/all.yaml",
                "kind: Pod\nspec:\n  containers:\n  - image: acme/web:latest # the page\n  - image: api\n  - image: redis:7\n",
            ),
        ],
    );
    let own = project.at(&registry.address);
    let common = [&own[..], &["--map", "acme/web=web", "--keep", "redis"]].concat();
    let with = |arguments: &[&'static str]| -> Vec<&str> {
        arguments.iter().chain(&common).copied().collect()
    };
    project.done(&with(&["images", "push", "--pin"]));
    let pinned = project.read("deploy/all.yaml");
    for name in ["web", "api"] {
        let start = format!(
            "image: {}/{}/{name}:in-",
            registry.address, project.namespace
        );
        let line = pinned.lines().find(|line| line.contains(&start));
        let (_, digest) = line.unwrap().split_once('@').unwrap();
        let digest = digest.split(' ').next().unwrap();
        let path = format!("/v2/{}/{name}/manifests/{digest}", project.namespace);
        assert!(registry.get(&path, MANIFEST).is_some(), "{pinned}");
    }
    assert!(pinned.contains(" # the page\n"), "{pinned}");
    assert!(project.read("images.lock").contains("\"web\""));
    project.done(&with(&["images", "check"]));
    let again = project.done(&with(&["images", "push", "--pin", "--output", "json"]));
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(
        (again["requests"].as_u64(), again["bytes_sent"].as_u64()),
        (Some(2), Some(0))
    );
}

#[test]
fn an_orch_yaml_for_images_alone_describes_components() {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        "described",
        &[
            (
                "orch.yaml",
                "images:\n  jobs: 1\n  components:\n  - name: site\n    context: web\n    dockerfile: docker/release\n    \
                 target: final\n    args: {GREETING: hello}\n    references: [acme/page]\n  keep: [redis]\nmanifests: [deploy]\n",
            ),
            (
                "web/docker/release",
                "FROM scratch AS final\nARG GREETING=nothing\nLABEL greeting=$GREETING\nCOPY page /\n\
                 FROM final AS extra\nLABEL greeting=extra\n",
            ),
            ("web/page", "hello\n"),
            (
                "deploy/pod.yaml",
                "kind: Pod\nspec: {containers: [{image: \"acme/page:1\"}, {image: \"redis:7\"}]}\n",
            ),
        ],
    );
    let reference = project.done(&[
        "images",
        "push",
        "--pin",
        "--registry",
        &registry.address,
        "--namespace",
        &project.namespace,
    ]);
    let (name, digest) = reference.trim().split_once('@').unwrap();
    assert!(name.contains("/site:in-"), "{reference}");
    let pinned = project.read("deploy/pod.yaml");
    assert!(
        pinned.contains(reference.trim()) && pinned.contains("\"redis:7\""),
        "{pinned}"
    );
    let repository = format!("/v2/{}/site", project.namespace);
    let manifest = registry.json(&format!("{repository}/manifests/{digest}"), MANIFEST);
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = registry.json(&format!("{repository}/blobs/{config}"), "*/*");
    assert_eq!(config["config"]["Labels"]["greeting"], "hello");
}

#[test]
fn build_arguments_of_the_command_line_are_part_of_the_names_of_those_that_declare_them() {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        "arguments",
        &[
            (
                "orch.yaml",
                "images: {components: [{name: web, args: {GREETING: written, TARGET: all}}]}\n",
            ),
            (
                "web/Dockerfile",
                "FROM scratch\nARG GREETING\nARG TARGET\nLABEL greeting=$GREETING target=$TARGET\nCOPY page /\n",
            ),
            ("web/page", "hello\n"),
            ("other/Dockerfile", "FROM scratch\nCOPY page /\n"),
            ("other/page", "hello\n"),
            (
                "deploy/pod.yaml",
                "kind: Pod\nspec: {containers: [{image: web}, {image: other}]}\n",
            ),
        ],
    );
    let images = |arguments: &[&str]| -> Output {
        project.orch(&[&["images"][..], arguments, &project.at(&registry.address)].concat())
    };
    let steps = |arguments: &[&str]| -> serde_json::Value {
        let output = images(&[&["plan", "--output", "json"][..], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let hello = ["--build-arg", "GREETING=hello-there"];
    let plain = steps(&[]);
    let push = ["images", "push", "--pin", "--output", "json"];
    let output = project
        .command(&push)
        .args(["--build-arg", "GREETING", "--manifests", "deploy"])
        .args(["--registry", &registry.address])
        .args(["--namespace", &project.namespace])
        .env("GREETING", "hello-there")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let pushed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let reference = pushed["images"]["web"].as_str().unwrap();
    let (name, digest) = reference.split_once('@').unwrap();
    let repository = format!("/v2/{}/web", project.namespace);
    let manifest = registry.json(&format!("{repository}/manifests/{digest}"), MANIFEST);
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = registry.json(&format!("{repository}/blobs/{config}"), "*/*");
    let labels = &config["config"]["Labels"];
    assert_eq!(labels["greeting"], "hello-there");
    assert_eq!(labels["target"], "all");
    assert!(!project.read("images.lock").contains("hello-there"));

    // Equal arguments are an equal name, wherever their values come from; who declares none keeps its name.
    let tag = |steps: &serde_json::Value, component: &str| {
        let mut steps = steps.as_array().unwrap().iter();
        let step = steps.find(|step| step["component"] == component).unwrap();
        step["tag"].as_str().unwrap().to_owned()
    };
    let same = steps(&hello);
    let mut all = same.as_array().unwrap().iter();
    assert!(all.all(|step| step["action"] == "skip"), "{same}");
    assert_eq!(tag(&same, "other"), tag(&plain, "other"));
    assert_ne!(tag(&same, "web"), tag(&plain, "web"));
    assert!(name.ends_with(&tag(&same, "web")), "{name}");
    let written = steps(&["--build-arg", "GREETING=written"]);
    assert_eq!(written, steps(&[]));
    let in_environment = |value: Option<&str>| {
        let mut command = project.command(&["images", "why", "web", "--build-arg", "GREETING"]);
        command
            .args(["--registry", &registry.address])
            .args(["--namespace", &project.namespace])
            .env_remove("GREETING");
        if let Some(value) = value {
            command.env("GREETING", value);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    assert!(in_environment(Some("hello-there")).contains(&tag(&same, "web")));
    assert!(in_environment(None).contains(&tag(&plain, "web")));

    let check = |arguments: &[&str]| images(&[&["check", "--offline"][..], arguments].concat());
    assert!(check(&hello).status.success(), "{}", said(&check(&hello)));
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(10), "{}", said(&output));
    let output = images(&["build", "--build-arg", "GREETINGS=hello"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("the ARGs are GREETING, TARGET"), "{text}");
    let output = images(&["build", "--build-arg", "=hello"]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
}

#[test]
fn what_another_lock_pinned_at_another_registry_is_not_given_back() {
    let registry = RealRegistry::start();
    let pod = |image: &str| format!("kind: Pod\nspec: {{containers: [{{image: {image}}}]}}\n");
    let project = Foreign::new(
        "moved",
        &[
            ("orch.yaml", "images: {}\n"),
            ("web/Dockerfile", "FROM scratch\nCOPY page /\n"),
            ("web/page", "hello\n"),
            ("deploy/pod.yaml", &pod("web")),
        ],
    );
    let images = |arguments: &[&str]| {
        let own = project.at(&registry.address);
        let output = project.orch(&[&["images"][..], arguments, &own].concat());
        assert!(output.status.success(), "{}", said(&output));
    };
    images(&["push"]);
    let old = "old.example.org";
    let lock = project.read("images.lock").replace(&registry.address, old);
    fs::write(project.path().join("images.lock"), lock).unwrap();
    let digest = format!("sha256:{}", "0".repeat(64));
    let before = pod(&format!("{old}/{}/web@{digest}", project.namespace));
    fs::write(project.path().join("deploy/pod.yaml"), before).unwrap();
    images(&["push", "--pin"]);
    assert!(project.read("deploy/pod.yaml").contains(&registry.address));
    images(&["unpin"]);
    assert_eq!(project.read("deploy/pod.yaml"), pod("web"));
}

/// Highest memory of a running process so far, in MiB.
fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes / 1024)
}

#[test]
fn memory_does_not_grow_with_a_layer() {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        "large",
        &[("app/Dockerfile", "FROM scratch\nCOPY blob /\n")],
    );
    // Repeats itself only beyond what a compressor looks back, so that it is large in the registry as well.
    let mut seed = 88_172_645_463_325_252_u64;
    let block: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    })
    .take(128 * 1024)
    .flatten()
    .collect();
    let mut blob = fs::File::create(project.path().join("app/blob")).unwrap();
    for _ in 0..256 {
        std::io::Write::write_all(&mut blob, &block).unwrap();
    }
    let mut push = project
        .command(&["images", "push", "--registry", &registry.address])
        .args(["--namespace", &project.namespace])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    let status = loop {
        peak = peak.max(peak_memory(push.id()).unwrap_or_default());
        if let Some(status) = push.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    assert!(status.success());
    assert!(peak > 0 && peak < 128, "{peak} MiB for a layer of 256 MiB");
}

#[test]
fn what_is_missing_is_an_error_with_the_next_step() {
    let project = Foreign::new(
        "lost",
        &[
            ("a/web/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n"),
            ("b/web/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n"),
        ],
    );
    let output = project.orch(&["images", "plan"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("a/web") && text.contains("b/web"), "{text}");
    // Two folders are two projects; without credentials nobody says where images go.
    let output = project.orch(&["images", "push", "--dockerfiles", "a"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("--registry localhost:5000"), "{text}");
    fs::write(
        project.path().join("orch.yaml"),
        "images:\n  component: []\n",
    )
    .unwrap();
    let output = project.orch(&["images", "plan"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("orch.yaml:2:3"), "{text}");
    // Other commands are about a cluster, which has to be described.
    fs::remove_file(project.path().join("orch.yaml")).unwrap();
    assert_eq!(project.orch(&["status"]).status.code(), Some(3));
}
