//! Puts a bundle into a folder that is whole or absent: made beside its place, synced, then moved there.
//!
//! The images become one archive on the way, so that no blob is written twice.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::Digest as _;

use super::contents::{IMAGES, Member, PROJECT};
use super::read::{self, Announced, Visitor};
use super::tape::Tape;
use super::unpacked::{ARCHIVE, FOLDER, SUMS};
use super::write::Summed;
use super::{BundleError, CONTENTS, io};
use crate::progress::Progress;

/// Somebody who watches, and may end it.
pub struct Watch<'a> {
    pub progress: &'a dyn Progress,
    pub stop: &'a AtomicBool,
}

impl Watch<'_> {
    fn look(&self) -> Result<(), BundleError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(BundleError::Stopped);
        }
        Ok(())
    }
}

/// Reads a whole bundle and keeps nothing of it.
pub fn verify(bundle: &Path, watch: &Watch<'_>) -> Result<Announced, BundleError> {
    struct Passing<'a>(&'a Watch<'a>, Moved);
    impl Visitor for Passing<'_> {
        fn begin(&mut self, member: &Member) -> Result<(), BundleError> {
            self.1.member.clone_from(&member.path);
            Ok(())
        }
        fn data(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
            self.1.by(bytes.len(), self.0)
        }
        fn end(&mut self) -> Result<(), BundleError> {
            Ok(())
        }
    }
    let moved = Moved::of(&read::peek(bundle)?);
    read::read(bundle, &mut Passing(watch, moved))
}

/// Unpacks `bundle` into `target`, which must not exist or be empty.
pub fn unpack(bundle: &Path, target: &Path, watch: &Watch<'_>) -> Result<Announced, BundleError> {
    let announced = read::peek(bundle)?;
    // Two runs would work in the same partial folder.
    let held = File::open(bundle).map_err(io(format!("read {}", bundle.display())))?;
    match held.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Err(BundleError::InUse {
                bundle: bundle.to_owned(),
            });
        }
        Err(fs::TryLockError::Error(error)) => {
            return Err(io(format!("lock {}", bundle.display()))(error));
        }
    }
    let target = std::path::absolute(target).map_err(io(format!("find {}", target.display())))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let partial = target.with_file_name(format!(".{name}.orch-partial"));
    let making = || format!("make {}", partial.display());
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io(format!("remove {}", partial.display())))?;
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(io(format!("make {}", parent.display())))?;
    }
    // The state of the cluster will be in it, and the passwords of its Secrets.
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&partial)
        .map_err(io(making()))?;
    let made = fill(bundle, &partial, &announced, watch).and_then(|()| {
        fs::rename(&partial, &target)
            .and_then(|()| File::open(target.parent().unwrap_or(Path::new("/")))?.sync_all())
            .map_err(io(format!(
                "move the unpacked bundle to {}",
                target.display()
            )))
    });
    if let Err(error) = made {
        // The reason is the first error; what cannot be removed now is removed by the next run.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    Ok(announced)
}

fn fill(
    bundle: &Path,
    partial: &Path,
    announced: &Announced,
    watch: &Watch<'_>,
) -> Result<(), BundleError> {
    let folder = partial.join(FOLDER);
    fs::create_dir(&folder).map_err(io(format!("make {}", folder.display())))?;
    let archive = folder.join(ARCHIVE);
    let file = File::create_new(&archive).map_err(io(format!("write {}", archive.display())))?;
    let mut unpacking = Unpacking {
        partial,
        watch,
        moved: Moved::of(announced),
        archive: Tape::new(Summed::new(BufWriter::new(file))),
        current: None,
        sums: BTreeMap::new(),
    };
    // Read anew: the file may have become another one.
    let read = read::read(bundle, &mut unpacking)?;
    if read != *announced {
        return Err(BundleError::Changed {
            path: bundle.display().to_string(),
            reason: "it became another bundle".to_owned(),
        });
    }
    unpacking.finish(announced, &folder)
}

