//! `orch images gc` against the real registry, a real git repository, and what a cluster says it runs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod images_project;
mod images_registry;

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::Arc;

use bytes::Bytes;
use images_project::{Project, said};
use images_registry::RealRegistry;
use orch::images::engine::Engine;
use orch::images::gc::decide::{Roots, decide};
use orch::images::gc::inventory::{self, Known};
use orch::images::gc::sweep::sweep;
use orch::images::registry::http::{Endpoint, HttpRegistry};
use orch::images::registry::stand_in::StandIn;
use orch::images::registry::{Blob, BlobSource, RawManifest, Registry};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn tag(number: u8) -> String {
    format!("in-{number:012x}")
}

/// Gives the registry one more blob.
async fn upload(client: &HttpRegistry, repository: &str, content: Bytes) -> Blob {
    let blob = Blob {
        digest: digest(&content),
        size: content.len() as u64,
        source: BlobSource::Memory(content),
        progress: None,
    };
    let session = client.start_upload(repository).await.unwrap();
    client.finish_upload(&session, &blob, true).await.unwrap();
    blob
}

struct Bench {
    registry: RealRegistry,
    client: HttpRegistry,
    project: Project,
}

impl Bench {
    fn new() -> Self {
        Self::new_with(&[])
    }

    fn new_with(options: &[&str]) -> Self {
        let registry = RealRegistry::start_with(options);
        let endpoint = Endpoint::of(&registry.address, false).unwrap();
        let client = HttpRegistry::new(endpoint, None, [], Arc::default()).unwrap();
        let bench = Self {
            registry,
            client,
            project: Project::of_one_component(),
        };
        bench.git(&["init", "--quiet"]);
        bench
    }

    fn git(&self, arguments: &[&str]) {
        let output = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@b"])
            .args(["-c", "init.defaultBranch=main"])
            .args(arguments)
            .current_dir(self.project.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn commit(&self) {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", "x"]);
    }

    /// An image of one configuration, different for each `seed`.
    async fn image(&self, seed: u8, reference: &str) -> String {
        self.image_in("me/app", seed, reference).await
    }

    async fn image_in(&self, repository: &str, seed: u8, reference: &str) -> String {
        let config = Bytes::from(format!("{{\"seed\":{seed}}}"));
        let blob = upload(&self.client, repository, config).await;
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob.digest, "size": blob.size});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
        self.put(repository, MANIFEST, &manifest, reference).await
    }

    async fn index(&self, parts: &[&str], reference: &str) -> String {
        let mut manifests = Vec::new();
        for part in parts {
            let manifest = self
                .client
                .get_manifest("me/app", part)
                .await
                .unwrap()
                .unwrap();
            manifests.push(
                json!({"mediaType": MANIFEST, "digest": part, "size": manifest.bytes.len(),
                "platform": {"os": "linux", "architecture": "amd64"}}),
            );
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.put("me/app", INDEX, &index, reference).await
    }

    async fn put(
        &self,
        repository: &str,
        media_type: &str,
        manifest: &Value,
        reference: &str,
    ) -> String {
        let manifest = RawManifest {
            media_type: media_type.to_owned(),
            bytes: Bytes::from(serde_json::to_vec(manifest).unwrap()),
        };
        let named = if reference.is_empty() {
            manifest.digest()
        } else {
            reference.to_owned()
        };
        self.client
            .put_manifest(repository, &named, &manifest)
            .await
            .unwrap();
        manifest.digest()
    }

    async fn tags(&self) -> BTreeSet<String> {
        self.tags_in("me/app").await
    }

    async fn tags_in(&self, repository: &str) -> BTreeSet<String> {
        let tags = self.client.list_tags(repository).await.unwrap();
        tags.unwrap_or_default().into_iter().collect()
    }

    async fn has(&self, digest: &str) -> bool {
        let found = self.client.head_manifest("me/app", digest).await.unwrap();
        found.is_some()
    }

    fn gc(&self, arguments: &[&str]) -> Output {
        gc(&self.project, &self.registry.address, arguments)
    }
}

fn gc(project: &Project, registry: &str, arguments: &[&str]) -> Output {
    project
        .orch(&["images", "gc", "--registry", registry])
        .args(["--namespace", "me"])
        .args(arguments)
        // Where no commit takes it along.
        .env("ORCH_CACHE", project.path().join(".git/cache"))
        .output()
        .unwrap()
}

/// As much of an API server as listing needs: one pod that runs `image`, in every list.
async fn api_server(image: String) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let body = json!({"items": [{"spec": {"containers": [{"image": image}]}}]}).to_string();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream
                    .read_line(&mut line)
                    .await
                    .is_ok_and(|count| count > 0)
                {
                    if line.trim().is_empty() {
                        let head = format!(
                            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        stream.write_all(head.as_bytes()).await.unwrap();
                    }
                    line.clear();
                }
            });
        }
    });
    address
}

