//! Uploads to a registry that is slow and to one that is stuck.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::images::registry::{Blob, BlobSource, RawManifest, Registry};

const SILENCE: Duration = Duration::from_secs(1);
/// More than what the kernel takes on its own, in bytes.
const BODY: usize = 96 * 1024 * 1024;

/// Sends a blob to a registry that takes `piece` bytes every 50 ms.
async fn send(piece: usize) -> Result<(), RegistryError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; piece.max(1)];
        let mut left = BODY;
        while left > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if piece > 0 {
                left = left.saturating_sub(stream.read_exact(&mut buffer).await.unwrap());
            }
        }
        let answer = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let _ = stream.read_to_end(&mut buffer).await;
    });
    let endpoint = Endpoint::of(&address, false).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(BODY as u64)
        .unwrap();
    let session = Session {
        location: endpoint.url.join("v2/me/app/blobs/uploads/1").unwrap(),
        repository: "me/app".to_owned(),
    };
    let registry = HttpRegistry::with_silence(endpoint, None, [], Arc::default(), SILENCE).unwrap();
    let blob = Blob {
        source: BlobSource::File(path),
        digest: "sha256:0".to_owned(),
        size: BODY as u64,
        progress: None,
    };
    registry.finish_upload(&session, &blob, true).await
}

#[tokio::test]
async fn a_body_may_take_as_long_as_it_moves() {
    let started = std::time::Instant::now();
    send(BODY / 48).await.unwrap();
    assert!(started.elapsed() > SILENCE * 2);
}

