//! What in an image says which packages it has, read from its layers without unpacking them: a few files, and what executables
//! were built from.
//!
//! Layers are streams, lowest first; a file that a later layer hides, replaces or deletes is gone (whiteouts of the image
//! specification). What is kept is bounded, whatever an image contains.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek};

use super::elf;
use super::packages::{auditable, gobuild};

/// The largest file that is read, in bytes. Debian's status file has a kilobyte a package.
const FILE_LIMIT: u64 = 64 * 1024 * 1024;
/// The largest executable that is looked into, in bytes.
const EXECUTABLE_LIMIT: u64 = 1024 * 1024 * 1024;
/// Executables up to this size, in bytes, are looked into in memory. The others lie in a temporary file meanwhile.
const IN_MEMORY: usize = 16 * 1024 * 1024;
/// The largest part of an executable that is read, in bytes. A thousand modules take a tenth of one of them.
const SECTION_LIMIT: u64 = 16 * 1024 * 1024;
/// The most that is kept of one image, in bytes.
const IMAGE_LIMIT: u64 = 256 * 1024 * 1024;
/// The most that a layer may say about one file before its content: names, links, attributes, in bytes. Linux allows 4 KiB for
/// a name and 64 KiB for an attribute.
const HEADER_LIMIT: u64 = 1024 * 1024;
/// The longest path of a file, in bytes; Linux opens no longer one. Documents name a file once for each of its packages.
const PATH_LIMIT: usize = 4096;
/// Archives consist of blocks of so many bytes.
const BLOCK: u64 = 512;
/// How many symbolic links are followed to a file.
const LINK_LIMIT: usize = 8;

/// Marks a file of lower layers as deleted.
const WHITEOUT: &str = ".wh.";
/// Marks everything that lower layers have in a folder as deleted.
const OPAQUE: &str = ".wh..wh..opq";

/// Whole files that are wanted.
const FILES: [&str; 5] = [
    "etc/os-release",
    "usr/lib/os-release",
    "var/lib/dpkg/status",
    "lib/apk/db/installed",
    "usr/lib/apk/db/installed",
];
/// A folder whose files are wanted: distroless images have one file a package there.
const STATUS_FOLDER: &str = "var/lib/dpkg/status.d/";
/// Databases in formats that are not read; that they are there is worth saying.
const UNREAD: [&str; 7] = [
    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages",
    "var/lib/rpm/Packages.db",
    "usr/lib/sysimage/rpm/rpmdb.sqlite",
    "usr/lib/sysimage/rpm/Packages",
    "usr/lib/sysimage/rpm/Packages.db",
    "usr/share/rpm/rpmdb.sqlite",
];

/// A file that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Content(Vec<u8>),
    Link(String),
    Executable(Result<Executable, String>),
    Unread,
}

/// What an executable says of what it was built from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Executable {
    /// [`auditable::SECTION`].
    pub cargo: Option<Vec<u8>>,
    /// [`gobuild::SECTION`].
    pub go: Option<Vec<u8>>,
}

/// An image's files as far as anybody asks for them.
#[derive(Debug, Default)]
pub struct RootFs {
    nodes: BTreeMap<String, Node>,
}

impl RootFs {
    /// Puts a layer, an uncompressed archive, on top.
    pub fn apply(&mut self, layer: impl Read) -> io::Result<()> {
        self.apply_within(layer, IMAGE_LIMIT)
    }