fn kubeconfig(address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: 'http://{address}'}}}}]\n\
         users: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_unreachable_goes_and_nothing_before_it_is_asked_for() {
    let bench = Bench::new();
    let pinned = bench.image(1, &tag(1)).await;
    bench.image(2, &tag(2)).await;
    let old = bench.image(3, &tag(3)).await;
    let latest = bench.image(4, &tag(4)).await;
    bench.image(4, "latest").await;
    let part = bench.image(5, &tag(5)).await;
    let index = bench.index(&[&part], "").await;
    let signed = bench.image(6, &tag(6)).await;
    let signature = format!("{}.sig", signed.replace(':', "-"));
    let signature_digest = bench.image(7, &signature).await;
    let running = bench.image(8, &tag(8)).await;
    bench.image(9, &tag(9)).await;
    bench.image(10, "v1").await;
    let old_part = bench.image(11, "").await;
    let old_index = bench.index(&[&old_part, &part], &tag(12)).await;

    bench.project.write(
        "Manifests/pod.yaml",
        &format!("image: me/app@{pinned}\n---\nimage: me/app@{index}\n"),
    );
    bench.commit();
    bench.git(&["checkout", "--quiet", "-b", "other"]);
    bench
        .project
        .write("chart/values.txt", &format!("tag: {}\n", tag(2)));
    bench.commit();
    bench.git(&["checkout", "--quiet", "main"]);
    let cluster = api_server(format!("me/app@{running}")).await;
    let cluster = bench.project.write(".git/cluster", &kubeconfig(&cluster));
    let asked = [
        "--kubeconfig",
        cluster.to_str().unwrap(),
        "--protect",
        &tag(9),
    ];

    let before = bench.tags().await;
    assert_eq!(before.len(), 12, "{before:?}");
    let plan = bench.gc(&[&asked[..], &["--output", "json"]].concat());
    assert!(plan.status.success(), "{}", said(&plan));
    assert_eq!(bench.tags().await, before, "a plan deletes nothing");
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["dry_run"], true);
    let listed: BTreeSet<&str> = plan["repositories"][0]["deleted"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["digest"].as_str().unwrap())
        .collect();
    let expected = [&old, &signed, &signature_digest, &old_index, &old_part];
    assert_eq!(listed, expected.into_iter().map(String::as_str).collect());

    let deleted = bench.gc(&[&asked[..], &["--delete"]].concat());
    assert!(deleted.status.success(), "{}", said(&deleted));
    let gone: BTreeSet<String> = before.difference(&bench.tags().await).cloned().collect();
    assert_eq!(gone, BTreeSet::from([tag(3), tag(6), tag(12), signature]));
    for digest in [&pinned, &latest, &part, &index, &running] {
        assert!(bench.has(digest).await, "{digest} is needed");
    }
    for digest in expected {
        assert!(!bench.has(digest).await, "{digest} was to go");
    }
    let again = bench.gc(&[&asked[..], &["--delete"]].concat());
    assert!(
        said(&again).contains("deleted 0 images"),
        "{}",
        said(&again)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_comes_after_the_plan_protects_an_image_that_was_to_go() {
    let bench = Bench::new();
    let named_again = bench.image(1, &tag(1)).await;
    let old = bench.image(2, &tag(2)).await;
    let (roots, mut known) = (Roots::default(), Known::default());
    let read = inventory::read(&bench.client, "me/app", &roots, &mut known).await;
    let plan = decide(&read.unwrap().unwrap(), &roots);
    assert_eq!(plan.deleted.len(), 2, "{plan:?}");
    bench.image(1, &tag(3)).await;
    let swept = sweep(&bench.client, "me/app", &plan, &roots, &mut known);
    assert_eq!(swept.await.unwrap().deleted.len(), 1);
    assert_eq!(bench.tags().await, BTreeSet::from([tag(1), tag(3)]));
    assert!(bench.has(&named_again).await);
    assert!(!bench.has(&old).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kustomize_helm_and_ignored_files_name_keeps_its_parts_and_signatures() {
    let bench = Bench::new();
    let mut indexes = Vec::new();
    for number in [1, 2, 3] {
        let part = bench.image(number, &tag(number)).await;
        indexes.push(bench.index(&[&part], "").await);
    }
    let signature = format!("{}.sig", indexes[0].replace(':', "-"));
    bench.image(4, &signature).await;
    bench.image(5, &tag(5)).await;
    bench.image(6, &tag(6)).await;
    bench.project.write(
        "deploy/kustomization.yaml",
        &format!(
            "images:\n- name: app\n  newName: me/app\n  digest: {}\n",
            indexes[0]
        ),
    );
    bench.project.write(
        "deploy/values.yaml",
        &format!("web: {{image: {{digest: '{}'}}}}\n", indexes[1]),
    );
    bench.project.write(".gitignore", "rendered\n");
    bench.commit();
    let all = [
        format!("{{\"spec\": {{\"digest\":\"{}\"}}}}\n", indexes[2]),
        format!("image: me/app:{}\n", tag(5)),
        format!("building me/app:{}\n", tag(6)),
    ];
    bench.project.write("rendered/pod.json", &all[0]);
    bench.project.write("rendered/deep/pod.yml", &all[1]);
    bench.project.write("rendered/build.log", &all[2]);
    let before = bench.tags().await;
    let deleted = bench.gc(&["--delete", "--no-cluster"]);
    assert!(deleted.status.success(), "{}", said(&deleted));
    let gone: BTreeSet<String> = before.difference(&bench.tags().await).cloned().collect();
    assert_eq!(gone, BTreeSet::from([tag(6)]), "{}", said(&deleted));
    for index in indexes {
        assert!(bench.has(&index).await, "{index} is needed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_is_gone_is_found_by_an_earlier_lock_and_others_images_stay() {
    let bench = Bench::new();
    for number in [1, 2, 3] {
        bench.image_in("me/old", number, &tag(number)).await;
    }
    bench.image_in("other/old", 1, &tag(1)).await;
    let address = &bench.registry.address;
    let lock = |repository: &str, number: u8| {
        let entry = json!({"repository": format!("{address}/{repository}"), "tag": tag(number),
            "digest": "sha256:0", "input": "sha256:0"});
        let lock = json!({"version": 1, "components": {"old": entry}});
        bench.project.write("images.lock", &lock.to_string());
        bench.commit();
    };
    lock("other/old", 1);
    lock("me/old", 1);
    lock("me/old", 2);
    bench.project.write("images.lock", "{\"version\": 1}");
    bench
        .project
        .write("keep/pod.yaml", &format!("image: me/old:{}\n", tag(2)));
    bench.commit();

    let plan = bench.gc(&["--output", "json"]);
    assert!(plan.status.success(), "{}", said(&plan));
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    let [old] = plan["repositories"].as_array().unwrap().as_slice() else {
        panic!("{plan}");
    };
    assert_eq!(old["repository"], format!("{address}/me/old"));
    assert_eq!(old["former"], true);
    assert_eq!(old["deleted"][0]["tags"], json!([tag(1)]));
    assert_eq!(bench.tags_in("me/old").await.len(), 3);

    let deleted = bench.gc(&["--delete", "--no-cluster"]);
    let text = said(&deleted);
    assert!(deleted.status.success(), "{text}");
    assert!(
        text.contains("/me/old: no component has this name any more\n"),
        "{text}"
    );
    assert_eq!(
        bench.tags_in("me/old").await,
        BTreeSet::from([tag(2), tag(3)])
    );
    assert_eq!(bench.tags_in("other/old").await.len(), 1);
    let blind = bench.gc(&["--no-git"]);
    assert!(!said(&blind).contains("/me/old"), "{}", said(&blind));
}

#[test]
fn what_cannot_be_known_is_refused_before_anything_is_asked() {
    let project = Project::of_one_component();
    // Nobody listens there: an answer other than these would be exit 7.
    let nobody = "127.0.0.1:1";
    let output = gc(&project, nobody, &["--delete", "--no-cluster"]);
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("--no-git"), "{}", said(&output));

    let output = gc(&project, nobody, &["--no-git", "--delete"]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    assert!(said(&output).contains("--kubeconfig"), "{}", said(&output));

    let cluster = project.write("cluster", &kubeconfig("127.0.0.1:1"));
    let silent = ["--no-git", "--kubeconfig", cluster.to_str().unwrap()];
    let output = gc(&project, nobody, &silent);
    assert_eq!(output.status.code(), Some(8), "{}", said(&output));
    assert!(said(&output).contains("--no-cluster"), "{}", said(&output));

    let output = gc(&project, nobody, &["--no-git", "--protect", "latest"]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_deletes_nothing_is_named_with_a_way_out() {
    let bench = Bench::new_with(&["--env", "REGISTRY_STORAGE_DELETE_ENABLED=false"]);
    bench.image(1, &tag(1)).await;
    bench.project.write("README", "nothing");
    bench.commit();
    let output = bench.gc(&["--delete", "--no-cluster"]);
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(
        said(&output).contains("storage.delete.enabled"),
        "{}",
        said(&output)
    );
    assert_eq!(bench.tags().await.len(), 1);
}

/// The local registry's container and volume, which go when this is dropped.
struct Local(StandIn);

impl Drop for Local {
    fn drop(&mut self) {
        let name = self.0.name();
        for arguments in [["rm", "--force", &name], ["volume", "rm", &name]] {
            let _ = Command::new("docker").args(arguments).output();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_registry_frees_what_nothing_names_and_comes_back() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let local = Local(StandIn {
        cluster: format!("images-gc-{}", std::process::id()),
        port,
    });
    let endpoint = Endpoint::of(&local.0.host(), true).unwrap();
    let client = HttpRegistry::new(endpoint, None, [], Arc::default()).unwrap();
    let (engine, image) = (Engine::default(), images_registry::image());
    local.0.create(&engine, &image, &client).await.unwrap();
    let mut blobs = Vec::new();
    for content in ["{\"a\":1}", "{\"b\":2}"] {
        let blob = upload(&client, "me/app", Bytes::from(content)).await;
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob.digest, "size": blob.size});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []});
        let manifest = RawManifest {
            media_type: MANIFEST.to_owned(),
            bytes: Bytes::from(serde_json::to_vec(&manifest).unwrap()),
        };
        client
            .put_manifest("me/app", &manifest.digest(), &manifest)
            .await
            .unwrap();
        blobs.push((blob.digest, manifest.digest()));
    }
    assert!(client.delete_manifest("me/app", &blobs[0].1).await.unwrap());
    assert!(!client.delete_manifest("me/app", &blobs[0].1).await.unwrap());
    assert!(client.head_blob("me/app", &blobs[0].0).await.unwrap());
    local.0.collect_garbage(&engine, &client).await.unwrap();
    assert!(!client.head_blob("me/app", &blobs[0].0).await.unwrap());
    assert!(client.head_blob("me/app", &blobs[1].0).await.unwrap());
    let kept = client.head_manifest("me/app", &blobs[1].1).await.unwrap();
    assert_eq!(kept.as_ref(), Some(&blobs[1].1));
}
