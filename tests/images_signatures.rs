//! Signatures at a registry that others may write to as well: what it costs to look at them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod images_fake;

use std::process::Command;
use std::sync::Arc;

use images_fake::FakeRegistry;
use orch::images::attest::key::{KeyFile, PrivateKey};
use orch::images::attest::signature;
use orch::images::attest::store::Store;
use orch::images::event::Recorder;
use orch::images::registry::Descriptor;
use orch::images::registry::http::{Endpoint, HttpRegistry};
use orch::images::registry::retry::Policy;

fn key() -> PrivateKey {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-out"])
        .arg(&path)
        .output();
    assert!(made.unwrap().status.success());
    let password_file = None;
    KeyFile {
        path,
        password_file,
    }
    .open()
    .unwrap()
}

/// Puts an image of signatures with these layers beside the image with `digest`, and asks whether `key` signed that.
async fn verified(layers: &[Descriptor], key: &PrivateKey) -> (FakeRegistry, Result<bool, String>) {
    let registry = FakeRegistry::start().await;
    let digest = images_fake::digest(b"image");
    {
        let mut state = registry.state.lock().unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "config": {"mediaType": "x", "digest": images_fake::digest(b""), "size": 0},
            "layers": layers,
        });
        let place = format!("me/app/{}", signature::tag(&digest));
        state.manifests.insert(place, manifest.to_string().into());
        let payload = signature::sign(key, "me/app", &digest).unwrap().payload;
        let name = images_fake::digest(&payload);
        state
            .holds
            .entry("me/app".to_owned())
            .or_default()
            .insert(name.clone());
        state.blobs.insert(name, payload.to_vec());
    }
    let endpoint = Endpoint::of(&registry.address, false).unwrap();
    let client = HttpRegistry::new(endpoint, None, [], Arc::default()).unwrap();
    let store = Store {
        registry: &client,
        repository: "me/app".to_owned(),
        policy: Policy::default(),
        reporter: &Recorder::default(),
    };
    let found = store.verify(&digest, &key.public()).await;
    let found = found
        .map(|found| found.unwrap())
        .map_err(|error| error.to_string());
    (registry, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_of_others_cost_no_more_than_they_have_to() {
    let (mine, theirs) = (key(), key());
    let layer = |key: &PrivateKey| {
        signature::layer(&signature::sign(key, "me/app", &images_fake::digest(b"image")).unwrap())
    };
    let others = vec![layer(&theirs); 999];
    let all = [others.as_slice(), &[layer(&mine)]].concat();
    let (registry, found) = verified(&all, &mine).await;
    assert_eq!(found, Ok(true));
    assert_eq!(registry.count("GET /v2/me/app/blobs/"), 1);
    assert_eq!(verified(&others, &mine).await.1, Ok(false));
    let large = Descriptor {
        size: u64::MAX,
        ..layer(&theirs)
    };
    let elsewhere = Descriptor {
        digest: "../../other/blobs/x".to_owned(),
        ..layer(&theirs)
    };
    let many = [all.as_slice(), &[layer(&mine)]].concat();
    for (layers, word) in [
        (vec![large], "more than 1048576 bytes"),
        (vec![elsewhere], "no digest"),
        (many, "no more than 1000 signatures"),
    ] {
        let (registry, found) = verified(&layers, &mine).await;
        let error = found.unwrap_err();
        assert!(error.contains(word), "{error}");
        assert_eq!(registry.count("GET /v2/me/app/blobs/"), 0);
    }
}
