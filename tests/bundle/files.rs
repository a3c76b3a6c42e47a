//! A bundle by hand, and what comes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use orch::bundle::contents::{Contents, Image, K3s, Member, SCHEMA};
use orch::bundle::read::{self, Visitor};
use orch::bundle::unpack::{self, Watch};
use orch::bundle::unpacked::Unpacked;
use orch::bundle::write::{Writer, Written};
use orch::bundle::{BundleError, layout};
use orch::progress::{Progress, Silent};
use sha2::{Digest, Sha256};

pub(crate) fn hex_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Two images that share a layer, a K3s, a provisioner and a project, as bytes by path.
pub(crate) fn small() -> (Contents, BTreeMap<String, Vec<u8>>) {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::from([
        ("bin/orch-provision".to_owned(), b"provisioner".to_vec()),
        ("k3s/k3s".to_owned(), vec![7; 1024]),
        ("k3s/sha256sum-amd64.txt".to_owned(), b"sums".to_vec()),
        ("project/orch.yaml".to_owned(), b"name: one\n".to_vec()),
        ("project/Manifests/app/app.yaml".to_owned(), Vec::new()),
    ]);
    let mut images = Vec::new();
    for name in ["app", "other"] {
        let manifest = format!(r#"{{"name":"{name}"}}"#).into_bytes();
        let digest = hex_of(&manifest);
        images.push(Image {
            repository: format!("docker.io/me/{name}"),
            tag: (name == "app").then(|| "v1".to_owned()),
            digest: format!("sha256:{digest}"),
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            size: manifest.len() as u64,
        });
        files.insert(format!("images/{}", layout::blob(&digest)), manifest);
    }
    let layer: Vec<u8> = (0..=255).cycle().take(700).collect();
    files.insert(format!("images/{}", layout::blob(&hex_of(&layer))), layer);
    files.insert("images/oci-layout".to_owned(), layout::marker());
    files.insert("images/index.json".to_owned(), layout::index(&images));
    let members = files.iter().map(|(path, bytes)| Member {
        path: path.clone(),
        size: bytes.len() as u64,
        sha256: hex_of(bytes),
        executable: path == "k3s/k3s" || path.starts_with("bin/"),
    });
    let contents = Contents {
        schema: SCHEMA,
        orch: "0.1.0".to_owned(),
        cluster: "one".to_owned(),
        platform: "linux/amd64".to_owned(),
        k3s: K3s {
            version: "v1.34.2+k3s1".to_owned(),
            standin: false,
        },
        images,
        kept: Vec::new(),
        left_out: Vec::new(),
        members: members.collect(),
    };
    (contents, files)
}

/// Writes it, each member in pieces of this size.
pub(crate) fn write(
    path: &Path,
    (contents, files): &(Contents, BTreeMap<String, Vec<u8>>),
    piece: usize,
) -> Result<Written, BundleError> {
    let mut writer = Writer::create(path, contents)?;
    while let Some(member) = writer.begin()? {
        for piece in files[&member.path].chunks(piece) {
            writer.data(piece)?;
        }
        writer.end()?;
    }
    writer.finish()
}

/// Keeps what was right.
#[derive(Default)]
pub(crate) struct Keeping {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    open: Option<(String, Vec<u8>)>,
}

impl Visitor for Keeping {
    fn begin(&mut self, member: &Member) -> Result<(), BundleError> {
        self.open = Some((member.path.clone(), Vec::new()));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        self.open.as_mut().unwrap().1.extend(bytes);
        Ok(())
    }

    fn end(&mut self) -> Result<(), BundleError> {
        self.files.extend(self.open.take());
        Ok(())
    }
}

pub(crate) fn unpack(bundle: &Path, target: &Path) -> Result<(), BundleError> {
    let (progress, stop) = (Silent, AtomicBool::new(false));
    let watch = Watch {
        progress: &progress,
        stop: &stop,
    };
    unpack::unpack(bundle, target, &watch).map(|_| ())
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_written_is_read_and_equal_contents_give_equal_bytes() {
    let place = Place::new();
    let small = small();
    let one = write(&place.path("one"), &small, 3).unwrap();
    let two = write(&place.path("two"), &small, 1_000_000).unwrap();
    assert_eq!(one, two);
    let bytes = std::fs::read(place.path("one")).unwrap();
    assert_eq!(bytes, std::fs::read(place.path("two")).unwrap());
    assert_eq!(
        (one.size, &one.sha256),
        (bytes.len() as u64, &hex_of(&bytes))
    );
    let mut keeping = Keeping::default();
    let announced = read::read(&place.path("one"), &mut keeping).unwrap();
    assert_eq!((&announced.contents, &announced.id), (&small.0, &one.id));
    assert_eq!(keeping.files, small.1);
    assert_eq!(read::peek(&place.path("one")).unwrap(), announced);
}

#[test]
fn a_bundle_that_is_not_finished_is_not_there() {
    let place = Place::new();
    let (contents, files) = small();
    let mut writer = Writer::create(&place.path("one"), &contents).unwrap();
    let member = writer.begin().unwrap().unwrap();
    writer.data(&files[&member.path]).unwrap();
    writer.end().unwrap();
    let error = writer.finish().unwrap_err().to_string();
    assert!(error.contains("announced and not written"), "{error}");
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_member_that_became_another_one_is_an_error() {
    let place = Place::new();
    for change in [b"provisionEr".as_slice(), b"provision", b"provisioner!"] {
        let mut small = small();
        small
            .1
            .insert("bin/orch-provision".to_owned(), change.to_vec());
        let error = write(&place.path("one"), &small, 4)
            .unwrap_err()
            .to_string();
        let known = error.contains("orch-provision") || error.contains("more bytes");
        assert!(known, "{error}");
    }
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn every_flipped_byte_is_refused_and_says_where() {
    let place = Place::new();
    let path = place.path("bundle");
    write(&path, &small(), 4096).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut wrong = whole.clone();
        wrong[at] ^= [1, 0x10, 0xff][at % 3];
        std::fs::write(&path, &wrong).unwrap();
        let error = read::read(&path, &mut Keeping::default()).unwrap_err();
        let BundleError::Damaged { member, .. } = &error else {
            panic!("{at}: {error}");
        };
        let known = small().0.members.iter().any(|known| known.path == *member);
        let fixed = ["the beginning", "bundle.sha256", "bundle.json", "the end"];
        assert!(known || fixed.contains(&member.as_str()), "{at}: {error}");
    }
}

#[test]
fn what_is_cut_off_or_followed_by_something_is_refused() {
    let place = Place::new();
    let path = place.path("bundle");
    write(&path, &small(), 4096).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(
            read::read(&path, &mut Keeping::default()).is_err(),
            "{length}"
        );
        let target = place.path("target");
        assert!(unpack(&path, &target).is_err(), "{length}");
        assert_eq!(place.names(), ["bundle"], "{length}");
    }
    for more in [b"x".as_slice(), &whole] {
        std::fs::write(&path, [&whole, more].concat()).unwrap();
        let error = read::read(&path, &mut Keeping::default()).unwrap_err();
        assert!(error.to_string().contains("something follows"), "{error}");
    }
}

#[test]
fn it_is_unpacked_whole_and_what_came_out_is_watched() {
    let place = Place::new();
    let (bundle, target) = (place.path("bundle"), place.path("target"));
    let small = small();
    write(&bundle, &small, 4096).unwrap();
    unpack(&bundle, &target).unwrap();
    assert_eq!(place.names(), ["bundle", "target"]);
    let read = |path: &str| std::fs::read(target.join(path)).unwrap();
    assert_eq!(read("orch.yaml"), b"name: one\n");
    assert_eq!(read("orch-bundle/k3s/k3s"), small.1["k3s/k3s"]);
    let mode = |path: &str| {
        let metadata = std::fs::metadata(target.join(path)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
    };
    assert_eq!(mode("orch-bundle/k3s/k3s"), 0o755);
    assert_eq!((mode("orch.yaml"), mode("")), (0o644, 0o700));
    let mut archive =
        tar::Archive::new(std::fs::File::open(target.join("orch-bundle/orch-images.tar")).unwrap());
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        found.insert(format!("images/{name}"), bytes);
    }
    let mut expected = small.1.clone();
    expected.retain(|path, _| path.starts_with("images/"));
    assert_eq!(found, expected);
    let unpacked = Unpacked::find(&target).unwrap().unwrap();
    assert_eq!(unpacked.announced.contents, small.0);
    unpacked.check_all().unwrap();
    for file in ["orch-images.tar", "k3s/k3s", "bin/orch-provision"] {
        let path = target.join("orch-bundle").join(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&good, b"x".as_slice()].concat()).unwrap();
        let error = unpacked.check_all().unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        std::fs::write(&path, good).unwrap();
    }
    std::fs::write(target.join("orch-bundle/bundle.json"), "{}").unwrap();
    assert!(Unpacked::find(&target).is_err());
}

/// Loses interest after so many reports.
struct Impatient<'a>(std::sync::atomic::AtomicUsize, &'a AtomicBool);

impl Progress for Impatient<'_> {
    fn note(&self, _: &str) {}
    fn bytes(&self, _: &str, _: u64, _: Option<u64>) {
        use std::sync::atomic::Ordering::SeqCst;
        if self.0.fetch_sub(1, SeqCst) == 1 {
            self.1.store(true, SeqCst);
        }
    }
}

#[test]
fn a_run_that_is_stopped_leaves_nothing_and_the_next_one_everything() {
    let place = Place::new();
    let (bundle, target) = (place.path("bundle"), place.path("target"));
    write(&bundle, &small(), 4096).unwrap();
    for reports in 1..6 {
        let stop = AtomicBool::new(false);
        let progress = Impatient(reports.into(), &stop);
        let watch = Watch {
            progress: &progress,
            stop: &stop,
        };
        let error = unpack::unpack(&bundle, &target, &watch).unwrap_err();
        assert!(matches!(error, BundleError::Stopped), "{error}");
        assert_eq!(place.names(), ["bundle"]);
    }
    // A run that was killed could not remove its folder.
    std::fs::create_dir_all(place.path(".target.orch-partial/orch-bundle")).unwrap();
    unpack(&bundle, &target).unwrap();
    assert_eq!(place.names(), ["bundle", "target"]);
}
