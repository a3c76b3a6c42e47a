//! `orch images` in projects that know nothing of orch, against the real builder and the real registry.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[allow(
    dead_code,
    reason = "shared with the tests of attesting, which use more of it"
)]
mod images_registry;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use images_registry::RealRegistry;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A folder of its own; what `orch` builds in it is forgotten by the engine when it goes.
struct Foreign {
    folder: tempfile::TempDir,
    namespace: String,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let tags = Command::new("docker")
            .args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])
            .output()
            .unwrap();
        let part = format!("/{}/", self.namespace);
        for tag in String::from_utf8_lossy(&tags.stdout).lines() {
            if tag.contains(&part) {
                let _ = Command::new("docker").args(["rmi", tag]).output();
            }
        }
    }
}

impl Foreign {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let namespace = format!("{name}-{}", std::process::id());
        Self { folder, namespace }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path().join(path)).unwrap()
    }

    fn orch(&self, arguments: &[&str]) -> Output {
        Command::new(assert_cmd::cargo::cargo_bin("orch"))
            .args(arguments)
            .current_dir(self.path())
            .env_remove("ORCH_FILE")
            .env_remove("DOCKER_HUB_USERNAME")
            .env_remove("ORCH_BUILDER")
            .env("DOCKER_CONFIG", self.path().join(".docker"))
            .env("ORCH_CACHE", self.path().join(".cache"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What a command that must succeed wrote to stdout.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.orch(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

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
    let common = [
        "--registry",
        &registry.address,
        "--namespace",
        &project.namespace,
        "--manifests",
        "deploy",
        "--map",
        "acme/web=web",
        "--keep",
        "redis",
    ];
    let with = |arguments: &[&'static str]| -> Vec<&str> {
        arguments.iter().copied().chain(common).collect()
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
        let common = ["--registry", &registry.address, "--manifests", "deploy"];
        let namespace = ["--namespace", &project.namespace];
        project.orch(&[&["images"][..], arguments, &common, &namespace].concat())
    };
    let steps = |arguments: &[&str]| -> serde_json::Value {
        let output = images(&[&["plan", "--output", "json"][..], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let hello = ["--build-arg", "GREETING=hello-there"];
    let plain = steps(&[]);
    let output = images(&[&["push", "--pin", "--output", "json"][..], &hello].concat());
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
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("orch"));
        command
            .args(["images", "why", "web", "--build-arg", "GREETING"])
            .args(["--registry", &registry.address])
            .args(["--namespace", &project.namespace])
            .current_dir(project.path())
            .env_remove("ORCH_FILE")
            .env_remove("GREETING")
            .env("DOCKER_CONFIG", project.path().join(".docker"))
            .env("ORCH_CACHE", project.path().join(".cache"));
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
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

#[test]
fn two_platforms_make_an_index_of_two_images() {
    index_with("docker");
}

#[test]
fn podman_and_buildah_make_an_index_as_well() {
    index_with("podman");
    index_with("buildah");
}

fn index_with(builder: &str) {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        &format!("many-{builder}"),
        &[
            (
                "orch.yaml",
                "images:\n  components:\n  - {name: web, platforms: [linux/arm64, linux/amd64]}\n  \
                 - {name: below, platforms: [linux/arm64, linux/amd64]}\n",
            ),
            (
                "below/Dockerfile",
                "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /architecture\n",
            ),
            ("below/amd64", "amd64\n"),
            ("below/arm64", "arm64\n"),
            ("web/Dockerfile", "FROM below\nCOPY page /\n"),
            ("web/page", "hello\n"),
            (
                "deploy/all.yaml",
                "kind: Pod\nspec: {containers: [{image: web}]}\n",
            ),
        ],
    );
    let common = [
        "--registry",
        &registry.address,
        "--namespace",
        &project.namespace,
        "--manifests",
        "deploy",
        "--builder",
        builder,
    ];
    let with = |arguments: &[&'static str]| -> Vec<&str> {
        arguments.iter().copied().chain(common).collect()
    };
    project.done(&with(&["images", "push", "--pin"]));
    let pinned = project.read("deploy/all.yaml");
    let (_, digest) = pinned.split_once('@').unwrap();
    let digest = digest.split('}').next().unwrap();
    let repository = format!("/v2/{}/web", project.namespace);
    let index = registry.json(&format!("{repository}/manifests/{digest}"), INDEX);
    assert_eq!(index["mediaType"], INDEX);
    let children = index["manifests"].as_array().unwrap();
    assert_eq!(children.len(), 2);
    let mut layers = Vec::new();
    for (child, architecture) in children.iter().zip(["amd64", "arm64"]) {
        assert_eq!(child["platform"]["architecture"], architecture);
        assert_eq!(child["platform"]["os"], "linux");
        let digest = child["digest"].as_str().unwrap();
        let manifest = registry.json(&format!("{repository}/manifests/{digest}"), MANIFEST);
        let config = manifest["config"]["digest"].as_str().unwrap();
        let config = registry.json(&format!("{repository}/blobs/{config}"), "*/*");
        assert_eq!(config["architecture"], architecture);
        layers.push(manifest["layers"].clone());
    }
    // What is above is the same, what is below comes from each platform's own image.
    assert_ne!(layers[0][0], layers[1][0]);
    assert_eq!(layers[0][1], layers[1][1]);
    let again = project.done(&with(&["images", "push", "--pin", "--output", "json"]));
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!(
        (again["requests"].as_u64(), again["bytes_sent"].as_u64()),
        (Some(1), Some(0))
    );
    project.done(&with(&["images", "check"]));
}

/// What a component that runs a program in a base and one above it are like with every builder.
fn builds_with(builder: &str) {
    let registry = RealRegistry::start();
    let project = Foreign::new(
        builder,
        &[
            (
                "below/Dockerfile",
                "FROM debian:bookworm-slim\nRUN echo made > /made && test ! -e /notes\nCOPY . /\n",
            ),
            ("below/.dockerignore", "notes\nDockerfile\n"),
            ("below/notes", "not for the image\n"),
            ("below/content", "content\n"),
            (
                "web/Dockerfile",
                "FROM below\nARG GREETING=none\nHEALTHCHECK CMD [\"true\"]\nRUN test -e /content && test ! -e /notes\n\
                 LABEL greeting=$GREETING\n",
            ),
            (
                "orch.yaml",
                "images: {components: [{name: web, args: {GREETING: hello}}]}\n",
            ),
            (
                "deploy/all.yaml",
                "kind: Pod\nspec: {containers: [{image: web}]}\n",
            ),
        ],
    );
    let orch = |arguments: &[&str]| {
        let output = Command::new(assert_cmd::cargo::cargo_bin("orch"))
            .args(arguments)
            .args(["--builder", builder, "--registry", &registry.address])
            .args(["--namespace", &project.namespace, "--manifests", "deploy"])
            .current_dir(project.path())
            .env_remove("ORCH_FILE")
            .env("DOCKER_CONFIG", project.path().join(".docker"))
            // Works as root in a container, too. The bases are those of everyday use.
            .env("BUILDAH_ISOLATION", "chroot")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{builder} {arguments:?}: {output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    orch(&["images", "push", "--pin"]);
    let pinned = project.read("deploy/all.yaml");
    let (_, digest) = pinned.split_once('@').unwrap();
    let digest = digest.split('}').next().unwrap();
    let repository = format!("/v2/{}/web", project.namespace);
    let manifest = registry.json(&format!("{repository}/manifests/{digest}"), MANIFEST);
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config = registry.json(&format!("{repository}/blobs/{config}"), "*/*");
    assert_eq!(config["config"]["Labels"]["greeting"], "hello");
    assert!(config["config"]["Healthcheck"].is_object(), "{config}");
    let layers = manifest["layers"].as_array().unwrap().len();
    assert_eq!(
        config["rootfs"]["diff_ids"].as_array().unwrap().len(),
        layers
    );
    let again: serde_json::Value =
        serde_json::from_str(&orch(&["images", "push", "--pin", "--output", "json"])).unwrap();
    assert_eq!(
        (again["requests"].as_u64(), again["bytes_sent"].as_u64()),
        (Some(1), Some(0))
    );
    let reference = format!("{}/{}/web@{digest}", registry.address, project.namespace);
    let pulled = Command::new("docker")
        .args(["pull", "--quiet", &reference])
        .output()
        .unwrap();
    assert!(pulled.status.success(), "{pulled:?}");
    let run = Command::new("docker")
        .args([
            "run",
            "--rm",
            "--network",
            "none",
            &reference,
            "cat",
            "/made",
            "/content",
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(run.stdout).unwrap(), "made\ncontent\n");
    Command::new("docker")
        .args(["rmi", &reference])
        .output()
        .unwrap();
    if let Some(program) = ["podman", "buildah"]
        .into_iter()
        .find(|name| *name == builder)
    {
        for name in ["web", "below"] {
            let image = again["steps"]
                .as_array()
                .unwrap()
                .iter()
                .find(|step| step["component"] == name);
            let tag = image.unwrap()["tag"].as_str().unwrap();
            let tag = format!("{}/{}/{name}:{tag}", registry.address, project.namespace);
            Command::new(program).args(["rmi", &tag]).output().unwrap();
        }
    }
}

#[test]
fn docker_builds_without_buildkit() {
    builds_with("classic");
}

#[test]
fn podman_builds() {
    builds_with("podman");
}

#[test]
fn buildah_builds() {
    builds_with("buildah");
}

#[test]
fn a_program_of_another_architecture_is_refused_with_the_way_out() {
    if Path::new("/proc/sys/fs/binfmt_misc/qemu-s390x").exists() {
        // This host runs them.
        return;
    }
    let project = Foreign::new(
        "alien",
        &[
            (
                "app/Dockerfile",
                "FROM scratch\nCOPY program /program\nRUN [\"/program\"]\n",
            ),
            ("app/.dockerignore", ""),
        ],
    );
    // The head of a program for s390x, which is enough for the kernel to refuse it.
    let mut program = vec![0x7f, b'E', b'L', b'F', 2, 2, 1, 0];
    program.resize(64, 0);
    program[17] = 2;
    program[19] = 22;
    let path = project.path().join("app/program");
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = project.orch(&["images", "build", "--platform", "linux/s390x"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("qemu-user-static"), "{text}");
    assert!(text.contains("linux/s390x"), "{text}");
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
    let mut push = Command::new(assert_cmd::cargo::cargo_bin("orch"))
        .args(["images", "push", "--registry", &registry.address])
        .args(["--namespace", &project.namespace])
        .current_dir(project.path())
        .env_remove("ORCH_FILE")
        .env_remove("ORCH_BUILDER")
        .env("DOCKER_CONFIG", project.path().join(".docker"))
        .env("ORCH_CACHE", project.path().join(".cache"))
        .stdin(Stdio::null())
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

fn reproduced_with(builder: &str) {
    let project = Foreign::new(
        &format!("again-{builder}"),
        &[
            (
                "good/Dockerfile",
                "FROM debian:bookworm-slim\nRUN mkdir /made && date > /dev/null && touch /made/now\nCOPY file /\n",
            ),
            ("good/file", "content\n"),
            (
                "bad/Dockerfile",
                "FROM debian:bookworm-slim\nRUN cat /proc/sys/kernel/random/uuid > /stamp\n",
            ),
        ],
    );
    let orch = |arguments: &[&str]| {
        Command::new(assert_cmd::cargo::cargo_bin("orch"))
            .args(["images", "reproduce", "--builder", builder])
            .args([
                "--registry",
                "localhost:1",
                "--namespace",
                &project.namespace,
            ])
            .args(arguments)
            .current_dir(project.path())
            .env_remove("ORCH_FILE")
            .env("DOCKER_CONFIG", project.path().join(".docker"))
            .env("BUILDAH_ISOLATION", "chroot")
            .output()
            .unwrap()
    };
    let good = orch(&["good"]);
    assert!(good.status.success(), "{}", said(&good));
    assert!(
        said(&good).contains("both builds are sha256:"),
        "{}",
        said(&good)
    );
    let bad = orch(&["bad", "--output", "json"]);
    assert_eq!(bad.status.code(), Some(14), "{}", said(&bad));
    let found: serde_json::Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_ne!(found[0]["first"], found[0]["second"]);
    let differences = found[0]["differences"].as_array().unwrap();
    assert_eq!(differences.len(), 1, "{found}");
    assert_eq!(differences[0]["path"], "stamp");
    assert_eq!(differences[0]["what"][0]["what"], "content");
    let instruction = differences[0]["instruction"].as_str().unwrap();
    assert!(instruction.contains("random/uuid"), "{found}");
    let left = Command::new("docker")
        .args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])
        .output()
        .unwrap();
    let left = String::from_utf8(left.stdout).unwrap();
    let ours = |line: &&str| line.contains(&project.namespace) && line.contains("-cold-");
    assert_eq!(left.lines().find(ours), None);
}

#[test]
fn two_cold_builds_are_equal_or_the_file_that_differs_is_named() {
    reproduced_with("docker");
}

#[test]
fn podmans_and_buildahs_cold_builds_are_equal_as_well() {
    reproduced_with("podman");
    reproduced_with("buildah");
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
