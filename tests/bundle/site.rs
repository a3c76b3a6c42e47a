//! A project whose images are in a registry of this process, and orch as it makes bundles of it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::images_fake::{FakeRegistry, digest};
use crate::images_project::{Project, said};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(crate) struct Site {
    pub(crate) registry: FakeRegistry,
    pub(crate) project: Project,
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

impl Site {
    /// With one stack, and K3s as a folder has it.
    pub(crate) async fn new() -> Self {
        let binary = match architecture() {
            "amd64" => "k3s",
            _ => "k3s-arm64",
        };
        let images = format!("k3s-airgap-images-{}.tar.zst", architecture());
        let sum = |text: &str| hex::encode(Sha256::digest(text));
        let sums = format!("{}  {binary}\n{}  {images}\n", sum("K3S"), sum("IMAGES"));
        let project = Project::new(&[
            (
                "orch.yaml",
                "name: one\nprovider: ssh\nnodes:\n  - {name: master, role: server, address: 192.0.2.10}\n\
                 k3s: {source: directory, directory: assets}\n\
                 stacks:\n  - {name: app, manifests: Manifests/app, namespace: app}\n",
            ),
            (&format!("assets/{binary}"), "K3S"),
            (&format!("assets/{images}"), "IMAGES"),
            (&format!("assets/sha256sum-{}.txt", architecture()), &sums),
            ("orch-provision", "PROVISIONER"),
        ]);
        Self {
            registry: FakeRegistry::start().await,
            project,
        }
    }

    /// Stores a blob and describes it.
    fn blob(&self, repository: &str, bytes: &[u8], media_type: &str) -> Value {
        let name = digest(bytes);
        let mut state = self.registry.state.lock().unwrap();
        state.blobs.insert(name.clone(), bytes.to_vec());
        let held = state.holds.entry(repository.to_owned()).or_default();
        held.insert(name.clone());
        json!({"mediaType": media_type, "digest": name, "size": bytes.len()})
    }

    fn manifest(&self, repository: &str, manifest: &Value) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let name = digest(&bytes);
        let description =
            json!({"mediaType": manifest["mediaType"], "digest": name, "size": bytes.len()});
        let mut state = self.registry.state.lock().unwrap();
        state
            .manifests
            .insert(format!("{repository}/{name}"), bytes);
        description
    }

    /// Stores an image of these layers; returns its description.
    pub(crate) fn image(&self, repository: &str, layers: &[&[u8]]) -> Value {
        let sums: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "os": "linux", "architecture": architecture(), "of": repository,
            "rootfs": {"type": "layers", "diff_ids": sums},
        });
        let config = self.blob(
            repository,
            config.to_string().as_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| self.blob(repository, layer, "application/vnd.oci.image.layer.v1.tar"))
            .collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.manifest(repository, &manifest)
    }

    /// Stores an index with this host's architecture and one that nobody has.
    pub(crate) fn index(&self, repository: &str, own: &Value, other: &Value) -> Value {
        let entry = |image: &Value, architecture: &str| {
            let mut entry = image.clone();
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        };
        let manifests = [entry(own, architecture()), entry(other, "mips")];
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.manifest(repository, &index)
    }

    /// A manifest of pods that run these images.
    pub(crate) fn pods(&self, file: &str, images: &[String]) {
        let pods = images.iter().enumerate().map(|(number, image)| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}-{number}\nspec:\n  containers:\n    - name: app\n      image: {image}\n",
                file.trim_end_matches(".yaml")
            )
        });
        let text: Vec<_> = pods.collect();
        self.project
            .write(&format!("Manifests/app/{file}"), &text.join("---\n"));
    }

    /// How manifests name an image.
    pub(crate) fn name(&self, repository: &str, tag: &str, image: &Value) -> String {
        let digest = image["digest"].as_str().unwrap();
        format!("{}/{repository}{tag}@{digest}", self.registry.address)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.project.orch(arguments);
        command.env(
            "ORCH_PROVISIONER",
            self.project.path().join("orch-provision"),
        );
        command
    }

    pub(crate) fn orch(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The result of a command that must succeed.
    pub(crate) fn done(&self, arguments: &[&str]) -> Value {
        let output = self.orch(&[&["--output", "json"], arguments].concat());
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    }

    /// What a command that must fail with this code said.
    pub(crate) fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.orch(arguments);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        said(&output)
    }

    pub(crate) fn create(&self, file: &str) -> Value {
        self.done(&["bundle", "create", "-o", file])
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.project.path().join(name)
    }
}

/// What is in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}
