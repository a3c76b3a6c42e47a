//! The archive of a bundle in a real containerd: what is imported is found under the names that pods have.
//!
//! Needs root, containerd with its `ctr`, and curl.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::site::Site;

struct Containerd {
    folder: tempfile::TempDir,
    child: Child,
}

impl Containerd {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // No overlay, which does not work on every file system that tests run on.
        let config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n";
        std::fs::write(path("config.toml"), config).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(path("config.toml"))
            .arg("--root")
            .arg(path("root"))
            .arg("--state")
            .arg(path("state"))
            .arg("--address")
            .arg(path("socket"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let containerd = Self { folder, child };
        for _ in 0..300 {
            if containerd.run(&["version"]).is_ok() {
                return containerd;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!(
            "{}",
            std::fs::read_to_string(containerd.path("log")).unwrap()
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, String> {
        let output = Command::new("ctr")
            .arg("--address")
            .arg(self.path("socket"))
            .args(["--namespace", "k8s.io"])
            .args(arguments)
            .output()
            .unwrap();
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn text(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.run(arguments).unwrap()).unwrap()
    }

    fn import(&self, archive: &Path, platforms: &[&str]) -> Result<Vec<u8>, String> {
        let import = ["images", "import", "--snapshotter", "native"];
        self.run(&[&import, platforms, &[archive.to_str().unwrap()]].concat())
    }

    /// What the kubelet's question whether there is an image of this name is answered with (CRI, over gRPC).
    fn image_status(&self, name: &str) -> Vec<u8> {
        // Both messages have one field of variable length, of number one.
        let wrap = |bytes: &[u8]| {
            assert!(bytes.len() < 128, "longer than one byte says");
            [&[10, u8::try_from(bytes.len()).unwrap()], bytes].concat()
        };
        let message = wrap(&wrap(name.as_bytes()));
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let body = self.path("question");
        std::fs::write(&body, [&[0], length.as_slice(), &message].concat()).unwrap();
        let answer = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--http2-prior-knowledge",
                "--unix-socket",
            ])
            .arg(self.path("socket"))
            .args([
                "--header",
                "content-type: application/grpc",
                "--header",
                "te: trailers",
            ])
            .arg("--data-binary")
            .arg(format!("@{}", body.display()))
            .arg("http://containerd/runtime.v1.ImageService/ImageStatus")
            .output()
            .unwrap();
        assert!(answer.status.success(), "{answer:?}");
        answer.stdout
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A layer with one file.
fn layer(text: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "text", text.as_bytes())
        .unwrap();
    archive.into_inner().unwrap()
}

fn unpacked(site: &Site, options: &[&str]) -> PathBuf {
    site.done(&[&["bundle", "create", "-o", "b"], options].concat());
    if site.path("one").exists() {
        std::fs::remove_dir_all(site.path("one")).unwrap();
    }
    site.done(&["bundle", "install", "b", "--unpack"]);
    site.path("one/orch-bundle/orch-images.tar")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_find_their_images_by_digest() {
    let site = Site::new().await;
    let shared = layer("shared");
    let app = site.image("me/app", &[&shared, &layer("app")]);
    let own = site.image("me/own", &[&shared, &layer("own")]);
    let foreign = site.image("me/own", &[&layer("foreign")]);
    let both = site.index("me/own", &own, &foreign);
    let images = [
        site.name("me/app", ":v1", &app),
        site.name("me/own", ":v2", &both),
    ];
    site.pods("app.yaml", &images);
    for (options, platforms) in [
        // As the stand-in imports, and K3s before it passed over what is missing.
        (
            ["--all-platforms"].as_slice(),
            ["--all-platforms"].as_slice(),
        ),
        // An index without the platforms of others.
        (&[], &[]),
    ] {
        let archive = unpacked(&site, options);
        let containerd = Containerd::start();
        containerd.import(&archive, platforms).unwrap();
        let found = containerd.text(&["images", "list", "--quiet"]);
        for (image, name) in [(&app, &images[0]), (&both, &images[1])] {
            let digest = image["digest"].as_str().unwrap();
            // What a pod says has a tag and a digest; the runtime drops the tag.
            let answer = containerd.image_status(name);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (repository, _) = name.rsplit_once(":v").unwrap();
            let stored = format!("{repository}@{digest}");
            assert!(found.lines().any(|line| line == stored), "{found}");
            assert!(answer.contains(&stored), "{answer}");
            let manifest = containerd.run(&["content", "get", digest]).unwrap();
            assert_eq!(crate::images_fake::digest(&manifest), digest);
        }
        let none = containerd.image_status("docker.io/library/none@sha256:0000000000000000000000000000000000000000000000000000000000000000");
        assert!(none.len() < 10, "{}", String::from_utf8_lossy(&none));
        let checked = containerd.text(&["images", "check"]);
        assert!(!checked.contains("incomplete"), "{checked}");
    }
}