/// How far along the members are, in bytes.
struct Moved {
    member: String,
    done: u64,
    total: u64,
}

impl Moved {
    fn of(announced: &Announced) -> Self {
        let sizes = announced.contents.members.iter().map(|member| member.size);
        Self {
            member: String::new(),
            done: 0,
            total: sizes.fold(0, u64::saturating_add),
        }
    }

    fn by(&mut self, bytes: usize, watch: &Watch<'_>) -> Result<(), BundleError> {
        self.done = self.done.saturating_add(bytes as u64);
        watch
            .progress
            .bytes(&self.member, self.done, Some(self.total));
        watch.look()
    }
}

enum Current {
    /// A file of its own.
    File(PathBuf, BufWriter<File>),
    /// A part of the archive of images.
    Image,
}

struct Unpacking<'a> {
    partial: &'a Path,
    watch: &'a Watch<'a>,
    moved: Moved,
    archive: Tape<Summed<BufWriter<File>>>,
    current: Option<Current>,
    /// SHA-256 by path in [`FOLDER`].
    sums: BTreeMap<String, String>,
}

impl Visitor for Unpacking<'_> {
    fn begin(&mut self, member: &Member) -> Result<(), BundleError> {
        self.watch.look()?;
        self.moved.member.clone_from(&member.path);
        if let Some(name) = member.below(IMAGES) {
            self.current = Some(Current::Image);
            return self
                .archive
                .begin(name, member.size, false)
                .map_err(io(format!("write {ARCHIVE}")));
        }
        let path = match member.below(PROJECT) {
            Some(path) => self.partial.join(path),
            None => {
                self.sums.insert(member.path.clone(), member.sha256.clone());
                self.partial.join(FOLDER).join(&member.path)
            }
        };
        let writing = || format!("write {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io(writing()))?;
        }
        let file = File::create_new(&path).map_err(io(writing()))?;
        let mode = if member.executable { 0o755 } else { 0o644 };
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(io(writing()))?;
        self.current = Some(Current::File(path, BufWriter::new(file)));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        match &mut self.current {
            Some(Current::File(path, file)) => file
                .write_all(bytes)
                .map_err(io(format!("write {}", path.display())))?,
            Some(Current::Image) => self
                .archive
                .data(bytes)
                .map_err(io(format!("write {ARCHIVE}")))?,
            None => {}
        }
        self.moved.by(bytes.len(), self.watch)
    }

    fn end(&mut self) -> Result<(), BundleError> {
        match self.current.take() {
            Some(Current::File(path, file)) => {
                synced(file).map_err(io(format!("write {}", path.display())))
            }
            Some(Current::Image) => self.archive.end().map_err(io(format!("write {ARCHIVE}"))),
            None => Ok(()),
        }
    }
}

impl Unpacking<'_> {
    /// Closes the archive and writes down what everything hashes to.
    fn finish(mut self, announced: &Announced, folder: &Path) -> Result<(), BundleError> {
        let closing = || format!("write {ARCHIVE}");
        let archive = self.archive.finish().map_err(io(closing()))?;
        let sum = hex::encode(archive.hasher.finalize());
        synced(archive.inner).map_err(io(closing()))?;
        self.sums.insert(ARCHIVE.to_owned(), sum);
        self.sums.insert(CONTENTS.to_owned(), announced.id.clone());
        let lines = self
            .sums
            .iter()
            .map(|(name, sum)| format!("{sum}  {name}\n"));
        let text: String = lines.collect();
        for (name, bytes) in [
            (CONTENTS, announced.contents.to_bytes()),
            (SUMS, text.into_bytes()),
        ] {
            let path = folder.join(name);
            let write = || {
                let mut file = File::create_new(&path)?;
                file.write_all(&bytes)?;
                file.sync_all()
            };
            write().map_err(io(format!("write {}", path.display())))?;
        }
        self.watch.look()
    }
}

fn synced(file: BufWriter<File>) -> std::io::Result<()> {
    file.into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .sync_all()
}
