//! Pushing against a registry that fails on demand: what is sent again, what is not, and what comes of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod images_fake;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use images_fake::{FakeRegistry, FaultKind, digest};
use orch::images::event::{ImageEvent, Recorder, Reporter};
use orch::images::layers::{Image, Layer, LayerStore};
use orch::images::push::{Knowledge, Pusher};
use orch::images::registry::credentials::Credential;
use orch::images::registry::http::{Endpoint, HttpRegistry};
use orch::images::registry::limit::Limited;
use orch::images::registry::meter::Meter;
use orch::images::registry::retry::{Policy, Retrying};
use orch::images::registry::upload::PIECE;
use orch::images::registry::{Registry, RegistryError};
use zeroize::Zeroizing;

struct Bench {
    registry: FakeRegistry,
    cache: tempfile::TempDir,
    recorder: Arc<Recorder>,
    meter: Arc<Meter>,
}

const QUICK: Policy = Policy {
    attempts: 4,
    base: Duration::from_millis(1),
    longest: Duration::from_secs(5),
};

impl Bench {
    async fn new() -> Self {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join("blobs")).unwrap();
        Self {
            registry: FakeRegistry::start().await,
            cache,
            recorder: Arc::default(),
            meter: Arc::default(),
        }
    }

    fn client(&self, credential: Option<Credential>) -> HttpRegistry {
        let endpoint = Endpoint::of(&self.registry.address, false).unwrap();
        let repositories = ["me/app", "me/other"].map(str::to_owned);
        HttpRegistry::new(endpoint, credential, repositories, Arc::clone(&self.meter)).unwrap()
    }

    fn pusher(&self, credential: Option<Credential>) -> Pusher {
        let reporter: Arc<dyn Reporter> = self.recorder.clone();
        let limited = Limited::new(self.client(credential), 8);
        Pusher {
            registry: Arc::new(Retrying::new(limited, QUICK, Arc::clone(&reporter))),
            knowledge: Knowledge::load(self.cache.path(), &self.registry.address),
            store: LayerStore::new(self.cache.path()),
            policy: QUICK,
            reporter,
        }
    }

    /// An image whose layers have these sizes; `seed` makes their bytes differ.
    fn image(&self, seed: u8, sizes: &[usize]) -> Image {
        let layers = sizes.iter().enumerate().map(|(index, size)| {
            let bytes: Vec<u8> = (0..*size)
                .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed + index as u8))
                .collect();
            let digest = digest(&bytes);
            fs::write(LayerStore::new(self.cache.path()).blob(&digest), &bytes).unwrap();
            Layer {
                digest,
                size: bytes.len() as u64,
            }
        });
        let layers = layers.collect();
        Image {
            config: Bytes::from(format!("{{\"seed\":{seed}}}")),
            layers,
        }
    }

    fn check_complete(&self, repository: &str, tag: &str, image: &Image) {
        let state = self.registry.state.lock().unwrap();
        assert_eq!(
            digest(&state.manifests[&format!("{repository}/{tag}")]),
            image.manifest().unwrap().digest()
        );
        for layer in &image.layers {
            assert_eq!(state.blobs[&layer.digest].len() as u64, layer.size);
        }
    }
}

fn password() -> Option<Credential> {
    Some(Credential::Password {
        username: "me".to_owned(),
        secret: Zeroizing::new("hush-hush".to_owned()),
    })
}

#[tokio::test]
async fn a_first_push_asks_nothing_it_can_know() {
    let bench = Bench::new().await;
    let image = bench.image(1, &[100]);
    let pushed = bench
        .pusher(None)
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    bench.check_complete("me/app", "in-1", &image);
    assert_eq!((pushed.sent, pushed.reused), (2, 0));
    let mut log = bench.registry.log();
    log.iter_mut()
        .for_each(|line| *line = line.split(' ').next().unwrap().to_owned());
    log.sort();
    // Layer and configuration POST + PUT, the tag HEAD, the manifest PUT.
    assert_eq!(log, ["HEAD", "POST", "POST", "PUT", "PUT", "PUT"]);
    let manifest = image.manifest().unwrap().bytes.len() as u64;
    assert_eq!(
        bench.meter.bytes_sent(),
        100 + image.config.len() as u64 + manifest
    );
    assert_eq!(bench.meter.requests(), 6);
}

