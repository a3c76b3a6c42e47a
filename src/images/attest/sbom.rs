//! From layers on disk and lock files of a build context to the list of an image's packages.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::AttestError;
use super::packages::os::Distribution;
use super::packages::{
    Package, Packages, apk, auditable, cargo, dpkg, gobuild, golang, npm, python,
};
use super::rootfs::{Executable, RootFs};
use super::spdx::Bom;
use crate::images::context::{Context, Kind};

/// How much of a layer is read at once.
const CHUNK: usize = 128 * 1024;
/// The largest lock file that is read, in bytes.
const LOCK_LIMIT: u64 = 16 * 1024 * 1024;
/// The most that is taken from the executables of one image, in bytes. A thousand packages take less than half a megabyte.
const LINKED_LIMIT: usize = 128 * 1024 * 1024;
/// What a compressed layer starts with: gzip, zstd.
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads the text of a lock file found at a place.
type Parser = fn(&str, &str) -> Result<Vec<Package>, String>;

/// An image whose layers are on this machine.
#[derive(Debug, Clone)]
pub struct Subject {
    /// `docker.io/namespace/name`.
    pub repository: String,
    /// Digest of the manifest.
    pub digest: String,
    /// `linux/amd64`.
    pub platform: String,
    /// Digest and file of each layer, from the bottom.
    pub layers: Vec<(String, PathBuf)>,
}

impl Subject {
    /// Reads everything. `context` is what the image was built from. Takes its time: not for a thread that others wait on.
    pub fn describe(&self, context: &Context) -> Result<Bom, AttestError> {
        let mut files = RootFs::default();
        for (digest, path) in &self.layers {
            read_layer(&mut files, digest, path).map_err(|error| AttestError::Layer {
                image: format!("{}@{}", self.repository, self.digest),
                digest: digest.clone(),
                reason: error.to_string(),
            })?;
        }
        let mut packages = Packages::default();
        let distribution = installed(&files, &mut packages);
        let mut remarks: Vec<String> = files
            .unread()
            .map(|path| {
                format!("/{path} is a package database in a form that is not read: what it lists is missing here")
            })
            .collect();
        linked(&files, &mut packages, &mut remarks, LINKED_LIMIT);
        locked(context, &mut packages, &mut remarks);
        Ok(Bom {
            repository: self.repository.clone(),
            digest: self.digest.clone(),
            platform: self.platform.clone(),
            distribution,
            packages,
            remarks,
        })
    }
}

/// What the image's own databases list.
fn installed(files: &RootFs, packages: &mut Packages) -> Option<Distribution> {
    let release = ["etc/os-release", "usr/lib/os-release"];
    let distribution = release
        .iter()
        .find_map(|path| files.file(path))
        .and_then(Distribution::parse);
    let known = distribution.as_ref();
    let mut found = Vec::new();
    let status = "var/lib/dpkg/status";
    if let Some(bytes) = files.file(status) {
        found.extend(dpkg::parse(bytes, status, known));
    }
    for (path, bytes) in files.status_files() {
        found.extend(dpkg::parse(bytes, path, known));
    }
    for path in ["lib/apk/db/installed", "usr/lib/apk/db/installed"] {
        if let Some(bytes) = files.file(path) {
            found.extend(apk::parse(bytes, path, known));
        }
    }
    for package in found {
        packages.add(package);
    }
    distribution
}

/// What the image's executables were built from. One that cannot be read is no reason not to push; the document says so.
fn linked(files: &RootFs, packages: &mut Packages, remarks: &mut Vec<String>, limit: usize) {
    let mut taken: usize = 0;
    for (path, found) in files.executables() {
        let parsed = match found {
            Ok(Executable { cargo, go }) => vec![
                cargo.as_ref().map(|bytes| auditable::parse(bytes, path)),
                go.as_ref().map(|bytes| gobuild::parse(bytes, path)),
            ],
            Err(reason) => vec![Some(Err(reason.clone()))],
        };
        for parsed in parsed.into_iter().flatten() {
            let bounded = parsed.and_then(|found| {
                let more: usize = found.iter().map(Package::size).sum();
                if more > limit.saturating_sub(taken) {
                    return Err(format!(
                        "what the image's executables were built from has more than {limit} bytes"
                    ));
                }
                taken += more;
                Ok(found)
            });
            match bounded {
                Ok(found) => found.into_iter().for_each(|package| packages.add(package)),
                Err(reason) => remarks.push(format!(
                    "/{path}: {reason}: what this executable was built from is missing here"
                )),
            }
        }
    }
}

