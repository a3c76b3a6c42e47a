//! Signed statements (DSSE): what is sealed is opened again, and nothing else is, whatever was done to the envelope.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use orch::images::attest::dsse::{open, seal};
use orch::images::attest::key::PrivateKey;

/// Signs nothing but this target's inputs.
static KEY: LazyLock<PrivateKey> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/envelope.key");
    PrivateKey::read(&path, || Ok(None)).expect("the key beside the seeds")
});

fuzz_target!(|bytes: &[u8]| {
    let key = KEY.public();
    assert_eq!(open(&key, bytes), None, "nobody else has the key");
    let sealed = seal(&KEY, bytes).expect("an envelope");
    assert_eq!(open(&key, &sealed).as_deref(), Some(bytes));
    let [place, change, ..] = *bytes else { return };
    let mut tampered = sealed;
    let at = (usize::from(place) * 7919 + bytes.len()) % tampered.len();
    tampered[at] ^= change;
    let opened = open(&key, &tampered);
    assert!(opened.is_none() || opened.as_deref() == Some(bytes));
});
