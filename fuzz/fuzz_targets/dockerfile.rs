//! Dockerfiles: any text has images or an error, and putting images in gives a Dockerfile with exactly those.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use orch::images::dockerfile::Dockerfile;

fuzz_target!(|text: &str| {
    let parse = |text: String| {
        Dockerfile::parse(
            text,
            Path::new("Dockerfile"),
            &BTreeMap::new(),
            "linux/amd64",
        )
    };
    let Ok(dockerfile) = parse(text.to_owned()) else {
        return;
    };
    let replacements: BTreeMap<String, String> = dockerfile
        .references()
        .into_iter()
        .enumerate()
        .map(|(index, reference)| {
            (
                reference.to_owned(),
                format!("replaced.example/image:{index}"),
            )
        })
        .collect();
    let wanted: BTreeSet<&str> = replacements.values().map(String::as_str).collect();
    let changed = dockerfile.with_images(&replacements, false);
    let again = parse(changed).expect("a Dockerfile with other images is a Dockerfile");
    let found: BTreeSet<&str> = again.references().into_iter().collect();
    assert_eq!(found, wanted, "{text:?}");
});