/// What lock files in the build context list. One that cannot be read is no reason not to push; the document says so.
fn locked(context: &Context, packages: &mut Packages, remarks: &mut Vec<String>) {
    for entry in context.entries.iter() {
        let name = entry.path.rsplit('/').next().unwrap_or_default();
        let parse: Parser = match name {
            "Cargo.lock" => cargo::parse,
            "package-lock.json" => npm::parse,
            "go.mod" => |text, place| Ok(golang::parse(text, place)),
            "requirements.txt" => |text, place| Ok(python::parse(text, place)),
            _ => continue,
        };
        let Kind::File { stamp, .. } = &entry.kind else {
            continue;
        };
        let read = if stamp.size > LOCK_LIMIT {
            Err(format!("it has more than {LOCK_LIMIT} bytes"))
        } else {
            std::fs::read_to_string(context.root.join(&entry.path))
                .map_err(|error| error.to_string())
        };
        let parsed = read
            .map_err(|reason| format!("{}: {reason}", entry.path))
            .and_then(|text| parse(&text, &entry.path));
        match parsed {
            Ok(found) => found.into_iter().for_each(|package| packages.add(package)),
            Err(reason) => remarks.push(format!(
                "{reason}: what this lock file in the build context lists is missing here"
            )),
        }
    }
}

/// Applies a layer and makes sure that it is the one with this digest.
fn read_layer(files: &mut RootFs, digest: &str, path: &Path) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(CHUNK, Hashing::new(File::open(path)?));
    let head = {
        let buffer = reader.fill_buf()?;
        buffer
            .get(..buffer.len().min(4))
            .unwrap_or_default()
            .to_vec()
    };
    let read = unpack(files, &mut reader, &head);
    // What follows the archive's end belongs to the layer's digest as well. So does what follows an error: a file that was damaged
    // on this machine is told from a layer that cannot be read.
    let rest = io::copy(&mut reader, &mut io::sink());
    if let Err(error) = rest {
        return read.and(Err(error));
    }
    let found = reader.into_inner().digest();
    if found != digest {
        return Err(io::Error::other(format!(
            "{} holds {found}: delete that file and run the command again",
            path.display()
        )));
    }
    read
}