    fn apply_within(&mut self, layer: impl Read, limit: u64) -> io::Result<()> {
        let mut added = BTreeMap::new();
        let mut kept: u64 = self.nodes.iter().map(size).sum();
        let allowance = Cell::new(HEADER_LIMIT);
        let mut archive = tar::Archive::new(Rationed {
            inner: layer,
            allowance: &allowance,
        });
        for entry in archive.entries()? {
            let mut entry = entry?;
            // The next header is read after what is left of this file.
            allowance.set(stored(&mut entry)?.saturating_add(BLOCK + HEADER_LIMIT));
            let path = entry.path_bytes();
            if path.len() > PATH_LIMIT {
                return Err(io::Error::other(format!(
                    "one of its files has a path of more than {PATH_LIMIT} bytes"
                )));
            }
            let path = clean(&String::from_utf8_lossy(&path));
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if name == OPAQUE {
                kept -= self.forget_below(folder);
                continue;
            }
            if let Some(gone) = name.strip_prefix(WHITEOUT) {
                kept -= self.forget(&join(folder, gone));
                continue;
            }
            let kind = entry.header().entry_type();
            if kind.is_dir() {
                // What was a file becomes a folder; what was a folder keeps its contents.
                kept -= self.forget_file(&path);
                continue;
            }
            let node = match () {
                () if UNREAD.contains(&path.as_str()) => Some(Node::Unread),
                () if kind.is_file() && !is_wanted(&path) => {
                    let mode = entry.header().mode().unwrap_or_default();
                    let size = entry.size();
                    match mode & 0o111 {
                        0 => None,
                        _ => look_into(&mut entry, size)?.map(Node::Executable),
                    }
                }
                () if kind.is_hard_link() && !is_wanted(&path) => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = clean(&String::from_utf8_lossy(&target));
                    // It stays when a later layer deletes the other name.
                    let target = added.get(&target).or_else(|| self.nodes.get(&target));
                    target
                        .filter(|node| matches!(node, Node::Executable(_)))
                        .cloned()
                }
                () if !is_wanted(&path) => None,
                () if kind.is_symlink() => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target);
                    Some(Node::Link(match target.strip_prefix('/') {
                        Some(absolute) => clean(absolute),
                        None => clean(&join(folder, &target)),
                    }))
                }
                () if kind.is_hard_link() => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    Some(Node::Link(clean(&String::from_utf8_lossy(&target))))
                }
                () if kind.is_file() => Some(Node::Content(read_all(&mut entry, &path)?)),
                () => None,
            };
            kept -= self.forget(&path);
            let replaced = match node {
                Some(node) => {
                    kept += size((&path, &node));
                    added.insert(path.clone(), node)
                }
                None => added.remove(&path),
            };
            kept -= replaced.map_or(0, |node| size((&path, &node)));
            if kept > limit {
                return Err(io::Error::other(format!(
                    "what names its packages has more than {limit} bytes"
                )));
            }
        }
        self.nodes.extend(added);
        Ok(())
    }

    /// Takes out what lower layers have at this path. How much that was, in bytes.
    fn forget_file(&mut self, path: &str) -> u64 {
        let gone = self.nodes.remove_entry(path);
        gone.map_or(0, |(path, node)| size((&path, &node)))
    }

    /// Takes out what lower layers have below this path. How much that was, in bytes.
    fn forget_below(&mut self, folder: &str) -> u64 {
        let prefix = join(folder, "");
        let below = self.nodes.range(prefix.clone()..);
        let below = below.map(|(path, _)| path.clone());
        let below: Vec<String> = below.take_while(|path| path.starts_with(&prefix)).collect();
        below.iter().map(|path| self.forget_file(path)).sum()
    }

    /// Takes out what lower layers have at this path and below. How much that was, in bytes.
    fn forget(&mut self, path: &str) -> u64 {
        self.forget_file(path) + self.forget_below(path)
    }

    /// A file's content, through symbolic links.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        let mut path = path;
        for _ in 0..LINK_LIMIT {
            match self.nodes.get(path)? {
                Node::Content(bytes) => return Some(bytes),
                Node::Link(target) => path = target,
                Node::Executable(_) | Node::Unread => return None,
            }
        }
        None
    }

    /// The files of the distroless status folder, sorted.
    pub fn status_files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let below = self.nodes.keys().filter(|path| {
            // Beside each package's fields lies a list of its files.
            path.starts_with(STATUS_FOLDER) && !path.ends_with(".md5sums")
        });
        below.filter_map(|path| self.file(path).map(|bytes| (path.as_str(), bytes)))
    }

    /// The executables that say what they were built from, or why that cannot be read, sorted.
    pub fn executables(&self) -> impl Iterator<Item = (&str, &Result<Executable, String>)> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Executable(found) => Some((path.as_str(), found)),
            _ => None,
        })
    }

    /// Package databases that are there and are not read.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        let unread = |(path, node): (&'_ String, &Node)| {
            let lost = matches!(node, Node::Unread)
                || matches!(node, Node::Link(_)) && self.file(path).is_none();
            lost && !path.ends_with("os-release")
        };
        self.nodes
            .iter()
            .filter(move |(path, node)| unread((path, node)))
            .map(|(path, _)| path.as_str())
    }
}

