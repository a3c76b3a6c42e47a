//! Layers of images: any archives, on top of each other, are read or refused, and what is kept is no more than was there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orch::images::attest::rootfs::RootFs;

/// Between two layers of an input. Archives consist of blocks, so none has it by chance.
const NEXT: &[u8] = b"--next layer--";

fuzz_target!(|bytes: &[u8]| {
    let mut files = RootFs::default();
    let mut rest = bytes;
    loop {
        let end = rest.windows(NEXT.len()).position(|part| part == NEXT);
        let layer = &rest[..end.unwrap_or(rest.len())];
        if files.apply(layer).is_err() {
            break;
        }
        match end {
            Some(end) => rest = &rest[end + NEXT.len()..],
            None => break,
        }
    }
    let status = files.file("var/lib/dpkg/status").unwrap_or_default();
    assert!(status.len() <= bytes.len());
    for (path, content) in files.status_files() {
        assert!(!path.starts_with('/') && content.len() <= bytes.len());
    }
    for path in files.unread() {
        assert!(!path.is_empty());
    }
    assert!(files.executables().all(|(path, _)| !path.contains("..")));
});