#[tokio::test]
async fn a_one_layer_change_sends_that_layer() {
    let bench = Bench::new().await;
    let pusher = bench.pusher(None);
    let first = bench.image(1, &[5000, 100]);
    pusher
        .push("app", "me/app", "in-1", &first, None)
        .await
        .unwrap();
    pusher.knowledge.save();
    let before = bench.meter.requests();
    let mut second = bench.image(7, &[100]);
    second.layers.insert(0, first.layers[0].clone());
    let pushed = bench
        .pusher(None)
        .push("app", "me/app", "in-2", &second, None)
        .await
        .unwrap();
    bench.check_complete("me/app", "in-2", &second);
    assert_eq!((pushed.sent, pushed.reused), (2, 1));
    assert_eq!(bench.meter.requests() - before, 6);
}

#[tokio::test]
async fn a_shared_layer_travels_once_and_is_mounted() {
    let bench = Bench::new().await;
    let pusher = bench.pusher(None);
    let image = bench.image(1, &[5000]);
    let mut other = bench.image(2, &[10]);
    other.layers.insert(0, image.layers[0].clone());
    let (first, second) = tokio::join!(
        pusher.push("app", "me/app", "in-1", &image, None),
        pusher.push("other", "me/other", "in-2", &other, None)
    );
    assert_eq!(first.unwrap().sent + second.unwrap().sent, 4);
    bench.check_complete("me/app", "in-1", &image);
    bench.check_complete("me/other", "in-2", &other);
    let state = bench.registry.state.lock().unwrap();
    assert_eq!(
        state
            .log
            .iter()
            .filter(|line| line.starts_with("PUT") && line.contains("/blobs/"))
            .count(),
        4
    );
}

#[tokio::test]
async fn a_refused_mount_goes_on_as_an_upload() {
    let bench = Bench::new().await;
    let pusher = bench.pusher(None);
    let image = bench.image(1, &[5000]);
    pusher
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    bench.registry.state.lock().unwrap().holds.clear();
    let pushed = pusher
        .push("other", "me/other", "in-1", &image, None)
        .await
        .unwrap();
    assert_eq!(pushed.sent, 2);
    assert_eq!(bench.registry.count("POST /v2/me/other/"), 2);
}

#[tokio::test]
async fn a_mount_from_a_repository_of_an_earlier_run_asks_for_a_token_that_reads_it() {
    let bench = Bench::new().await;
    let nobody = "nobody has this".to_owned();
    bench.registry.state.lock().unwrap().tokens.insert(nobody);
    let image = bench.image(1, &[5000]);
    let earlier = bench.pusher(password());
    earlier
        .push("gone", "me/gone", "in-1", &image, None)
        .await
        .unwrap();
    earlier.knowledge.save();
    let pushed = bench
        .pusher(password())
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    assert_eq!((pushed.sent, pushed.reused), (0, 2));
}

#[tokio::test]
async fn a_mount_that_is_not_allowed_goes_on_as_an_upload() {
    // The layer and the configuration are refused both, a 401 each time with a fresh token as well.
    for (times, status) in [(4, 401), (2, 403), (2, 404)] {
        let bench = Bench::new().await;
        let pusher = bench.pusher(password());
        let image = bench.image(1, &[5000]);
        pusher
            .push("app", "me/app", "in-1", &image, None)
            .await
            .unwrap();
        for _ in 0..times {
            let challenge = "WWW-Authenticate: Basic\r\n";
            bench
                .registry
                .fail("POST", "mount=", FaultKind::Status(status, challenge));
        }
        let pushed = pusher
            .push("other", "me/other", "in-1", &image, None)
            .await
            .unwrap();
        assert_eq!(pushed.sent, 2, "{status}");
        bench.check_complete("me/other", "in-1", &image);
    }
}

#[tokio::test]
async fn nothing_is_mounted_from_another_namespace() {
    let bench = Bench::new().await;
    let pusher = bench.pusher(None);
    let image = bench.image(1, &[5000]);
    pusher
        .push("app", "they/app", "in-1", &image, None)
        .await
        .unwrap();
    let pushed = pusher
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    assert_eq!(pushed.sent, 2);
}

#[tokio::test]
async fn a_registry_that_was_emptied_gets_everything_again() {
    let bench = Bench::new().await;
    let pusher = bench.pusher(None);
    let image = bench.image(1, &[5000, 10]);
    pusher
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    {
        let mut state = bench.registry.state.lock().unwrap();
        state.holds.clear();
        state.blobs.clear();
        state.manifests.clear();
    }
    let pushed = pusher
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    assert_eq!(pushed.sent, 3);
    bench.check_complete("me/app", "in-1", &image);
}

