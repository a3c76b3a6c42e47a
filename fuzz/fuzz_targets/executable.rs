//! Executables of images: any bytes have sections or none, and any section is a list of packages or an error.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use orch::images::attest::elf;
use orch::images::attest::packages::{auditable, gobuild};

/// Enough for any section of an input.
const LIMIT: u64 = 1024 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let wanted = [auditable::SECTION, gobuild::SECTION];
    let found = elf::sections(&mut Cursor::new(bytes), wanted, LIMIT).unwrap_or_default();
    let sections = found.into_iter().flatten();
    for section in sections.chain([bytes.to_vec()]) {
        assert!(section.len() <= bytes.len());
        for package in [
            auditable::parse(&section, "x").unwrap_or_default(),
            gobuild::parse(&section, "x").unwrap_or_default(),
        ]
        .concat()
        {
            assert!(package.purl.starts_with("pkg:"), "{}", package.purl);
        }
    }
});
