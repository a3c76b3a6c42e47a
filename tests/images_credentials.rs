//! Who orch says that it is: from Docker's configuration, its helpers, Podman's files and the environment. And that no secret is
//! ever shown.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod images_fake;
mod images_project;

use std::os::unix::fs::PermissionsExt;

use images_fake::{FakeRegistry, FaultKind};
use images_project::{Project, said};

/// In every credential here.
const SECRET: &str = "hush-hush";
/// `me:hush-hush` in base64.
const LOGIN: &str = "bWU6aHVzaC1odXNo";

struct Bench {
    registry: FakeRegistry,
    project: Project,
}

struct Answer {
    code: i32,
    text: String,
}

impl Bench {
    /// A registry that wants a token.
    async fn new() -> Self {
        let registry = FakeRegistry::start().await;
        let nobody = "nobody has this".to_owned();
        registry.state.lock().unwrap().tokens.insert(nobody);
        Self {
            registry,
            project: Project::of_one_component(),
        }
    }

    /// A credential helper that answers to this registry's name with `answer`, and to any other with an error.
    fn helper(&self, name: &str, answer: &str) {
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread -r server || :\n\
             [ \"$server\" = {} ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n{answer}\n",
            self.registry.address
        );
        let path = self
            .project
            .write(&format!("bin/docker-credential-{name}"), &script);
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Lists a repository's tags, and makes sure that nothing secret is shown.
    async fn ask(&self, environment: &[(&str, &str)]) -> Answer {
        self.orch(&["gc", "--no-git"], environment).await
    }

    /// Runs a command of `orch images`, and makes sure that nothing secret is shown.
    async fn orch(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Answer {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", self.project.path().join("bin").display());
        let mut text = String::new();
        let mut code = 0;
        for output in ["plain", "json"] {
            let mut orch = self.project.orch(&["--output", output, "images"]);
            orch.args(arguments)
                .args(["--registry", &self.registry.address, "--namespace", "me"])
                .env_clear()
                .env("PATH", &path)
                .env("HOME", self.project.path().join("home"))
                .env("ORCH_CACHE", self.project.path().join("cache"))
                .env("RUST_LOG", "trace")
                .env("RUST_BACKTRACE", "full")
                .envs(environment.iter().copied());
            let done = tokio::process::Command::from(orch).output().await.unwrap();
            code = done.status.code().unwrap();
            text += &said(&done);
        }
        for secret in [SECRET, LOGIN] {
            assert!(!text.contains(secret), "{text}");
        }
        Answer { code, text }
    }

    async fn is_let_in(&self, environment: &[(&str, &str)]) {
        let Answer { code, text } = self.ask(environment).await;
        assert_eq!(code, 0, "{text}");
    }

    /// What the token server was told.
    fn logins(&self) -> Vec<String> {
        self.registry.state.lock().unwrap().logins.clone()
    }

    fn config(&self, path: &str, rest: &str) {
        let text = rest.replace("REGISTRY", &self.registry.address);
        self.project.write(path, &text);
    }
}

fn basic() -> String {
    format!("Basic {LOGIN} ")
}

#[tokio::test]
async fn a_login_is_found_in_dockers_and_podmans_files() {
    let entry = format!(r#"{{"auths": {{"REGISTRY": {{"auth": "{LOGIN}"}}}}}}"#);
    let places: [(&str, Option<(&str, &str)>); 5] = [
        ("home/.docker/config.json", None),
        ("d/config.json", Some(("DOCKER_CONFIG", "d"))),
        ("p/auth.json", Some(("REGISTRY_AUTH_FILE", "p/auth.json"))),
        ("run/containers/auth.json", Some(("XDG_RUNTIME_DIR", "run"))),
        ("home/.config/containers/auth.json", None),
    ];
    for (path, variable) in places {
        let bench = Bench::new().await;
        bench.config(path, &entry);
        let value = |relative: &str| bench.project.path().join(relative).display().to_string();
        let variable = variable.map(|(name, relative)| (name, value(relative)));
        let environment: Vec<(&str, &str)> = variable
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        bench.is_let_in(&environment).await;
        assert_eq!(bench.logins(), [basic(), basic()], "{path}");
    }
}

#[tokio::test]
async fn tokens_go_where_they_belong() {
    let bench = Bench::new().await;
    let identity = format!(r#"{{"auths": {{"REGISTRY": {{"identitytoken": "{SECRET}"}}}}}}"#);
    bench.config("home/.docker/config.json", &identity);
    bench.is_let_in(&[]).await;
    let login = bench.logins().remove(0);
    assert!(login.contains("grant_type=refresh_token"), "{login}");
    assert!(
        login.contains(&format!("refresh_token={SECRET}")),
        "{login}"
    );

    let bench = Bench::new().await;
    let token = format!(r#"{{"auths": {{"REGISTRY": {{"registrytoken": "{SECRET}"}}}}}}"#);
    bench.config("home/.docker/config.json", &token);
    let known = format!("Bearer {SECRET}");
    bench.registry.state.lock().unwrap().tokens.insert(known);
    bench.is_let_in(&[]).await;
    assert_eq!(bench.logins(), Vec::<String>::new());
}

#[tokio::test]
async fn helpers_are_asked_as_docker_asks_them() {
    let password = format!(r#"echo '{{"ServerURL":"x","Username":"me","Secret":"{SECRET}"}}'"#);
    let identity = format!(r#"echo '{{"Username":"<token>","Secret":"{SECRET}"}}'"#);

    let bench = Bench::new().await;
    bench.helper("store", &password);
    bench.config(
        "home/.docker/config.json",
        r#"{"auths": {"REGISTRY": {}}, "credsStore": "store"}"#,
    );
    bench.is_let_in(&[]).await;
    assert_eq!(bench.logins()[0], basic());

    // The registry's own helper comes before the store.
    let bench = Bench::new().await;
    bench.helper("store", "exit 7");
    bench.helper("own", &identity);
    bench.config(
        "home/.docker/config.json",
        r#"{"credsStore": "store", "credHelpers": {"REGISTRY": "own"}}"#,
    );
    bench.is_let_in(&[]).await;
    assert!(
        bench.logins()[0].contains("refresh_token="),
        "{:?}",
        bench.logins()
    );

    // A store that knows nothing leaves it to the next file.
    let bench = Bench::new().await;
    bench.helper(
        "store",
        "echo 'credentials not found in native keychain'; exit 1",
    );
    bench.config("home/.docker/config.json", r#"{"credsStore": "store"}"#);
    let entry = format!(r#"{{"auths": {{"REGISTRY": {{"auth": "{LOGIN}"}}}}}}"#);
    bench.config("home/.config/containers/auth.json", &entry);
    bench.is_let_in(&[]).await;
    assert_eq!(bench.logins()[0], basic());
}

#[tokio::test]
async fn a_helper_that_fails_is_named_and_its_words_are_not_repeated() {
    for (name, answer, hint) in [
        (
            "broken",
            Some(format!("echo {SECRET}; echo {SECRET} >&2; exit 1")),
            "failed",
        ),
        (
            "chatty",
            Some(format!("echo '{SECRET} {{'")),
            "does not answer in JSON",
        ),
        ("absent", None, "PATH"),
    ] {
        let bench = Bench::new().await;
        if let Some(answer) = answer {
            bench.helper(name, &answer);
        }
        bench.config(
            "home/.docker/config.json",
            &format!(r#"{{"credsStore": "{name}"}}"#),
        );
        let Answer { code, text } = bench.ask(&[]).await;
        assert_eq!(code, 7, "{text}");
        assert!(
            text.contains(&format!("docker-credential-{name}")),
            "{text}"
        );
        assert!(text.contains(hint), "{text}");
        assert_eq!(bench.registry.log(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_check_without_a_network_asks_no_helper() {
    let bench = Bench::new().await;
    let asked = bench.project.path().join("asked");
    bench.helper("store", &format!("touch {}; exit 7", asked.display()));
    bench.config("home/.docker/config.json", r#"{"credsStore": "store"}"#);
    // 10: the sources were never pushed.
    let Answer { code, text } = bench.orch(&["check", "--offline"], &[]).await;
    assert_eq!(code, 10, "{text}");
    assert!(!asked.exists());
    assert_eq!(bench.registry.log(), Vec::<String>::new());
    // With a network it is the same helper that fails.
    let Answer { code, text } = bench.orch(&["check"], &[]).await;
    assert_eq!(code, 7, "{text}");
    assert!(asked.exists());
}

#[tokio::test]
async fn the_environment_comes_first_and_only_whole() {
    let bench = Bench::new().await;
    bench.config("home/.docker/config.json", r#"{"credsStore": "absent"}"#);
    let (user, password) = (
        ("ORCH_REGISTRY_USERNAME", "me"),
        ("ORCH_REGISTRY_PASSWORD", SECRET),
    );
    bench.is_let_in(&[user, password]).await;
    assert_eq!(bench.logins()[0], basic());
    for (half, missing) in [(user, password.0), (password, user.0)] {
        let Answer { code, text } = bench.ask(&[half]).await;
        assert_eq!(code, 7, "{text}");
        assert!(text.contains(&format!("{missing} is not set")), "{text}");
    }
}

#[tokio::test]
async fn a_refused_login_shows_no_secret() {
    for entry in ["auth", "identitytoken", "registrytoken"] {
        let bench = Bench::new().await;
        let value = if entry == "auth" { LOGIN } else { SECRET };
        let text = format!(r#"{{"auths": {{"REGISTRY": {{"{entry}": "{value}"}}}}}}"#);
        bench.config("home/.docker/config.json", &text);
        for method in ["GET", "POST"] {
            for _ in 0..4 {
                bench
                    .registry
                    .fail(method, "/token", FaultKind::Status(401, ""));
            }
        }
        let Answer { code, text } = bench.ask(&[]).await;
        assert_eq!(code, 7, "{entry}: {text}");
        assert!(text.contains("docker login"), "{text}");
    }
}

#[tokio::test]
async fn an_upload_that_goes_on_elsewhere_takes_no_credentials_along() {
    use std::sync::Arc;

    use orch::images::registry::credentials::Credential;
    use orch::images::registry::http::{Endpoint, HttpRegistry};
    use orch::images::registry::{Blob, BlobSource, Registry};

    let (registry, elsewhere) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let nobody = "nobody has this".to_owned();
    registry.state.lock().unwrap().tokens.insert(nobody);
    let place = format!(
        "Location: http://{}/v2/me/app/blobs/uploads/u0\r\n",
        elsewhere.address
    );
    let place: &'static str = Box::leak(place.into_boxed_str());
    let endpoint = Endpoint::of(&registry.address, false).unwrap();
    let credential = Credential::Password {
        username: "me".to_owned(),
        secret: SECRET.to_owned().into(),
    };
    let client = HttpRegistry::new(endpoint, Some(credential), [], Arc::default()).unwrap();
    client.head_manifest("me/app", "in-1").await.unwrap();
    registry.fail("POST", "/uploads/", FaultKind::Status(202, place));
    let session = client.start_upload("me/app").await.unwrap();
    let content = bytes::Bytes::from_static(b"content");
    let blob = Blob {
        digest: images_fake::digest(&content),
        size: content.len() as u64,
        source: BlobSource::Memory(content),
        progress: None,
    };
    // The other host knows no such upload; what counts is what it was told.
    client
        .finish_upload(&session, &blob, true)
        .await
        .unwrap_err();
    let state = elsewhere.state.lock().unwrap();
    assert_eq!(state.log, ["PUT /v2/me/app/blobs/uploads/u0"]);
    assert_eq!(state.authorizations, [""]);
}