#[tokio::test]
async fn busy_and_broken_answers_are_waited_out() {
    let bench = Bench::new().await;
    let image = bench.image(1, &[100]);
    bench.registry.fail(
        "POST",
        "/uploads/",
        FaultKind::Status(429, "Retry-After: 1\r\n"),
    );
    bench
        .registry
        .fail("HEAD", "/manifests/", FaultKind::Status(503, ""));
    bench
        .registry
        .fail("PUT", "/manifests/", FaultKind::Status(500, ""));
    bench
        .registry
        .fail("HEAD", "/manifests/", FaultKind::Cut(0));
    bench
        .pusher(None)
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    bench.check_complete("me/app", "in-1", &image);
    let pauses: Vec<f64> = bench
        .recorder
        .events()
        .iter()
        .filter_map(|event| match event {
            ImageEvent::Retrying { seconds, .. } => Some(*seconds),
            _ => None,
        })
        .collect();
    assert_eq!(pauses.len(), 4);
    assert_eq!(
        pauses.iter().filter(|seconds| **seconds >= 1.0).count(),
        1,
        "{pauses:?}"
    );
}

#[tokio::test]
async fn an_interrupted_upload_goes_on_where_it_stopped() {
    let bench = Bench::new().await;
    let size = usize::try_from(PIECE).unwrap() + 1000;
    let image = bench.image(1, &[size]);
    bench
        .registry
        .fail("PATCH", "/uploads/", FaultKind::Cut(1_000_000));
    bench
        .pusher(None)
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    bench.check_complete("me/app", "in-1", &image);
    assert_eq!(
        bench.registry.count("POST /v2/me/app/blobs/uploads/"),
        2,
        "the upload was not started anew"
    );
    // Sent anew it would take three: two pieces after the one that was cut.
    assert_eq!(bench.registry.count("PATCH"), 2);
}

#[tokio::test]
async fn an_upload_that_cannot_be_resumed_starts_anew() {
    // The CNCF registry's answers for a session whose state is not what was stored: version 2, version 3.
    for status in [404, 416] {
        let bench = Bench::new().await;
        let size = usize::try_from(PIECE).unwrap() + 1000;
        let image = bench.image(1, &[size]);
        let registry = &bench.registry;
        registry.fail("PATCH", "/uploads/", FaultKind::Cut(1_000_000));
        registry.fail("GET", "/uploads/", FaultKind::Status(status, ""));
        let pushed = bench
            .pusher(None)
            .push("app", "me/app", "in-1", &image, None)
            .await;
        assert!(pushed.is_ok(), "{status}: {pushed:?}");
        bench.check_complete("me/app", "in-1", &image);
        assert_eq!(registry.count("POST /v2/me/app/blobs/uploads/"), 3);
    }
}

#[tokio::test]
async fn patience_starts_again_with_every_piece_that_arrived() {
    let bench = Bench::new().await;
    let pieces = 3;
    let size = usize::try_from(PIECE).unwrap() * pieces;
    let image = bench.image(1, &[size]);
    // Every piece needs two attempts or more, the whole blob more than the policy has for one.
    let attempts = usize::try_from(QUICK.attempts).unwrap();
    for nth in 0..pieces {
        let after = nth * usize::try_from(PIECE).unwrap();
        for _ in 0..attempts - 2 {
            bench
                .registry
                .fail("PATCH", "/uploads/", FaultKind::After(after, 502));
        }
    }
    bench
        .pusher(None)
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    bench.check_complete("me/app", "in-1", &image);
    assert_eq!(
        bench.registry.count("PATCH"),
        pieces + pieces * (attempts - 2)
    );
}

#[tokio::test]
async fn a_cut_in_a_small_upload_is_mended_as_well() {
    let bench = Bench::new().await;
    let image = bench.image(1, &[200_000]);
    bench
        .registry
        .fail("PUT", "/uploads/", FaultKind::Cut(1234));
    bench
        .registry
        .fail("PUT", "/uploads/", FaultKind::LoseAnswer);
    bench
        .pusher(None)
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    bench.check_complete("me/app", "in-1", &image);
}

