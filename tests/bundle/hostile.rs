//! Archives that somebody else made: right in form, wrong in what they say.

use std::collections::BTreeMap;
use std::path::Path;

use orch::bundle::BundleError;
use orch::bundle::contents::{Contents, Member};
use orch::bundle::read::read_archive;
use proptest::prelude::*;

use crate::files::{Keeping, hex_of, small};

/// What is written into an archive: header and bytes.
type Entry = (tar::Header, Vec<u8>);

fn entry(path: &str, bytes: &[u8], executable: bool) -> Entry {
    let mut header = tar::Header::new_ustar();
    // A path that the crate would not write.
    header.as_ustar_mut().unwrap().name[..path.len().min(100)]
        .copy_from_slice(&path.as_bytes()[..path.len().min(100)]);
    header.set_size(bytes.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    (header, bytes.to_vec())
}

/// The archive of these contents, with entries that `change` may do anything to.
fn archive(
    contents: &Contents,
    files: &BTreeMap<String, Vec<u8>>,
    change: impl FnOnce(&mut Vec<Entry>),
) -> Vec<u8> {
    let json = contents.to_bytes();
    let sum = format!("{}  bundle.json\n", hex_of(&json));
    let mut entries = vec![
        entry("bundle.sha256", sum.as_bytes(), false),
        entry("bundle.json", &json, false),
    ];
    for member in &contents.members {
        let bytes = files.get(&member.path).cloned().unwrap_or_default();
        entries.push(entry(&member.path, &bytes, member.executable));
    }
    change(&mut entries);
    let mut archive = Vec::new();
    for (header, bytes) in entries {
        archive.extend(header.as_bytes());
        archive.extend(&bytes);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn read(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, BundleError> {
    let mut keeping = Keeping::default();
    read_archive(Path::new("bundle"), archive, &mut keeping).map(|_| keeping.files)
}

#[track_caller]
fn refused(archive: &[u8], by: &str) {
    let error = read(archive).unwrap_err();
    assert!(matches!(error, BundleError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(by), "{error}");
}

#[test]
fn what_this_test_makes_is_what_the_writer_makes() {
    let (contents, files) = small();
    assert_eq!(read(&archive(&contents, &files, |_| ())).unwrap(), files);
}

#[test]
fn the_seed_of_the_fuzz_target_is_a_bundle() {
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/bundle/whole");
    assert_eq!(read(&std::fs::read(seed).unwrap()).unwrap().len(), 6);
}

#[test]
fn names_that_lead_elsewhere_are_refused_before_anything_is_read() {
    for path in [
        "../outside",
        "/etc/passwd",
        "bin/../../outside",
        "bin//orch",
        "bin/./orch",
        "bin/",
        "",
        "bin",
        "bin/deep/er",
        "elsewhere/file",
        "project/.orch/one/keys/operator_key",
        "project/Manifests/.hidden.yaml",
        "project/orch-bundle/bundle.json",
        "project/orch.yaml/below",
        "project/a\nb",
        "project/a\\b",
        "images/other",
        "images/blobs/sha256/0000",
        &format!("project/{}", "a".repeat(250)),
    ] {
        let (mut contents, mut files) = small();
        contents.members.push(Member {
            path: path.to_owned(),
            size: 1,
            sha256: hex_of(b"x"),
            executable: false,
        });
        contents.members.sort();
        files.insert(path.to_owned(), b"x".to_vec());
        refused(&archive(&contents, &files, |_| ()), "bundle.json");
        let target = tempfile::tempdir().unwrap();
        let made = orch::bundle::write::Writer::create(&target.path().join("b"), &contents);
        assert!(matches!(made, Err(BundleError::Refused { .. })), "{path}");
    }
}

#[test]
fn members_that_come_twice_late_or_not_at_all_are_refused() {
    let (contents, files) = small();
    let with = |change: fn(&mut Vec<Entry>)| archive(&contents, &files, change);
    refused(&with(|entries| entries.swap(2, 3)), "it was announced here");
    refused(
        &with(|entries| entries.insert(3, entries[2].clone())),
        "it was announced here",
    );
    refused(
        &with(|entries| drop(entries.remove(4))),
        "it was announced here",
    );
    refused(
        &with(|entries| drop(entries.pop())),
        "it was announced here",
    );
    refused(
        &with(|entries| entries.push(entry("bin/more", b"x", true))),
        "the end",
    );
    refused(&with(|entries| entries.swap(0, 1)), "bundle.sha256");
    let mut twice = contents.clone();
    twice.members.insert(1, twice.members[0].clone());
    refused(&archive(&twice, &files, |_| ()), "twice");
}

#[test]
fn links_devices_and_extensions_are_refused() {
    use tar::EntryType;
    let (contents, files) = small();
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Fifo,
        EntryType::Block,
        EntryType::GNULongName,
        EntryType::XHeader,
        EntryType::GNUSparse,
        EntryType::Continuous,
    ] {
        let changed = archive(&contents, &files, |entries| {
            let header = &mut entries[2].0;
            header.set_entry_type(kind);
            header.set_link_name("/etc/passwd").unwrap();
            header.set_cksum();
        });
        refused(&changed, "it was announced here");
    }
    // An owner, a time or a mode of somebody's choice.
    for change in [
        |header: &mut tar::Header| header.set_uid(1000),
        |header: &mut tar::Header| header.set_mtime(1),
        |header: &mut tar::Header| header.set_mode(0o4755),
    ] {
        let changed = archive(&contents, &files, |entries| {
            change(&mut entries[2].0);
            entries[2].0.set_cksum();
        });
        refused(&changed, "it was announced here");
    }
}

#[test]
fn a_list_that_contradicts_itself_is_refused() {
    let (contents, files) = small();
    let with = |change: &dyn Fn(&mut Contents)| {
        let mut contents = contents.clone();
        change(&mut contents);
        archive(&contents, &files, |_| ())
    };
    refused(
        &with(&|c| c.images[0].repository = "docker.io/you/app".to_owned()),
        "index.json",
    );
    refused(
        &with(&|c| c.images[0].digest = format!("sha256:{}", "0".repeat(64))),
        "index.json",
    );
    refused(
        &with(&|c| c.members.retain(|m| m.path != "bin/orch-provision")),
        "orch-provision",
    );
    refused(
        &with(&|c| c.members.retain(|m| m.path != "images/index.json")),
        "index.json",
    );
    refused(
        &with(&|c| c.members[0].sha256 = "A".repeat(64)),
        "bin/orch-provision",
    );
    refused(&with(&|c| c.cluster = "../x".to_owned()), "cluster");
    let error = read(&with(&|c| c.schema = 2)).unwrap_err().to_string();
    assert!(error.contains("has format 2"), "{error}");
    let longer = with(&|c| c.members[0].size = u64::MAX);
    assert!(read(&longer).is_err());
    let spaced = archive(&contents, &files, |entries| {
        let json = [contents.to_bytes(), b" ".to_vec()].concat();
        let sum = format!("{}  bundle.json\n", hex_of(&json));
        entries[0] = entry("bundle.sha256", sum.as_bytes(), false);
        entries[1] = entry("bundle.json", &json, false);
    });
    refused(&spaced, "not written as orch writes it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_change_of_an_archive_is_refused(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let (contents, files) = small();
        let whole = archive(&contents, &files, |_| ());
        let mut changed = whole.clone();
        let at = at.index(changed.len());
        changed[at] = to;
        if changed != whole {
            prop_assert!(read(&changed).is_err());
        }
    }
}
