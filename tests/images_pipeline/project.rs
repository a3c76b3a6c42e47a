//! A project with a registry container of its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use orch::images::component::{discover, host_platform};
use orch::images::destination::Destination;
use orch::images::engine::Engine;
use orch::images::event::Recorder;
use orch::images::execute::{Pipeline, Report, Settings};
use orch::images::plan::Action;
use orch::images::registry::Registry;
use orch::images::registry::retry::Policy;
use orch::images::registry::stand_in::StandIn;

/// A project in a folder of its own, with a registry container that goes when this is dropped.
pub(crate) struct Project {
    folder: tempfile::TempDir,
    pub(crate) stand_in: StandIn,
    pub(crate) recorder: Arc<Recorder>,
}

impl Drop for Project {
    fn drop(&mut self) {
        let name = self.stand_in.name();
        for arguments in [["rm", "--force", &name], ["volume", "rm", &name]] {
            let _ = Command::new("docker").args(arguments).output();
        }
        let tags = Command::new("docker")
            .args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])
            .output();
        let tags = tags
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        let own = format!("{}/", self.stand_in.cluster);
        for tag in tags.lines().filter(|tag| tag.starts_with(&own)) {
            let _ = Command::new("docker").args(["rmi", tag]).output();
        }
    }
}

impl Project {
    /// Two components, one built on the other, and a manifest that uses both.
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let cluster = format!("images-dev-{name}-{}", std::process::id());
        let project = Self {
            folder,
            stand_in: StandIn { cluster, port },
            recorder: Arc::default(),
        };
        let registry = Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfiles/registry");
        for item in fs::read_dir(registry).unwrap() {
            let item = item.unwrap();
            project.write(
                &format!("Dockerfiles/registry/{}", item.file_name().display()),
                &fs::read(item.path()).unwrap(),
            );
        }
        // Enough bytes that a layer is asked for before it is sent, and none that compress to nothing.
        let mut seed = 88_172_645_463_325_252_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        };
        let big: Vec<u8> = (0..3_000_000).map(|_| random()).collect();
        project.write(
            "Dockerfiles/below/Dockerfile",
            b"FROM scratch\nCOPY big /big\n",
        );
        project.write("Dockerfiles/below/big", &big);
        project.write(
            "Dockerfiles/app/Dockerfile",
            b"FROM below\nCOPY small /small\n",
        );
        project.write("Dockerfiles/app/small", b"one\n");
        project.write(
            "Dockerfiles/other/Dockerfile",
            b"FROM below\nCOPY --from=below /big /again\n",
        );
        project.write(
            "Manifests/pod.yaml",
            b"kind: Pod\nspec:\n  containers:\n  - image: app # mine\n  - {image: 'other'}\n",
        );
        project
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(crate) fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn destination(&self) -> Destination {
        let stand_in = self.stand_in.clone();
        Destination::choose("docker.io", Some(&self.stand_in.cluster), false, stand_in).unwrap()
    }

    pub(crate) fn pipeline_with(&self, engine: Engine, refresh: bool) -> Pipeline {
        let destination = self.destination();
        assert!(
            destination.stand_in.is_some(),
            "these tests must not run with credentials for docker.io"
        );
        let settings = Settings {
            components: discover(&self.path("Dockerfiles"), &host_platform()).unwrap(),
            folder: self.path("Dockerfiles"),
            names: Vec::new(),
            manifests: vec![self.path("Manifests")],
            map: BTreeMap::new(),
            keep: Vec::new(),
            lock: self.path("images.lock"),
            cache: self.path("cache"),
            // Shared with real use: what debootstrap makes is the same for everybody.
            bases: orch::project::cache_directory().join("bases"),
            parallel_builds: 2,
            rehash: false,
            refresh,
            policy: Policy::default(),
            attest: orch::images::attest::Attest::default(),
        };
        Pipeline::new(settings, destination, engine, self.recorder.clone())
    }

    pub(crate) fn pipeline(&self) -> Pipeline {
        self.pipeline_with(Engine::default(), false)
    }

    /// A pipeline that fails as soon as it calls the engine.
    pub(crate) fn without_engine(&self) -> Pipeline {
        self.pipeline_with(Engine::new("/nonexistent/docker"), false)
    }

    pub(crate) async fn push(&self) -> Report {
        self.pipeline().push(true).await.unwrap()
    }

    pub(crate) fn client(&self) -> Arc<dyn Registry> {
        Arc::new(self.destination().client(&[], &Arc::default()).unwrap())
    }

    pub(crate) fn repository(&self, component: &str) -> String {
        format!("{}/{component}", self.stand_in.cluster)
    }
}

pub(crate) fn actions(steps: &[orch::images::plan::Step]) -> BTreeMap<&str, &Action> {
    steps
        .iter()
        .map(|step| (step.component.as_str(), &step.action))
        .collect()
}