#[tokio::test]
async fn the_first_of_two_pushes_wins_and_the_second_takes_it_over() {
    let bench = Bench::new().await;
    let (mine, theirs) = (bench.image(1, &[100]), bench.image(2, &[100]));
    let pusher = bench.pusher(None);
    pusher
        .push("app", "me/app", "in-x", &theirs, None)
        .await
        .unwrap();
    let manifest = theirs.manifest().unwrap();
    bench.registry.state.lock().unwrap().manifests.clear();
    let overtake = FaultKind::Overtake {
        repository: "me/app".to_owned(),
        tag: "in-1".to_owned(),
        manifest: manifest.bytes.to_vec(),
    };
    bench.registry.fail("PUT", "/uploads/", overtake);
    let pushed = pusher
        .push("app", "me/app", "in-1", &mine, None)
        .await
        .unwrap();
    assert_eq!(pushed.digest, manifest.digest());
    assert!(pushed.theirs);
    assert_eq!(bench.registry.count("PUT /v2/me/app/manifests/in-1"), 0);
}

#[tokio::test]
async fn a_tag_that_somebody_else_gave_meanwhile_is_taken_over_and_not_moved() {
    let bench = Bench::new().await;
    let pusher = bench.pusher(None);
    let mine = bench.image(1, &[100]);
    let theirs = bench.image(2, &[100]);
    let mine = pusher.push("app", "me/app", "in-x", &mine, None).await;
    let theirs = pusher.push("app", "me/app", "in-1", &theirs, None).await;
    let (mine, theirs) = (mine.unwrap(), theirs.unwrap());
    let taken = pusher.retag("me/app", &mine.digest, "in-1").await.unwrap();
    assert_eq!((taken.digest, taken.theirs), (theirs.digest, true));
    let given = pusher.retag("me/app", &mine.digest, "in-2").await.unwrap();
    assert_eq!((given.digest, given.theirs), (mine.digest, false));
    assert_eq!(bench.registry.count("PUT /v2/me/app/manifests/in-1"), 1);
    assert_eq!(bench.registry.count("PUT /v2/me/app/manifests/in-2"), 1);
}

#[tokio::test]
async fn one_token_serves_all_repositories_and_a_new_one_replaces_an_expired_one() {
    let bench = Bench::new().await;
    bench
        .registry
        .state
        .lock()
        .unwrap()
        .tokens
        .insert("nobody has this".to_owned());
    let pusher = bench.pusher(password());
    let image = bench.image(1, &[100]);
    let heads =
        ["me/app", "me/other"].map(|repository| pusher.registry.head_manifest(repository, "in-1"));
    futures::future::try_join_all(heads).await.unwrap();
    assert_eq!(bench.registry.count("GET /token"), 1);
    bench
        .registry
        .state
        .lock()
        .unwrap()
        .tokens
        .retain(|token| !token.starts_with("Bearer"));
    pusher
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap();
    bench.check_complete("me/app", "in-1", &image);
    assert!(bench.registry.count("GET /token") >= 2);
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_shows_no_secret() {
    let bench = Bench::new().await;
    bench
        .registry
        .state
        .lock()
        .unwrap()
        .tokens
        .insert("nobody has this".to_owned());
    let error = bench
        .pusher(None)
        .registry
        .head_manifest("me/app", "in-1")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("docker login"), "{error}");
    for _ in 0..8 {
        bench
            .registry
            .fail("GET", "/token", FaultKind::Status(401, ""));
    }
    let error = bench
        .pusher(password())
        .registry
        .head_manifest("me/app", "in-1")
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("hush"), "{error:?}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let endpoint = Endpoint::of("127.0.0.1:1", false).unwrap();
    let client = HttpRegistry::new(endpoint, None, [], Arc::default()).unwrap();
    let error = client.head_manifest("me/app", "in-1").await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let bench = Bench::new().await;
    let wanted = digest(b"something");
    bench
        .registry
        .state
        .lock()
        .unwrap()
        .manifests
        .insert(format!("me/app/{wanted}"), b"something else".to_vec());
    let error = bench
        .client(None)
        .get_manifest("me/app", &wanted)
        .await
        .unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_damaged_layer_in_the_cache_is_not_sent() {
    let bench = Bench::new().await;
    let image = bench.image(1, &[100]);
    let path = LayerStore::new(bench.cache.path()).blob(&image.layers[0].digest);
    fs::write(&path, "short").unwrap();
    let error = bench
        .pusher(None)
        .push("app", "me/app", "in-1", &image, None)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(Path::new(&path).to_str().unwrap()),
        "{error}"
    );
    assert_eq!(bench.registry.count("PUT /v2/me/app/manifests/"), 0);
}
