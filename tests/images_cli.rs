//! `orch images` as a program: what it says and with which exit code when a push cannot succeed. Nothing is pinned then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod images_fake;

use std::path::Path;
use std::process::Stdio;

use images_fake::{FakeRegistry, FaultKind};

const MANIFEST: &str = "kind: Pod\nspec:\n  containers:\n  - image: app\n";

fn project(dockerfile: &str, manifest: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("Dockerfiles/app/Dockerfile", dockerfile);
    write("Dockerfiles/app/file", "content\n");
    write("Manifests/pod.yaml", manifest);
    write(
        "orch.yaml",
        "name: images-cli\nprovider: docker\nnetwork: {subnet: 192.168.59.0/24}\n\
         nodes: [{name: master, role: server, address: 192.168.59.10}]\n\
         stacks: [{name: pods, manifests: Manifests, namespace: default}]\n",
    );
    folder
}

/// What `orch images push --pin` with a wrong password said, after making sure that it pinned and locked nothing.
struct Refusal {
    code: i32,
    text: String,
}

async fn push(folder: &Path, registry: &str) -> Refusal {
    let manifest = folder.join("Manifests/pod.yaml");
    let before = std::fs::read(&manifest).unwrap();
    // The user `me` with the password `hush-hush`.
    std::fs::write(
        folder.join("config.json"),
        format!(r#"{{"auths":{{"{registry}":{{"auth":"bWU6aHVzaC1odXNo"}}}}}}"#),
    )
    .unwrap();
    let output = tokio::process::Command::new(assert_cmd::cargo::cargo_bin("orch"))
        .args(["images", "push", "--pin", "--plain-http"])
        .args(["--registry", registry, "--namespace", "me"])
        .current_dir(folder)
        .env_remove("ORCH_FILE")
        .env_remove("DOCKER_HUB_USERNAME")
        .env("DOCKER_CONFIG", folder)
        .env("ORCH_CACHE", folder.join("cache"))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert_eq!(std::fs::read(&manifest).unwrap(), before);
    assert!(!folder.join("images.lock").exists());
    Refusal {
        code: output.status.code().unwrap(),
        text: String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
    }
}

#[tokio::test]
async fn a_refused_login_is_exit_7_before_anything_is_built() {
    let registry = FakeRegistry::start().await;
    let nobody = "nobody has this".to_owned();
    registry.state.lock().unwrap().tokens.insert(nobody);
    for _ in 0..20 {
        registry.fail("GET", "/token", FaultKind::Status(401, ""));
    }
    let folder = project("FROM scratch\nCOPY file /\n", MANIFEST);
    let Refusal { code, text } = push(folder.path(), &registry.address).await;
    assert_eq!(code, 7, "{text}");
    assert!(text.contains(&registry.address), "{text}");
    assert!(text.contains("docker login"), "{text}");
    assert!(!text.contains("hush"), "{text}");
    assert_eq!(registry.count("POST"), 0, "{:?}", registry.log());
}

#[tokio::test]
async fn a_dockerfile_that_fails_is_exit_6_with_its_last_lines() {
    let registry = FakeRegistry::start().await;
    let folder = project("FROM scratch\nCOPY file /\nCOPY absent /\n", MANIFEST);
    let Refusal { code, text } = push(folder.path(), &registry.address).await;
    assert_eq!(code, 6, "{text}");
    assert!(text.contains("COPY absent /"), "{text}");
    assert!(text.contains("Dockerfiles/app/Dockerfile"), "{text}");
    assert_eq!(registry.count("POST"), 0, "{:?}", registry.log());
}

#[tokio::test]
async fn the_namespace_of_orch_yaml_comes_before_the_login() {
    let registry = FakeRegistry::start().await;
    let folder = project("FROM scratch\nCOPY file /\n", MANIFEST);
    let config = folder.path().join("orch.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}registry: {{namespace: team}}\n")).unwrap();
    let output = tokio::process::Command::new(assert_cmd::cargo::cargo_bin("orch"))
        .args(["images", "plan", "--registry", &registry.address])
        .current_dir(folder.path())
        .env_remove("ORCH_FILE")
        .env("DOCKER_HUB_USERNAME", "me")
        .env("DOCKER_CONFIG", folder.path())
        .env("ORCH_CACHE", folder.path().join("cache"))
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let asked = registry.count("HEAD /v2/team/app/manifests/");
    assert_eq!(asked, 1, "{:?}", registry.log());
}

#[tokio::test]
async fn an_image_nobody_builds_is_exit_3_with_its_place() {
    let registry = FakeRegistry::start().await;
    let folder = project(
        "FROM scratch\nCOPY file /\n",
        &format!("{MANIFEST}  - image: nginx:1\n"),
    );
    let Refusal { code, text } = push(folder.path(), &registry.address).await;
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("pod.yaml:5:12: nobody builds `nginx:1`"),
        "{text}"
    );
    assert_eq!(registry.log(), Vec::<String>::new());
}

