//! Bundles: whatever the list of members and the archive behind it say, what is taken was announced and stays in its folder.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use orch::bundle::BundleError;
use orch::bundle::contents::{Contents, Member};
use orch::bundle::read::{Visitor, read_archive};
use sha2::{Digest, Sha256};

/// Between the list and the archive's rest: its checksum and its header are made here, as nobody finds them by chance.
const NEXT: &[u8] = b"--archive--";

#[derive(Default)]
struct Watching {
    open: Option<(Member, u64)>,
    taken: Vec<Member>,
}

impl Visitor for Watching {
    fn begin(&mut self, member: &Member) -> Result<(), BundleError> {
        let mut parts = member.path.split('/');
        assert!(parts.clone().count() > 1);
        assert!(parts.all(|part| !part.is_empty() && !part.starts_with('.')));
        self.open = Some((member.clone(), 0));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        let (member, length) = self.open.as_mut().expect("bytes of no member");
        *length += bytes.len() as u64;
        assert!(*length <= member.size);
        Ok(())
    }

    fn end(&mut self) -> Result<(), BundleError> {
        let (member, length) = self.open.take().expect("the end of no member");
        assert_eq!(member.size, length);
        self.taken.push(member);
        Ok(())
    }
}

fn entry(archive: &mut Vec<u8>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).expect("a short path");
    header.set_size(bytes.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    archive.extend(header.as_bytes());
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fuzz_target!(|bytes: &[u8]| {
    let end = bytes.windows(NEXT.len()).position(|part| part == NEXT);
    let mut archive = Vec::new();
    match end {
        None => archive.extend(bytes),
        Some(end) => {
            let list = match serde_json::from_slice::<Contents>(&bytes[..end]) {
                Ok(contents) => contents.to_bytes(),
                Err(_) => bytes[..end].to_vec(),
            };
            let sum: String = Sha256::digest(&list)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            entry(
                &mut archive,
                "bundle.sha256",
                format!("{sum}  bundle.json\n").as_bytes(),
            );
            entry(&mut archive, "bundle.json", &list);
            archive.extend(&bytes[end + NEXT.len()..]);
        }
    }
    let mut watching = Watching::default();
    if let Ok(announced) = read_archive(Path::new("bundle"), archive.as_slice(), &mut watching) {
        assert_eq!(watching.taken, announced.contents.members);
    }
});
