//! Package databases and lock files: any bytes are a list of packages or an error, and every package has an identity.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orch::images::attest::packages::os::Distribution;
use orch::images::attest::packages::{apk, cargo, dpkg, golang, npm, python};

fuzz_target!(|bytes: &[u8]| {
    let distribution = Distribution::parse(bytes);
    let text = String::from_utf8_lossy(bytes);
    let found = [
        apk::parse(bytes, "x", distribution.as_ref()),
        dpkg::parse(bytes, "x", distribution.as_ref()),
        cargo::parse(&text, "x").unwrap_or_default(),
        golang::parse(&text, "x"),
        npm::parse(&text, "x").unwrap_or_default(),
        python::parse(&text, "x"),
    ];
    for package in found.concat() {
        assert!(package.purl.starts_with("pkg:"), "{}", package.purl);
        assert!(!package.found.is_empty(), "{package:?}");
        assert_ne!(package.version.as_deref(), Some(""), "{package:?}");
    }
});