fn unpack(files: &mut RootFs, mut reader: impl BufRead, head: &[u8]) -> io::Result<()> {
    if head.starts_with(&ZSTD) {
        return Err(io::Error::other(
            "it is compressed with zstd, which is not read",
        ));
    }
    if head.starts_with(&GZIP) {
        let mut layer = MultiGzDecoder::new(&mut reader);
        files.apply(&mut layer)?;
        io::copy(&mut layer, &mut io::sink()).map(|_| ())
    } else {
        files.apply(&mut reader)
    }
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
        }
    }

    fn digest(self) -> String {
        format!("sha256:{}", hex::encode(self.hasher.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::attest::elf::tests::program;
    use crate::images::hash::Sha256Digest;
    use std::io::Write as _;

    fn archive(path: &str, content: &str) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive
            .append_data(&mut header, path, content.as_bytes())
            .unwrap();
        archive.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn subject(folder: &Path, layers: &[Vec<u8>]) -> Subject {
        let layers = layers.iter().map(|bytes| {
            let digest = Sha256Digest::of(bytes);
            let path = folder.join(digest.hex());
            std::fs::write(&path, bytes).unwrap();
            (digest.to_string(), path)
        });
        Subject {
            repository: "docker.io/me/app".to_owned(),
            digest: "sha256:aa".to_owned(),
            platform: "linux/amd64".to_owned(),
            layers: layers.collect(),
        }
    }

    const STATUS: &str = "Package: a\nStatus: install ok installed\nVersion: 1\n";

    #[test]
    fn databases_of_the_image_and_lock_files_of_the_context_come_together() {
        let folder = tempfile::tempdir().unwrap();
        let layers = [
            gzip(&archive("etc/os-release", "ID=debian\nVERSION_ID=12\n")),
            archive("var/lib/dpkg/status", STATUS),
            gzip(&archive("var/lib/rpm/rpmdb.sqlite", "SQLite")),
        ];
        let subject = subject(folder.path(), &layers);
        let context = tempfile::tempdir().unwrap();
        let write =
            |path: &str, text: &str| std::fs::write(context.path().join(path), text).unwrap();
        write("Dockerfile", "FROM scratch\n");
        write(
            "Cargo.lock",
            "[[package]]\nname = \"b\"\nversion = \"2.0.0\"\n",
        );
        std::fs::create_dir(context.path().join("broken")).unwrap();
        write("broken/Cargo.lock", "package = 1\n");
        let context = Context::scan(context.path(), &context.path().join("Dockerfile")).unwrap();
        let bom = subject.describe(&context).unwrap();
        let purls: Vec<&str> = bom
            .packages
            .iter()
            .map(|found| found.purl.as_str())
            .collect();
        assert_eq!(
            purls,
            ["pkg:cargo/b@2.0.0", "pkg:deb/debian/a@1?distro=debian-12"]
        );
        assert_eq!(bom.remarks.len(), 2, "{:?}", bom.remarks);
        assert!(bom.remarks[0].contains("rpmdb.sqlite"));
        assert!(bom.remarks[1].contains("broken/Cargo.lock:1:"));
    }

    #[test]
    fn a_layer_that_is_not_what_its_digest_says_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let good = gzip(&archive("var/lib/dpkg/status", STATUS));
        let subject = subject(folder.path(), std::slice::from_ref(&good));
        std::fs::write(folder.path().join("Dockerfile"), "FROM scratch\n").unwrap();
        let context = Context::scan(folder.path(), &folder.path().join("Dockerfile")).unwrap();
        assert!(subject.describe(&context).is_ok());
        let path = &subject.layers[0].1;
        for damaged in [
            gzip(&archive("var/lib/dpkg/status", "other")),
            good[..good.len() / 2].to_vec(),
            [good.as_slice(), b"more"].concat(),
            [ZSTD.as_slice(), b"x"].concat(),
            Vec::new(),
        ] {
            std::fs::write(path, &damaged).unwrap();
            let error = subject.describe(&context).unwrap_err();
            let said = error.to_string();
            let file = format!("{} holds sha256:", path.display());
            assert!(said.contains(&file), "{said}");
            assert!(
                said.ends_with(": delete that file and run the command again"),
                "{said}"
            );
        }
    }

    #[test]
    fn nobody_is_told_to_delete_a_layer_that_is_what_its_digest_says() {
        let folder = tempfile::tempdir().unwrap();
        let cut_off = gzip(&archive("var/lib/dpkg/status", &STATUS.repeat(100))[..600]);
        for (layer, word) in [
            ([ZSTD.as_slice(), b"x"].concat(), "zstd"),
            (cut_off, "unexpected EOF"),
        ] {
            let subject = subject(folder.path(), &[layer]);
            std::fs::write(folder.path().join("Dockerfile"), "FROM scratch\n").unwrap();
            let context = Context::scan(folder.path(), &folder.path().join("Dockerfile")).unwrap();
            let said = subject.describe(&context).unwrap_err().to_string();
            assert!(said.contains(word) && !said.contains("delete"), "{said}");
        }
    }

    #[test]
    fn what_is_taken_from_an_images_executables_is_bounded_together() {
        let list = |name: &str| {
            let list = format!(r#"{{"packages":[{{"name":"{name}","version":"1"}}]}}"#);
            let mut encoder =
                flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(list.as_bytes()).unwrap();
            program(&[(auditable::SECTION, &encoder.finish().unwrap())])
        };
        let mut layer = tar::Builder::new(Vec::new());
        for name in ["a", "b"] {
            let content = list(name);
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_size(content.len() as u64);
            layer
                .append_data(&mut header, name, content.as_slice())
                .unwrap();
        }
        let mut files = RootFs::default();
        files.apply(layer.into_inner().unwrap().as_slice()).unwrap();
        let within = |limit: usize| {
            let (mut packages, mut remarks) = (Packages::default(), Vec::new());
            linked(&files, &mut packages, &mut remarks, limit);
            (packages.len(), remarks)
        };
        // Name, version, purl and place of each.
        let each = "a".len() + "1".len() + "pkg:cargo/a@1".len() + "a".len();
        assert_eq!(within(2 * each), (2, Vec::new()));
        let (count, remarks) = within(2 * each - 1);
        assert_eq!((count, remarks.len()), (1, 1));
        assert!(remarks[0].starts_with("/b: "), "{remarks:?}");
    }
}
