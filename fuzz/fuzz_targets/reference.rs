//! Image references: any text stands for a component or for none, and our own pins are recognised again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orch::images::destination::Destination;
use orch::images::lock::Lock;
use orch::images::pin::{Ours, is_pinned};
use orch::images::reference;
use orch::images::registry::http::Endpoint;

fuzz_target!(|text: &str| {
    let destination = Destination {
        registry: "docker.io".to_owned(),
        namespace: "me".to_owned(),
        endpoint: Endpoint::of("docker.io", false).expect("a registry's name"),
        credential: None,
        stand_in: None,
    };
    let components = vec!["app".to_owned(), "node".to_owned()];
    let ours = Ours::new(components, &destination, &Lock::default());
    let found = ours.component_of(text);
    if let Some(component) = found {
        assert!(component == "app" || component == "node", "{component}");
    }
    let _ = is_pinned(text);
    if let Ok(read) = reference::parse(text) {
        assert_eq!(text.parse().ok(), Some(read));
    }
    let pinned = format!("docker.io/me/app:in-0123456789ab@sha256:{}", "0".repeat(64));
    assert_eq!(ours.component_of(&pinned), Some("app"));
});