#[tokio::test]
async fn a_registry_that_takes_nothing_is_given_up() {
    let error = send(0).await.unwrap_err();
    assert!(matches!(error, RegistryError::Silent { .. }), "{error:?}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_change_that_is_sent_on_is_not_done() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let location = address.replace("127.0.0.1", "http://localhost");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            // Where a GET would succeed.
            let status = if buffer[..count].starts_with(b"GET") {
                "200 OK".to_owned()
            } else {
                format!("303 See Other\r\nLocation: {location}/?secret")
            };
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let endpoint = Endpoint::of(&address, false).unwrap();
    let registry = HttpRegistry::new(endpoint, None, [], Arc::default()).unwrap();
    let digest = crate::images::hash::Sha256Digest::of(b"").to_string();
    let manifest = RawManifest {
        media_type: "application/json".to_owned(),
        bytes: Bytes::from_static(b"{}"),
    };
    let errors = [
        registry.delete_manifest("me/app", &digest).await.err(),
        registry.put_manifest("me/app", "1", &manifest).await.err(),
        registry.start_upload("me/app").await.err(),
    ];
    for error in errors {
        let text = error.unwrap().to_string();
        assert!(text.contains("303 and sends us on to localhost:"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

/// A registry that gives the `n`th connection, from 0, what `answer` makes of it: status and header lines, and a body.
async fn answering(
    answer: impl Fn(usize) -> (String, &'static str) + Send + 'static,
) -> (HttpRegistry, Arc<Meter>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let meter = Arc::<Meter>::default();
    tokio::spawn(async move {
        for count in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let (head, body) = answer(count);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let endpoint = Endpoint::of(&address, false).unwrap();
    let registry = HttpRegistry::new(endpoint, None, [], Arc::clone(&meter)).unwrap();
    (registry, meter)
}

const TAGS: &str = r#"{"tags": ["again"]}"#;

/// Asks a registry that answers every request with one more tag and a link to another page.
async fn endless_list(limits: page::Limits) -> (RegistryError, u64) {
    let (registry, meter) = answering(|count| {
        let head = format!("200 OK\r\nLink: <list?after={count}>; rel=next");
        (head, TAGS)
    })
    .await;
    let list = page::List {
        operation: "listing",
        repository: "me/app",
        url: registry.url("me/app", "tags/list").unwrap(),
        accept: "application/json",
        absent: &[404],
        optional: false,
    };
    let found = registry.pages::<serde_json::Value>(list, limits).await;
    (found.unwrap_err(), meter.requests())
}

#[tokio::test]
async fn a_list_without_end_is_given_up() {
    let limits = page::Limits {
        pages: 7,
        bytes: 1000,
    };
    let (error, requests) = endless_list(limits).await;
    assert!(error.to_string().contains("more than 7 pages"), "{error}");
    assert_eq!(requests, 7);
    let limits = page::Limits {
        pages: 1000,
        bytes: 40,
    };
    let (error, requests) = endless_list(limits).await;
    assert!(error.to_string().contains("more than 40 bytes"), "{error}");
    assert_eq!(requests, 3);
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_page_that_comes_again_ends_the_list_at_once() {
    let (registry, meter) = answering(|count| {
        let head = format!("200 OK\r\nLink: <list?after={}>; rel=next", count % 2);
        (head, TAGS)
    })
    .await;
    let error = registry.list_tags("me/app").await.unwrap_err();
    assert!(error.to_string().contains("goes in circles"), "{error}");
    assert_eq!(meter.requests(), 3);
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_list_whose_second_page_is_missing_is_no_list() {
    let pages = |second: &'static str| {
        move |count| match count {
            0 => {
                let head = "200 OK\r\nLink: <list?2>; rel=next".to_owned();
                (head, TAGS)
            }
            _ => (second.to_owned(), ""),
        }
    };
    let (registry, _) = answering(pages("404 Not Found")).await;
    let error = registry.list_tags("me/app").await.unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    let (registry, _) = answering(|_| ("404 Not Found".to_owned(), "")).await;
    assert_eq!(registry.list_tags("me/app").await.unwrap(), None);
}

#[tokio::test]
async fn registries_say_in_many_ways_that_they_list_no_referrers() {
    const INDEX: &str = r#"{"manifests": []}"#;
    let digest = crate::images::hash::Sha256Digest::of(b"").to_string();
    let ask = async |head: &'static str| {
        let (registry, meter) = answering(move |_| (head.to_owned(), INDEX)).await;
        let found = registry.referrers("me/app", &digest).await;
        assert_eq!(meter.requests(), 1);
        found
    };
    for head in [
        "303 See Other\r\nLocation: http://elsewhere.invalid/",
        "400 Bad Request",
        "404 Not Found",
        "405 Method Not Allowed",
        "406 Not Acceptable",
        "200 OK\r\nContent-Type: text/html; charset=utf-8",
        "200 OK",
    ] {
        assert_eq!(ask(head).await.unwrap(), None, "{head}");
    }
    for head in [
        "200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json",
        "200 OK\r\nContent-Type: Application/vnd.oci.image.index.v1+json ; charset=utf-8",
    ] {
        assert_eq!(ask(head).await.unwrap(), Some(Vec::new()), "{head}");
    }
    // What passes must not make us write a list that the registry keeps itself.
    ask("429 Too Many Requests").await.unwrap_err();
}

#[tokio::test]
async fn a_list_of_referrers_may_be_elsewhere_at_the_same_host() {
    let digest = crate::images::hash::Sha256Digest::of(b"").to_string();
    let (registry, _) = answering(|count| match count {
        0 => ("307 x\r\nLocation: /there".to_owned(), ""),
        _ => {
            let head = "200 OK\r\nContent-Type: application/vnd.oci.image.index.v1+json";
            (head.to_owned(), r#"{"manifests": []}"#)
        }
    })
    .await;
    let found = registry.referrers("me/app", &digest).await.unwrap();
    assert_eq!(found, Some(Vec::new()));
}

#[test]
fn a_time_to_wait_comes_in_seconds_or_as_a_date() {
    let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let seconds = |value| retry_after(value, now).map(|pause| pause.as_secs());
    assert_eq!(seconds("7"), Some(7));
    assert_eq!(seconds(" 0 "), Some(0));
    assert_eq!(seconds("Thu, 01 Jan 2026 00:01:30 GMT"), Some(90));
    assert_eq!(seconds("Wed, 31 Dec 2025 00:00:00 GMT"), Some(0));
    assert_eq!(seconds("soon"), None);
    assert_eq!(seconds("-1"), None);
}
