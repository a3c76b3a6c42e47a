//! Lists of packages, provenance and signatures at the real registry, read with other people's tools.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod images_fake;
mod images_registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use images_fake::{FakeRegistry, FaultKind};
use images_registry::RealRegistry;
use serde_json::Value;
use sha2::{Digest, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const SPDX: &str = "application/spdx+json";
const STATEMENT: &str = "application/vnd.in-toto+json";
const PASSWORD: &str = "open sesame";

fn sha256(bytes: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// A repository with one component, whose second layer replaces the first one's list of packages.
struct Project {
    folder: tempfile::TempDir,
    namespace: String,
    address: String,
    registry: Option<RealRegistry>,
}

impl Drop for Project {
    fn drop(&mut self) {
        let image = format!("{}/{}/app", self.address, self.namespace);
        let found = Command::new("docker")
            .args(["image", "ls", "--quiet", "--no-trunc", &image])
            .output();
        let found = found.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        for id in found.unwrap_or_default().lines() {
            let _ = Command::new("docker").args(["rmi", "--force", id]).output();
        }
    }
}

impl Project {
    fn new(name: &str) -> Self {
        Self::with(name, RealRegistry::start())
    }

    fn with(name: &str, registry: RealRegistry) -> Self {
        let mut project = Self::at(name, &registry.address);
        project.registry = Some(registry);
        project
    }

    /// With a registry that somebody else looks after.
    fn at(name: &str, address: &str) -> Self {
        let project = Self {
            folder: tempfile::tempdir().unwrap(),
            namespace: format!("attest-{name}-{}", std::process::id()),
            address: address.to_owned(),
            registry: None,
        };
        let below = "Package: gone\nStatus: install ok installed\nVersion: 1\n";
        let above = "Package: libc6\nStatus: install ok installed\nSource: glibc\nVersion: 2.36-9\nArchitecture: amd64\n";
        let lock = "version = 4\n[[package]]\nname = \"serde\"\nversion = \"1.0.200\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        // Equal images of two tests would be one image in the engine, which the first of them to end removes.
        let dockerfile = format!(
            "FROM scratch\nLABEL test={}\nARG TOKEN=hush\nCOPY below /\nCOPY above /\n",
            project.namespace
        );
        for (path, text) in [
            ("app/Dockerfile", dockerfile.as_str()),
            ("app/below/etc/os-release", "ID=debian\nVERSION_ID=12\n"),
            ("app/below/var/lib/dpkg/status", below),
            ("app/above/var/lib/dpkg/status", above),
            ("app/Cargo.lock", lock),
            (
                "deploy/pod.yaml",
                "kind: Pod\nspec:\n  containers:\n  - image: app\n",
            ),
        ] {
            let path = project.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        project
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.path())
            .env_remove("ORCH_FILE")
            .env_remove("DOCKER_HUB_USERNAME")
            .env("HOME", self.folder.path())
            .env("DOCKER_CONFIG", self.path(".docker"))
            .env("ORCH_CACHE", self.path(".cache"))
            .env("COSIGN_PASSWORD", PASSWORD)
            .stdin(Stdio::null());
        command
    }

    fn orch(&self, arguments: &[&str]) -> Output {
        self.command(assert_cmd::cargo::cargo_bin("orch"))
            .args(["--output", "json", "images"])
            .args(arguments)
            .args(["--manifests", "deploy", "--registry"])
            .args([&self.address, "--namespace", &self.namespace])
            .output()
            .unwrap()
    }

    fn registry(&self) -> &RealRegistry {
        self.registry.as_ref().unwrap()
    }

    /// Commits everything that there is to the repository, which is made if there is none.
    fn commit(&self) -> String {
        let git = |arguments: &[&str]| {
            let named = ["-c", "user.name=x", "-c", "user.email=x@example.org"];
            self.run(Path::new("git"), &[&named[..], arguments].concat())
        };
        git(&["init", "--quiet"]);
        git(&["add", "app", "deploy"]);
        git(&["commit", "--quiet", "--allow-empty", "--message", "x"]);
        git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// The image, as other tools name it.
    fn image(&self, digest: &str) -> String {
        format!("{}/{}/app@{digest}", self.address, self.namespace)
    }

    fn done(&self, arguments: &[&str]) -> Value {
        let output = self.orch(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn code(&self, arguments: &[&str]) -> i32 {
        self.orch(arguments).status.code().unwrap()
    }

    /// Runs another program and gives its stdout.
    fn run(&self, program: &Path, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn digest(&self) -> String {
        let lock: Value =
            serde_json::from_slice(&fs::read(self.path("images.lock")).unwrap()).unwrap();
        lock["components"]["app"]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    fn manifest(&self, reference: &str, kind: &str) -> Value {
        let path = format!("/v2/{}/app/manifests/{reference}", self.namespace);
        self.registry().json(&path, kind)
    }

    fn has(&self, reference: &str) -> bool {
        let path = format!("/v2/{}/app/manifests/{reference}", self.namespace);
        let any = format!("{MANIFEST}, {INDEX}");
        self.registry().get(&path, &any).is_some()
    }

    fn blob(&self, digest: &Value) -> String {
        let digest = digest.as_str().unwrap();
        let path = format!("/v2/{}/app/blobs/{digest}", self.namespace);
        self.registry().get(&path, "*/*").unwrap()
    }

    /// Puts something into the registry, as anybody may who has its password. Gives the answer's headers.
    fn put(&self, method: &str, path: &str, kind: &str, body: &str) -> String {
        let address = &self.address;
        let url = match path.starts_with("http") {
            true => path.to_owned(),
            false => format!("http://{address}{path}"),
        };
        let kind = format!("Content-Type: {kind}");
        let arguments = ["--silent", "--fail", "--noproxy", "*", "--include"];
        let request = ["--request", method, "--header", &kind, "--data-raw", body];
        self.run(
            Path::new("curl"),
            &[&arguments[..], &request[..], &[&url]].concat(),
        )
    }

    fn put_blob(&self, bytes: &str) -> String {
        let digest = sha256(bytes);
        let path = format!("/v2/{}/app/blobs/uploads/", self.namespace);
        let answer = self.put("POST", &path, "text/plain", "");
        let mut lines = answer.lines().filter_map(|line| line.split_once(": "));
        let location = lines.find(|(name, _)| name.eq_ignore_ascii_case("location"));
        let location = location.unwrap().1.trim();
        let mark = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{mark}digest={digest}");
        self.put("PUT", &url, "application/octet-stream", bytes);
        digest
    }

    fn put_manifest(&self, reference: &str, kind: &str, manifest: &Value) {
        let path = format!("/v2/{}/app/manifests/{reference}", self.namespace);
        self.put("PUT", &path, kind, &manifest.to_string());
    }

    /// A new private key and its public half.
    fn key(&self, name: &str) -> (String, String) {
        let (private, public) = (format!("{name}.key"), format!("{name}.pub"));
        let openssl = Path::new("openssl");
        let curve = "ec_paramgen_curve:P-256";
        self.run(
            openssl,
            &[
                "genpkey",
                "-algorithm",
                "EC",
                "-pkeyopt",
                curve,
                "-out",
                &private,
            ],
        );
        self.run(
            openssl,
            &["pkey", "-in", &private, "-pubout", "-out", &public],
        );
        (private, public)
    }
}

#[test]
fn what_is_said_about_an_image_is_found_at_its_digest_and_said_once() {
    let project = Project::new("all");
    let (private, public) = project.key("mine");
    project.done(&["push"]);
    let digest = project.digest();
    let everything = ["attest", "--sbom", "--provenance", "--key", &private];
    let first = project.done(&everything);
    assert_eq!(first["app"]["added"], 5, "{first}");
    let list = digest.replace(':', "-");
    let index = project.manifest(&list, INDEX);
    let again = project.done(&everything);
    assert_eq!(again["app"]["added"], 0, "{again}");
    assert_eq!(again["app"]["sbom"], first["app"]["sbom"]);
    assert_eq!(project.manifest(&list, INDEX), index);
    // The image is what it was.
    project.done(&["push", "--sbom", "--provenance", "--key", &private]);
    assert_eq!(project.digest(), digest);
    assert_eq!(project.manifest(&list, INDEX), index);

    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    let document = |kind: &str| -> Value {
        let entry = entries.iter().find(|entry| entry["artifactType"] == kind);
        let digest = entry.unwrap()["digest"].as_str().unwrap();
        let manifest = project.manifest(digest, MANIFEST);
        assert_eq!(manifest["subject"]["digest"], project.digest());
        assert_eq!(manifest["artifactType"], kind);
        let text = project.blob(&manifest["layers"][0]["digest"]);
        assert!(!text.contains("hush"), "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let sbom = document(SPDX);
    let packages = sbom["packages"].as_array().unwrap();
    let mut names: Vec<&str> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .filter(|name| !name.contains('/'))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["debian", "libc6", "serde"]);
    let statement = document(STATEMENT);
    assert_eq!(
        statement["subject"][0]["digest"]["sha256"],
        digest.strip_prefix("sha256:").unwrap()
    );
    // The layers come from the registry when this machine does not have them.
    fs::remove_dir_all(project.path(".cache")).unwrap();
    assert_eq!(project.done(&["sbom", "app"]), sbom);

    // Without a line of ours: what cosign's format says is signed, and OpenSSL says by whom.
    let signatures = project.manifest(&format!("{list}.sig"), MANIFEST);
    let layer = &signatures["layers"][0];
    let payload = project.blob(&layer["digest"]);
    let parsed: Value = serde_json::from_str(&payload).unwrap();
    assert_eq!(
        parsed["critical"]["image"]["docker-manifest-digest"],
        digest
    );
    let signature = layer["annotations"]["dev.cosignproject.cosign/signature"].as_str();
    fs::write(project.path("payload"), payload).unwrap();
    fs::write(
        project.path("signature"),
        STANDARD.decode(signature.unwrap()).unwrap(),
    )
    .unwrap();
    let openssl = Path::new("openssl");
    let verify = ["dgst", "-sha256", "-verify", &public];
    let said = project.run(
        openssl,
        &[&verify[..], &["-signature", "signature", "payload"]].concat(),
    );
    assert_eq!(said.trim(), "Verified OK");
}

#[test]
fn verify_tells_one_key_from_another_and_from_none() {
    let project = Project::new("verify");
    let (mine, my_public) = project.key("mine");
    let (theirs, their_public) = project.key("theirs");
    project.done(&["push", "--key", &theirs]);
    let verdict = |key: &str| {
        let output = project.orch(&["verify", "--key", key]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let verdict = found[0]["verdict"].as_str().unwrap().to_owned();
        (output.status.code().unwrap(), verdict)
    };
    assert_eq!(verdict(&their_public), (0, "signed".to_owned()));
    assert_eq!(verdict(&my_public), (15, "other_key".to_owned()));
    project.done(&["attest", "--sign", "--key", &mine]);
    assert_eq!(verdict(&their_public), (0, "signed".to_owned()));
    assert_eq!(verdict(&my_public), (0, "signed".to_owned()));
}

#[test]
fn what_cannot_be_said_truly_is_not_said() {
    let project = Project::new("refusals");
    let (private, public) = project.key("mine");
    assert_eq!(project.code(&["attest"]), 3, "never pushed");
    assert_eq!(
        project.code(&["push", "--key", &public]),
        3,
        "no private key"
    );
    assert!(!project.path("images.lock").exists());
    project.done(&["push"]);
    assert_eq!(project.code(&["verify", "--key", &public]), 15);
    assert_eq!(project.code(&["attest", "--sign"]), 64, "no key");
    assert_eq!(
        project.code(&["attest", "--key", &public]),
        3,
        "no private key"
    );
    fs::write(project.path("app/above/new"), "x").unwrap();
    assert_eq!(project.code(&["attest"]), 10, "other sources");
    assert_eq!(project.code(&["sbom", "app"]), 10, "other sources");
    // A signature is about the digest, whatever the sources are by now.
    project.done(&["attest", "--sign", "--key", &private]);
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
}

#[test]
fn what_somebody_else_put_beside_an_image_is_never_signed() {
    let project = Project::new("beside");
    let (private, public) = project.key("mine");
    project.done(&["push", "--sbom", "--provenance"]);
    let list = project.digest().replace(':', "-");
    // The same types and annotations, other contents.
    let mut index = project.manifest(&list, INDEX);
    for entry in index["manifests"].as_array_mut().unwrap() {
        let mut manifest = project.manifest(entry["digest"].as_str().unwrap(), MANIFEST);
        let text = project.blob(&manifest["layers"][0]["digest"]);
        let forged = text.replacen('{', "{\"forged\":true,", 1);
        manifest["layers"][0]["digest"] = project.put_blob(&forged).into();
        manifest["layers"][0]["size"] = forged.len().into();
        let digest = sha256(&manifest.to_string());
        project.put_manifest(&digest, MANIFEST, &manifest);
        entry["digest"] = digest.into();
        entry["size"] = manifest.to_string().len().into();
    }
    project.put_manifest(&list, INDEX, &index);
    let forged: Vec<&Value> = index["manifests"].as_array().unwrap().iter().collect();
    let said = project.done(&["attest", "--sbom", "--provenance", "--key", &private]);
    assert_eq!(said["app"]["added"], 5, "{said}");
    for entry in forged {
        assert_ne!(entry["digest"], said["app"]["sbom"][0]);
        assert_ne!(entry["digest"], said["app"]["provenance"]);
    }
    let signed = project.manifest(&format!("{list}.att"), MANIFEST);
    let layers = signed["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let envelope: Value = serde_json::from_str(&project.blob(&layer["digest"])).unwrap();
        let payload = STANDARD.decode(envelope["payload"].as_str().unwrap());
        let payload = String::from_utf8(payload.unwrap()).unwrap();
        assert!(!payload.contains("forged"), "{payload}");
    }
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
}

#[test]
fn push_signs_no_image_that_somebody_else_gave_its_tag() {
    let project = Project::new("moved");
    let (private, public) = project.key("mine");
    project.done(&["push"]);
    let other = project.manifest(&project.digest(), MANIFEST);
    fs::write(project.path("app/above/new"), "x").unwrap();
    project.done(&["push", "--key", &private]);
    let lock = fs::read(project.path("images.lock")).unwrap();
    let lock: Value = serde_json::from_slice(&lock).unwrap();
    let tag = lock["components"]["app"]["tag"].as_str().unwrap();
    project.put_manifest(tag, MANIFEST, &other);
    let theirs = sha256(&other.to_string());
    let refused = project.orch(&["push", "--key", &private]);
    assert!(!refused.status.success(), "{refused:?}");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    let text = text + &String::from_utf8_lossy(&refused.stdout);
    assert!(text.contains(&theirs), "{text}");
    assert!(text.contains("orch images attest --sign"), "{text}");
    assert_ne!(project.digest(), theirs, "the lock is as it was");
    let everything = ["push", "--sbom", "--provenance", "--key", &private];
    assert_eq!(project.code(&everything), 7);
    let beside = theirs.replace(':', "-");
    for suffix in ["", ".sig", ".att"] {
        assert!(!project.has(&format!("{beside}{suffix}")), "{suffix:?}");
    }
    // The message's way. Nobody here knows how that image was built; the next push finds it in the lock.
    let taken = project.done(&["push", "--provenance"]);
    assert_eq!(taken["attested"]["app"]["provenance"], Value::Null);
    assert_eq!(project.digest(), theirs);
    assert!(!project.has(&beside));
    assert_eq!(project.code(&["verify", "--key", &public]), 15);
    project.done(&["attest", "--sign", "--key", &private]);
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
}

#[test]
fn what_a_failed_run_pushed_is_ours_to_the_next() {
    let project = Project::new("half");
    let (private, public) = project.key("mine");
    let pod = "kind: Pod\nspec:\n  containers:\n  - image: app\n  - image: late\n";
    fs::write(project.path("deploy/pod.yaml"), pod).unwrap();
    fs::create_dir(project.path("late")).unwrap();
    fs::write(project.path("late/Dockerfile"), "FROM app\nCOPY file /\n").unwrap();
    assert_eq!(project.code(&["push", "--key", &private]), 6);
    let pushed = project.digest();
    assert_eq!(project.code(&["verify", "app", "--key", &public]), 15);
    fs::write(project.path("late/file"), "x").unwrap();
    project.done(&["push", "--key", &private]);
    assert_eq!(project.digest(), pushed);
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
}

#[test]
fn nothing_is_said_in_another_repository_than_the_locks() {
    let project = Project::new("here");
    let (private, public) = project.key("mine");
    project.done(&["push"]);
    for arguments in [
        &["attest", "--sign", "--key", &private][..],
        &["verify", "--key", &public],
    ] {
        let output = project
            .command(assert_cmd::cargo::cargo_bin("orch"))
            .arg("images")
            .args(arguments)
            .args(["--manifests", "deploy", "--registry", &project.address])
            .args(["--namespace", "somewhere/else"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("somewhere/else/app"), "{text}");
        assert!(
            text.contains(&format!("{}/app", project.namespace)),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_the_key_signed_is_not_made_again() {
    let registry = FakeRegistry::start().await;
    let project = Project::at("listed", &registry.address);
    let (private, _) = project.key("mine");
    let push = ["push", "--sbom", "--key", &private];
    let first = project.done(&push);
    assert_eq!(first["attested"]["app"]["added"], 3, "{first}");
    // Another host, which has no layer.
    fs::remove_dir_all(project.path(".cache")).unwrap();
    registry.state.lock().unwrap().log.clear();
    let second = project.done(&push);
    let told = |report: &Value| report["attested"]["app"]["sbom"].clone();
    assert_eq!(told(&second), told(&first));
    assert_eq!(second["attested"]["app"]["added"], 0, "{second}");
    assert_eq!(second["bytes_sent"], 0, "{second}");
    let state = registry.state.lock().unwrap();
    let image = format!("{}/app/{}", project.namespace, project.digest());
    let image = String::from_utf8_lossy(&state.manifests[&image]).into_owned();
    let layers: Vec<&String> = state
        .log
        .iter()
        .filter(|line| line.starts_with("GET") && line.contains("/blobs/"))
        .filter(|line| image.contains(line.rsplit('/').next().unwrap_or_default()))
        .collect();
    assert!(layers.is_empty(), "{layers:?}");
    drop(state);
    // Somebody else's list is as good as none to the key.
    let (other, _) = project.key("other");
    let third = project.done(&["push", "--sbom", "--key", &other]);
    assert_eq!(third["attested"]["app"]["added"], 2, "{third}");
}

#[tokio::test(flavor = "multi_thread")]
async fn push_adds_nothing_to_an_image_that_somebody_else_pushes_meanwhile() {
    let registry = FakeRegistry::start().await;
    let project = Project::at("overtaken", &registry.address);
    let (private, _) = project.key("mine");
    let plan = project.done(&["plan"]);
    let tag = plan[0]["tag"].as_str().unwrap().to_owned();
    let theirs = br#"{"schemaVersion":2,"config":{},"layers":[]}"#.to_vec();
    let repository = format!("{}/app", project.namespace);
    let places = ["", &tag].map(|tag| match tag {
        "" => format!("{repository}/{}", images_fake::digest(&theirs)),
        tag => format!("{repository}/{tag}"),
    });
    let overtake = FaultKind::Overtake {
        repository,
        tag,
        manifest: theirs,
    };
    registry.fail("HEAD", "/manifests/in-", overtake);
    let everything = ["push", "--sbom", "--provenance", "--key", &private];
    assert_eq!(project.code(&everything), 7);
    assert!(!project.path("images.lock").exists());
    let state = registry.state.lock().unwrap();
    let there: Vec<&String> = state.manifests.keys().collect();
    let mut places: Vec<&String> = places.iter().collect();
    places.sort();
    assert_eq!(there, places);
    let put = |line: &&String| line.starts_with("PUT") && line.contains("/manifests/");
    assert_eq!(state.log.iter().find(put), None);
}

/// Everything that the command said.
fn said(output: &Output) -> String {
    let text = [&output.stderr[..], &output.stdout].map(String::from_utf8_lossy);
    text.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_lists_tag_leads_to_the_image_itself_only_signatures_are_kept() {
    let registry = FakeRegistry::start().await;
    let project = Project::at("gitlab", &registry.address);
    let (private, public) = project.key("mine");
    project.done(&["push"]);
    let repository = format!("{}/app", project.namespace);
    let list = format!("{repository}/{}", project.digest().replace(':', "-"));
    let put = |bytes: Vec<u8>| {
        let mut state = registry.state.lock().unwrap();
        state.manifests.insert(list.clone(), bytes);
    };
    let image = {
        let state = registry.state.lock().unwrap();
        state.manifests[&format!("{repository}/{}", project.digest())].clone()
    };
    put(image);
    for document in ["--sbom", "--provenance"] {
        let text = said(&project.orch(&["attest", document]));
        assert!(text.contains("only signatures (--key)"), "{text}");
        assert!(!text.contains("remove that tag"), "{text}");
    }
    project.done(&["attest", "--sign", "--key", &private]);
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
    // Whatever has the form of a list is still none.
    put(br#"{"schemaVersion":2,"manifests":[]}"#.to_vec());
    let text = said(&project.orch(&["attest", "--sbom"]));
    assert!(text.contains("remove that tag"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_list_under_a_tag_still_names_is_made_anew() {
    let registry = FakeRegistry::start().await;
    let project = Project::at("named", &registry.address);
    let documents = ["attest", "--sbom", "--provenance"];
    project.done(&["push"]);
    let first = project.done(&documents);
    let digests = ["/app/sbom/0", "/app/provenance"].map(|place| {
        let digest = first.pointer(place).and_then(Value::as_str);
        digest.unwrap().to_owned()
    });
    let repository = format!("{}/app", project.namespace);
    let names = digests.map(|digest| format!("{repository}/{digest}"));
    for name in &names {
        registry.state.lock().unwrap().manifests.remove(name);
    }
    let again = project.done(&documents);
    assert_eq!(again["app"]["added"], 2, "{again}");
    assert_eq!(again["app"]["sbom"], first["app"]["sbom"]);
    {
        let manifests = &mut registry.state.lock().unwrap().manifests;
        assert!(names.iter().all(|name| manifests.contains_key(name)));
        // Entries of others like ours, whose artifacts are gone, before ours.
        let list = format!("{repository}/{}", project.digest().replace(':', "-"));
        let list = manifests.get_mut(&list).unwrap();
        let mut index: Value = serde_json::from_slice(list).unwrap();
        let entries = index["manifests"].as_array_mut().unwrap();
        let mut gone = entries.clone();
        for entry in &mut gone {
            entry["digest"] = sha256("gone").into();
        }
        entries.splice(..0, gone);
        *list = index.to_string().into_bytes();
    }
    let third = project.done(&documents);
    assert_eq!(third["app"]["added"], 0, "{third}");
    assert_eq!(third["app"]["sbom"], first["app"]["sbom"]);
    assert_eq!(third["app"]["provenance"], again["app"]["provenance"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_are_made_at_the_same_time_all_stay() {
    let registry = FakeRegistry::start().await;
    let project = Project::at("together", &registry.address);
    let (mine, my_public) = project.key("mine");
    let (theirs, their_public) = project.key("theirs");
    project.done(&["push", "--key", &theirs]);
    let repository = format!("{}/app", project.namespace);
    let tag = format!("{}.sig", project.digest().replace(':', "-"));
    let name = format!("{repository}/{tag}");
    let manifest = registry.state.lock().unwrap().manifests.remove(&name);
    let manifest = manifest.unwrap();
    let overtake = || FaultKind::Overtake {
        repository: repository.clone(),
        tag: tag.clone(),
        manifest: manifest.clone(),
    };
    registry.fail("PUT", ".sig", overtake());
    let sign = ["attest", "--sign", "--key", &mine];
    project.done(&sign);
    assert_eq!(project.code(&["verify", "--key", &my_public]), 0);
    assert_eq!(project.code(&["verify", "--key", &their_public]), 0);
    // Nobody writes without end.
    registry.state.lock().unwrap().manifests.remove(&name);
    for _ in 0..100 {
        registry.fail("PUT", ".sig", overtake());
    }
    let output = project.orch(&sign);
    assert!(!output.status.success(), "{output:?}");
    let text = said(&output);
    assert!(text.contains("somebody else keeps writing it"), "{text}");
}

#[test]
fn what_was_said_once_is_not_said_again_at_another_commit() {
    let project = Project::new("commits");
    let (private, _) = project.key("mine");
    let everything = ["push", "--sbom", "--provenance", "--key", &private];
    project.done(&everything);
    let list = project.digest().replace(':', "-");
    let there = || {
        [
            project.manifest(&list, INDEX),
            project.manifest(&format!("{list}.att"), MANIFEST),
            project.manifest(&format!("{list}.sig"), MANIFEST),
        ]
    };
    let nothing_new = |arguments: &[&str]| {
        let before = there();
        let report = project.done(arguments);
        assert_eq!(report["bytes_sent"], 0, "{report}");
        assert_eq!(report["attested"]["app"]["added"], 0, "{report}");
        assert_eq!(there(), before);
    };
    nothing_new(&everything);
    // A statement that names the commit says more than one that does not.
    let first = project.commit();
    let report = project.done(&everything);
    assert_eq!(report["attested"]["app"]["added"], 2, "{report}");
    let provenances = || {
        let index = project.manifest(&list, INDEX);
        let entries = index["manifests"].as_array().unwrap().clone();
        let entries = entries.into_iter();
        let provenances = entries.filter(|entry| entry["artifactType"] == STATEMENT);
        provenances.collect::<Vec<_>>()
    };
    let named = "org.opencontainers.image.revision";
    assert_eq!(provenances().len(), 2);
    assert_eq!(provenances()[1]["annotations"][named], first);
    nothing_new(&everything);
    assert_ne!(project.commit(), first);
    nothing_new(&everything);
    nothing_new(&["push", "--sbom", "--provenance"]);
    // What got lost comes back as it was signed, at whatever commit.
    let mut index = project.manifest(&list, INDEX);
    let entries = index["manifests"].as_array_mut().unwrap();
    let lost = entries
        .iter()
        .position(|entry| entry["annotations"][named] == first);
    let lost = entries.remove(lost.unwrap());
    project.put_manifest(&list, INDEX, &index);
    let report = project.done(&everything);
    assert_eq!(report["attested"]["app"]["added"], 1, "{report}");
    assert_eq!(provenances().last(), Some(&lost));
    nothing_new(&everything);
}

#[test]
fn orch_yaml_says_what_every_push_attaches_and_options_take_it_back() {
    let project = Project::new("described");
    let (private, public) = project.key("mine");
    let yaml = format!("images:\n  attest: {{sbom: true, provenance: true, key: {private}}}\n");
    fs::write(project.path("orch.yaml"), yaml).unwrap();
    let report = project.done(&["push", "--sbom=false", "--provenance=false", "--no-key"]);
    assert_eq!(report["attested"], serde_json::json!({}), "{report}");
    assert!(!project.has(&project.digest().replace(':', "-")));
    assert_eq!(project.code(&["verify", "--key", &public]), 15);
    let report = project.done(&["push"]);
    assert_eq!(report["attested"]["app"]["added"], 5, "{report}");
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
    let (theirs, _) = project.key("theirs");
    let report = project.done(&["push", "--provenance=false", "--key", &theirs]);
    // A signature and a signed list by another key.
    assert_eq!(report["attested"]["app"]["added"], 2, "{report}");
}

#[test]
fn a_database_that_is_not_read_is_named_in_the_run_and_in_the_document() {
    let project = Project::new("rpm");
    let database = project.path("app/above/var/lib/rpm/rpmdb.sqlite");
    fs::create_dir_all(database.parent().unwrap()).unwrap();
    fs::write(database, "SQLite format 3").unwrap();
    let said = "/var/lib/rpm/rpmdb.sqlite is a package database in a form that is not read";
    let output = project.orch(&["push", "--sbom"]);
    assert!(output.status.success(), "{output:?}");
    let events = String::from_utf8(output.stderr).unwrap();
    let mut events = events.lines().filter(|line| line.contains(said));
    let event: Value = serde_json::from_str(events.next().unwrap()).unwrap();
    assert_eq!(event["event"], "incomplete");
    assert_eq!(event["component"], "app");
    let document = project.done(&["sbom", "app"]);
    assert!(document["comment"].as_str().unwrap().contains(said));
}

/// cosign itself: `ORCH_COSIGN`, which `ci/test` sets, or the one in PATH. The other tests prove the format without it.
fn cosign() -> Option<PathBuf> {
    let named = std::env::var_os("ORCH_COSIGN").map(PathBuf::from);
    named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|folder| folder.join("cosign"))
            .find(|program| program.is_file())
    })
}

#[test]
fn cosign_verifies_what_we_sign_and_we_verify_what_it_signs() {
    let Some(cosign) = cosign() else { return };
    let project = Project::new("cosign");
    project.run(&cosign, &["generate-key-pair"]);
    project.done(&["push", "--key", "cosign.key", "--sbom", "--provenance"]);
    let image = project.image(&project.digest());
    let insecure = ["--allow-insecure-registry", "--allow-http-registry", &image];
    let verify = [
        "verify",
        "--key",
        "cosign.pub",
        "--insecure-ignore-tlog=true",
    ];
    let said = project.run(&cosign, &[&verify[..], &insecure].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    let signed = &said[0]["critical"]["image"]["docker-manifest-digest"];
    assert_eq!(*signed, project.digest());
    assert_eq!(said.as_array().unwrap().len(), 1);
    for (kind, states) in [
        ("slsaprovenance1", "https://slsa.dev/provenance/v1"),
        ("spdxjson", "https://spdx.dev/Document"),
    ] {
        let verify = ["verify-attestation", "--key", "cosign.pub", "--type", kind];
        let offline = ["--insecure-ignore-tlog=true"];
        let said = project.run(&cosign, &[&verify[..], &offline, &insecure].concat());
        let envelope: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        let payload = STANDARD
            .decode(envelope["payload"].as_str().unwrap())
            .unwrap();
        let statement: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(statement["predicateType"], states);
    }
    // Its own signature beside ours.
    let (private, public) = project.key("other");
    let sign = [
        "sign",
        "--key",
        "cosign.key",
        "--tlog-upload=false",
        "--yes",
    ];
    fs::write(project.path("app/above/new"), "another image").unwrap();
    project.done(&["push"]);
    let image = project.image(&project.digest());
    let insecure = ["--allow-insecure-registry", "--allow-http-registry", &image];
    project.run(&cosign, &[&sign[..], &insecure].concat());
    assert_eq!(project.code(&["verify", "--key", "cosign.pub"]), 0);
    let again = project.done(&["attest", "--sign", "--key", "cosign.key"]);
    assert_eq!(
        again["app"]["added"], 0,
        "cosign signed it already: {again}"
    );
    project.done(&["attest", "--sign", "--key", &private]);
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
    project.run(&cosign, &[&verify[..], &insecure].concat());
}

const COSIGN_INSECURE: [&str; 3] = [
    "--insecure-ignore-tlog=true",
    "--allow-insecure-registry",
    "--allow-http-registry",
];

#[test]
fn every_image_of_an_index_is_described_and_the_index_is_signed() {
    let project = Project::new("index");
    let yaml = "images:\n  components:\n  - {name: app, platforms: [linux/amd64, linux/arm64]}\n";
    fs::write(project.path("orch.yaml"), yaml).unwrap();
    let (private, public) = project.key("mine");
    let everything = ["push", "--sbom", "--provenance", "--key", &private];
    let report = project.done(&everything);
    let attested = &report["attested"]["app"];
    // A list for each platform and one provenance, each of them signed as well, and the index's signature.
    assert_eq!(attested["added"], 7, "{report}");
    let again = project.done(&everything);
    assert_eq!(again["attested"]["app"]["added"], 0, "{again}");
    assert_eq!(again["bytes_sent"], 0, "{again}");
    let index = project.manifest(&project.digest(), INDEX);
    let children = index["manifests"].as_array().unwrap();
    assert_eq!(children.len(), 2);
    for child in children {
        let digest = child["digest"].as_str().unwrap();
        let list = project.manifest(&digest.replace(':', "-"), INDEX);
        let [entry] = list["manifests"].as_array().unwrap().as_slice() else {
            panic!("one document about {digest}: {list}");
        };
        assert_eq!(entry["artifactType"], SPDX);
        let manifest = project.manifest(entry["digest"].as_str().unwrap(), MANIFEST);
        assert_eq!(manifest["subject"]["digest"], digest);
        let text = project.blob(&manifest["layers"][0]["digest"]);
        let document: Value = serde_json::from_str(&text).unwrap();
        let purl = &document["packages"][0]["externalRefs"][0]["referenceLocator"];
        let platform = child["platform"]["architecture"].as_str().unwrap();
        let wanted = format!("arch={platform}&");
        assert!(purl.as_str().unwrap().contains(&wanted), "{purl}");
        assert!(text.contains("libc6"), "{text}");
    }
    let statements = project.manifest(&project.digest().replace(':', "-"), INDEX);
    assert_eq!(statements["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
    let Some(cosign) = cosign() else { return };
    let verify = |command: &[&str], digest: &str| {
        let image = project.image(digest);
        let key = ["--key", &public];
        project.run(
            &cosign,
            &[command, &key, &COSIGN_INSECURE, &[&image]].concat(),
        )
    };
    verify(&["verify"], &project.digest());
    let provenance = ["verify-attestation", "--type", "slsaprovenance1"];
    verify(&provenance, &project.digest());
    for child in children {
        let list = ["verify-attestation", "--type", "spdxjson"];
        verify(&list, child["digest"].as_str().unwrap());
    }
}

/// A registry that keeps lists of referrers itself: `ci/setup` builds it, and `ci/test` says where it is.
#[test]
fn a_registry_that_lists_referrers_itself_gets_no_list_from_us() {
    let Some(program) = std::env::var_os("ORCH_REFERRERS_REGISTRY") else {
        return;
    };
    let project = Project::with("native", RealRegistry::of(Path::new(&program)));
    let (private, public) = project.key("mine");
    let everything = ["push", "--sbom", "--provenance", "--key", &private];
    let report = project.done(&everything);
    assert_eq!(report["attested"]["app"]["added"], 5, "{report}");
    let digest = project.digest();
    assert!(
        !project.has(&digest.replace(':', "-")),
        "no list under a tag"
    );
    let path = format!("/v2/{}/app/referrers/{digest}", project.namespace);
    let listed = || {
        let list = project.registry().json(&path, INDEX);
        let entries = list["manifests"].as_array().unwrap();
        let mut digests: Vec<String> = entries
            .iter()
            .map(|entry| entry["digest"].as_str().unwrap().to_owned())
            .collect();
        digests.sort();
        digests
    };
    let mut said = vec![
        report["attested"]["app"]["sbom"][0].as_str().unwrap(),
        report["attested"]["app"]["provenance"].as_str().unwrap(),
    ];
    said.sort_unstable();
    assert_eq!(listed(), said);
    for arguments in [&everything[..], &everything[..3]] {
        let again = project.done(arguments);
        assert_eq!(again["attested"]["app"]["added"], 0, "{again}");
        assert_eq!(again["bytes_sent"], 0, "{again}");
    }
    assert_eq!(listed(), said);
    assert_eq!(project.code(&["verify", "--key", &public]), 0);
    let Some(cosign) = cosign() else { return };
    let image = project.image(&digest);
    let key = ["verify", "--key", &public];
    project.run(&cosign, &[&key, &COSIGN_INSECURE[..], &[&image]].concat());
}