/// What a file takes in memory, in bytes.
fn size((path, node): (&String, &Node)) -> u64 {
    let content = match node {
        Node::Content(bytes) => bytes.len(),
        Node::Link(target) => target.len(),
        Node::Executable(Ok(found)) => [&found.cargo, &found.go]
            .into_iter()
            .flatten()
            .map(Vec::len)
            .sum(),
        Node::Executable(Err(reason)) => reason.len(),
        Node::Unread => 0,
    };
    (path.len() + content) as u64
}

/// A reader that gives no more than it is allowed to: an archive's headers may be as long as whoever wrote them wants, and they
/// are read into memory whole.
struct Rationed<'a, R> {
    inner: R,
    allowance: &'a Cell<u64>,
}

impl<R: Read> Read for Rationed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!(
                "the names and attributes of one of its files have more than {HEADER_LIMIT} bytes"
            )));
        }
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self
            .inner
            .read(buffer.get_mut(..most).unwrap_or_default())?;
        self.allowance.set(left - count as u64);
        Ok(count)
    }
}

/// How many bytes of the archive an entry's content is, before padding.
fn stored<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<u64> {
    if !entry.header().entry_type().is_gnu_sparse() {
        return Ok(entry.size());
    }
    // The entry's own size counts holes, which are not there, and an attribute may contradict the header: the smallest is no
    // more than what is there.
    let mut least = entry.header().entry_size()?;
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let value = extension.value().unwrap_or_default().parse();
        if let (b"size", Ok(value)) = (extension.key_bytes(), value) {
            least = least.min(value);
        }
    }
    Ok(least)
}

fn is_wanted(path: &str) -> bool {
    FILES.contains(&path) || path.starts_with(STATUS_FOLDER)
}

/// What a file of `size` bytes says of what it was built from, or why that cannot be read; nothing if it says nothing.
fn look_into(file: &mut impl Read, size: u64) -> io::Result<Option<Result<Executable, String>>> {
    let mut start = Vec::new();
    let mut head = file.by_ref().take(elf::MAGIC.len() as u64);
    head.read_to_end(&mut start)?;
    if start != elf::MAGIC {
        return Ok(None);
    }
    if size > EXECUTABLE_LIMIT {
        let reason = format!("it has more than {EXECUTABLE_LIMIT} bytes");
        return Ok(Some(Err(reason)));
    }
    let mut whole = tempfile::spooled_tempfile(IN_MEMORY);
    io::copy(&mut start.as_slice().chain(file), &mut whole)?;
    whole.rewind()?;
    let wanted = [auditable::SECTION, gobuild::SECTION];
    Ok(match elf::sections(&mut whole, wanted, SECTION_LIMIT) {
        Ok([None, None]) => None,
        Ok([cargo, go]) => Some(Ok(Executable { cargo, go })),
        Err(error) => Some(Err(error.to_string())),
    })
}

fn read_all(entry: &mut impl Read, path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other(format!(
            "{path} has more than {FILE_LIMIT} bytes"
        )));
    }
    Ok(bytes)
}

