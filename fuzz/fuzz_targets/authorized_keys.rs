//! The list of who may join, read at each connection: a text is a list or an error, and a list says what it was made from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orch_ssh::{AuthorizedKeys, PublicKey};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(keys) = AuthorizedKeys::parse(text) else {
        return;
    };
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    assert_eq!(keys.len(), lines.len());
    for line in lines {
        let key = PublicKey::from_openssh(line).expect("a listed key is a key");
        let principal = keys.principal_of(&key).expect("a listed key is known");
        assert!(
            line.ends_with(&principal.to_string()),
            "{line} is {principal}"
        );
    }
});