#[tokio::test]
async fn a_plan_refuses_what_a_pinning_push_would_and_a_push_without_pins_does_not() {
    let registry = FakeRegistry::start().await;
    let manifest = format!("{MANIFEST}  - image: nginx:1\n  - image: acme/web\n");
    let folder = project("FROM scratch\nCOPY file /\n", &manifest);
    let run = async |arguments: &[&str]| {
        let output = tokio::process::Command::new(assert_cmd::cargo::cargo_bin("orch"))
            .arg("images")
            .args(arguments)
            .args(["--registry", &registry.address, "--namespace", "me"])
            .current_dir(folder.path())
            .env_remove("ORCH_FILE")
            .env_remove("DOCKER_HUB_USERNAME")
            .env("DOCKER_CONFIG", folder.path())
            .env("ORCH_CACHE", folder.path().join("cache"))
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    let pinning = ["push", "--pin"].as_slice();
    for plan in [
        ["plan"].as_slice(),
        &["plan", "app"],
        &["push", "--pin", "--dry-run"],
    ] {
        let (code, text) = run(plan).await;
        assert_eq!(code, 3, "{plan:?}: {text}");
        let (_, same) = run(pinning).await;
        let refusal = |text: &str| text.lines().last().map(str::to_owned);
        assert_eq!(refusal(&text), refusal(&same), "{plan:?}");
        assert!(
            text.contains("pod.yaml:5:12: nobody builds `nginx:1`"),
            "{text}"
        );
    }
    let (code, text) = run(&["plan", "--keep", "nginx"]).await;
    assert_eq!(code, 3, "{text}");
    assert!(
        text.contains("pod.yaml:6:12: nobody builds `acme/web`"),
        "{text}"
    );
    assert_eq!(registry.log(), Vec::<String>::new());
    let said = ["--keep", "nginx:1", "--map", "acme/web=app"];
    for plan in [["plan"].as_slice(), &["push", "--pin", "--dry-run"]] {
        let (code, text) = run(&[plan, &said].concat()).await;
        assert_eq!(code, 0, "{plan:?}: {text}");
        assert!(
            text.contains("build and push: it was never pushed"),
            "{text}"
        );
    }
    let (code, text) = run(&["push", "--dry-run"]).await;
    assert_eq!(code, 0, "{text}");
    assert_eq!(registry.count("POST"), 0, "{:?}", registry.log());
}

#[tokio::test]
async fn an_offline_check_asks_nobody_and_speaks_to_ci() {
    let registry = FakeRegistry::start().await;
    let foreign = format!("{MANIFEST}  - image: nginx:1\n");
    let folder = project("FROM scratch\nCOPY file /\n", &foreign);
    let root = folder.path().canonicalize().unwrap();
    let proxy = format!("http://{}", registry.address);
    let check = async |job: &str, output: &str| {
        tokio::process::Command::new(assert_cmd::cargo::cargo_bin("orch"))
            .args(["--output", output, "images", "check", "--offline"])
            .args(["--registry", &registry.address, "--namespace", "me"])
            .current_dir(&root)
            .env_remove("ORCH_FILE")
            .env_remove("DOCKER_HUB_USERNAME")
            .env("DOCKER_CONFIG", &root)
            .env("ORCH_CACHE", root.join("cache"))
            .env("GITHUB_ACTIONS", job)
            .env("GITHUB_WORKSPACE", &root)
            .env("http_proxy", &proxy)
            .env("https_proxy", &proxy)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap()
    };
    let laptop = check("", "plain").await;
    assert_eq!(laptop.status.code(), Some(10), "{laptop:?}");
    let text = String::from_utf8(laptop.stdout).unwrap();
    for part in [
        "sources changed since the last push (exit status 10):",
        "manifests do not name what was pushed (exit status 11):",
        "Manifests/pod.yaml:4:12: `app` is the component app, which was never pushed",
        "Manifests/pod.yaml:5:12: `nginx:1` is not pinned",
        "`orch images pin --upstream`",
        "the registry was not asked",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("::error"), "{text}");
    let job = String::from_utf8(check("true", "plain").await.stdout).unwrap();
    let annotation = "\n::error file=Manifests/pod.yaml,line=5,col=12,title=";
    assert!(job.contains(annotation), "{job}");
    let json = check("true", "json").await;
    assert_eq!(json.status.code(), Some(10));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["exit_code"], 10);
    assert_eq!(json["findings"].as_array().unwrap().len(), 3);
    assert_eq!(registry.log(), Vec::<String>::new());
}