/// A path from the root, without `.`, `..` and empty parts.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Item<'a> {
        Program(&'a str, &'a [u8]),
        HardLink(&'a str, &'a str),
        File(&'a str, &'a str),
        Folder(&'a str),
        Symlink(&'a str, &'a str),
    }
    use Item::{File, Folder, HardLink, Program, Symlink};

    fn layer(items: &[Item<'_>]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for item in items {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            match item {
                File(path, content) => {
                    header.set_size(content.len() as u64);
                    archive
                        .append_data(&mut header, path, content.as_bytes())
                        .unwrap();
                }
                Program(path, content) => {
                    header.set_mode(0o755);
                    header.set_size(content.len() as u64);
                    archive.append_data(&mut header, path, *content).unwrap();
                }
                HardLink(path, target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target).unwrap();
                }
                Folder(path) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    archive.append_data(&mut header, path, io::empty()).unwrap();
                }
                Symlink(path, target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target).unwrap();
                }
            }
        }
        archive.into_inner().unwrap()
    }

    fn image(layers: &[&[Item<'_>]]) -> RootFs {
        let mut image = RootFs::default();
        for items in layers {
            image.apply(layer(items).as_slice()).unwrap();
        }
        image
    }

    const STATUS: &str = "var/lib/dpkg/status";

    #[test]
    fn the_last_layer_counts() {
        let image = image(&[
            &[File("./var/lib/dpkg/status", "one"), File("bin/sh", "x")],
            &[File(STATUS, "two")],
            &[Folder("var/lib/dpkg")],
        ]);
        assert_eq!(image.file(STATUS), Some(b"two".as_slice()));
        assert_eq!(image.nodes.len(), 1);
    }

    #[test]
    fn whiteouts_delete_files_folders_and_contents_of_lower_layers_only() {
        let base: &[Item<'_>] = &[
            File(STATUS, "one"),
            File("var/lib/dpkg/status.d/a", "a"),
            File("lib/apk/db/installed", "x"),
        ];
        let gone = image(&[base, &[File("var/lib/dpkg/.wh.status", "")]]);
        assert_eq!(gone.file(STATUS), None);
        assert_eq!(gone.status_files().count(), 1);
        let gone = image(&[base, &[File("var/.wh.lib", "")]]);
        assert_eq!((gone.file(STATUS), gone.status_files().count()), (None, 0));
        assert!(gone.file("lib/apk/db/installed").is_some());
        // The order within a layer means nothing.
        for items in [
            [File("var/lib/dpkg/.wh..wh..opq", ""), File(STATUS, "two")],
            [File(STATUS, "two"), File("var/lib/dpkg/.wh..wh..opq", "")],
        ] {
            let kept = image(&[base, &items]);
            assert_eq!(kept.file(STATUS), Some(b"two".as_slice()));
            assert_eq!(kept.status_files().count(), 0);
        }
    }

    #[test]
    fn a_folder_that_becomes_a_file_takes_its_contents_along() {
        let base: &[Item<'_>] = &[File(STATUS, "one")];
        let replaced = image(&[base, &[Symlink("var/lib/dpkg", "elsewhere")]]);
        assert_eq!(replaced.file(STATUS), None);
    }

    #[test]
    fn symbolic_links_are_followed_and_circles_end() {
        let linked = image(&[&[
            Symlink("etc/os-release", "../usr/lib/os-release"),
            File("usr/lib/os-release", "ID=debian"),
        ]]);
        assert_eq!(linked.file("etc/os-release"), Some(b"ID=debian".as_slice()));
        let circle = image(&[&[
            Symlink("etc/os-release", "/usr/lib/os-release"),
            Symlink("usr/lib/os-release", "/etc/os-release"),
        ]]);
        assert_eq!(circle.file("etc/os-release"), None);
    }

    #[test]
    fn an_executable_stays_under_the_name_that_is_left() {
        let program = elf::tests::program(&[(auditable::SECTION, b"list")]);
        let both: &[Item<'_>] = &[
            Program("usr/bin/one", &program),
            HardLink("usr/bin/two", "usr/bin/one"),
            HardLink("usr/bin/none", "usr/bin/gone"),
        ];
        let names = |image: &RootFs| -> Vec<String> {
            image
                .executables()
                .map(|(path, _)| path.to_owned())
                .collect()
        };
        assert_eq!(names(&image(&[both])), ["usr/bin/one", "usr/bin/two"]);
        let left = image(&[both, &[File("usr/bin/.wh.one", "")]]);
        assert_eq!(names(&left), ["usr/bin/two"]);
        let lower: &[Item<'_>] = &[Program("usr/bin/one", &program)];
        let above = image(&[lower, &[HardLink("usr/bin/two", "usr/bin/one")]]);
        assert_eq!(names(&above), ["usr/bin/one", "usr/bin/two"]);
    }

    #[test]
    fn a_path_that_linux_does_not_open_is_an_error() {
        let path = "f/".repeat(PATH_LIMIT / 2);
        let mut image = RootFs::default();
        image
            .apply(layer(&[File(path.trim_end_matches('/'), "")]).as_slice())
            .unwrap();
        let longer = format!("{path}f");
        let error = image.apply(layer(&[File(&longer, "")]).as_slice());
        let said = error.unwrap_err().to_string();
        assert!(said.contains("more than 4096 bytes"), "{said}");
    }

    #[test]
    fn a_database_that_is_not_read_is_named() {
        let image = image(&[&[
            File("var/lib/rpm/rpmdb.sqlite", "SQLite"),
            Symlink(STATUS, "/somewhere/else"),
        ]]);
        assert_eq!(
            image.unread().collect::<Vec<_>>(),
            [STATUS, "var/lib/rpm/rpmdb.sqlite"]
        );
    }

    #[test]
    fn too_much_is_an_error_before_the_layer_ends() {
        let mut image = RootFs::default();
        // Names count as well.
        let limit = (STATUS.len() + "etc/os-release".len()) as u64 + 8;
        let lower = layer(&[File(STATUS, "12345")]);
        image.apply_within(lower.as_slice(), limit).unwrap();
        // Written twice counts once.
        let twice = layer(&[File("etc/os-release", "123"), File("etc/os-release", "123")]);
        image.apply_within(twice.as_slice(), limit).unwrap();
        let more = layer(&[
            File("var/lib/dpkg/status.d/a", "1"),
            File("b", "never read"),
        ]);
        // Cut off after the first file: whoever reads on meets another error.
        let error = image.apply_within(&more[..1024], limit).unwrap_err();
        let said = format!("more than {limit} bytes");
        assert!(error.to_string().contains(&said), "{error}");
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let whole = layer(&[File(STATUS, &"x".repeat(5000))]);
        let mut image = RootFs::default();
        assert!(image.apply(&whole[..2000]).is_err());
    }

    /// A header of `kind` that says that `size` bytes follow.
    fn header(kind: tar::EntryType, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_path("x").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    /// Counts what is read of something endless.
    struct Endless(u64);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert!(self.0 < 4 * HEADER_LIMIT, "it is read without end");
            buffer.fill(b'x');
            self.0 += buffer.len() as u64;
            Ok(buffer.len())
        }
    }

    #[test]
    fn a_name_without_end_is_an_error_before_it_fills_the_memory() {
        use tar::EntryType;
        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
        ] {
            // Also after a file whose content does not count.
            let before = layer(&[File("some/file", &"x".repeat(100_000))]);
            let before = &before[..before.len() - 1024];
            let endless = [before, &header(kind, u64::MAX >> 2)].concat();
            let mut image = RootFs::default();
            let error = image
                .apply(endless.as_slice().chain(Endless(0)))
                .unwrap_err();
            let said = format!("more than {HEADER_LIMIT} bytes");
            assert!(error.to_string().contains(&said), "{kind:?}: {error}");
        }
    }

    #[test]
    fn names_and_attributes_as_long_as_linux_allows_are_read() {
        let folder = format!("{}/", "f".repeat(250)).repeat(15);
        let mut archive = tar::Builder::new(Vec::new());
        let attribute = "x".repeat(64 * 1024);
        archive
            .append_pax_extensions([("SCHILY.xattr.user.a", attribute.as_bytes())])
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        let long = format!("{folder}file");
        archive
            .append_data(&mut header, &long, io::empty())
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        archive
            .append_data(&mut header, STATUS, b"one".as_slice())
            .unwrap();
        let mut image = RootFs::default();
        let bytes = archive.into_inner().unwrap();
        image.apply(bytes.as_slice()).unwrap();
        assert_eq!(image.file(STATUS), Some(b"one".as_slice()));
    }
}
