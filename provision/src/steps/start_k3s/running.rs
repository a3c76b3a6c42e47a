//! Whether the K3s that runs is the one that is installed.
//!
//! K3s's release binary unpacks itself into a directory below its data, named after its content, and runs from there;
//! `current` in it leads to the one that was unpacked last.

use std::path::Path;

use crate::k3s::paths;
use crate::system::{FileError, Files};

/// What the kernel adds to the path of a program whose file is gone.
const DELETED: &str = " (deleted)";

/// Why a process is not the installed K3s; None where it is, or where that cannot be seen.
pub(crate) fn other_program(files: &dyn Files, process: u32) -> Result<Option<String>, FileError> {
    let link = format!("/proc/{process}/exe");
    let link = Path::new(&link);
    // A container may not be allowed to look.
    let Ok(Some(program)) = files.link_target(link) else {
        return Ok(None);
    };
    let shown = program.display().to_string();
    if let Some(path) = shown.strip_suffix(DELETED) {
        return Ok(Some(format!(
            "runs (process {process}) from a {path} that was replaced or removed"
        )));
    }
    if program == Path::new(paths::BINARY) {
        return Ok(None);
    }
    if let Ok(rest) = program.strip_prefix(paths::UNPACKED) {
        let running = rest.components().next();
        let current = files.link_target(&Path::new(paths::UNPACKED).join("current"))?;
        let is_current = match &current {
            Some(current) => current.components().next_back() == running,
            None => true,
        };
        return Ok((!is_current).then(|| {
            format!("runs (process {process}) from {shown}, and another K3s was unpacked since")
        }));
    }
    let same = files.sha256(link)? == files.sha256(Path::new(paths::BINARY))?;
    Ok((!same).then(|| format!("runs (process {process}) from {shown}, which is another program")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::MemoryFiles;

    fn seen(program: &str, current: Option<&str>) -> Option<String> {
        let files = MemoryFiles::with(&[("/usr/local/bin/k3s", "K3S"), ("/opt/same", "K3S")]);
        files.put("/opt/other", "OTHER", 0o755);
        let link = |target: &str, path: &str| files.symlink(Path::new(target), Path::new(path));
        link(program, "/proc/7/exe").unwrap();
        if let Some(current) = current {
            link(current, "/var/lib/rancher/k3s/data/current").unwrap();
        }
        other_program(&files, 7).unwrap()
    }

    #[test]
    fn the_program_on_disk_its_copy_and_what_it_unpacked_are_the_same() {
        let unpacked = "/var/lib/rancher/k3s/data/abc/bin/k3s";
        assert_eq!(seen("/usr/local/bin/k3s", None), None);
        assert_eq!(seen("/opt/same", None), None);
        assert_eq!(seen(unpacked, None), None);
        assert_eq!(seen(unpacked, Some("/var/lib/rancher/k3s/data/abc")), None);
    }

    #[test]
    fn another_one_is_told_with_its_reason() {
        let seen = |program, current| seen(program, current).unwrap();
        let replaced = seen("/usr/local/bin/k3s (deleted)", None);
        assert!(replaced.contains("was replaced"), "{replaced}");
        assert!(seen("/opt/other", None).contains("another program"));
        let unpacked = seen("/var/lib/rancher/k3s/data/abc/bin/k3s", Some("def"));
        assert!(unpacked.contains("unpacked since"), "{unpacked}");
    }

    #[test]
    fn what_cannot_be_seen_is_no_drift() {
        assert_eq!(other_program(&MemoryFiles::default(), 7).unwrap(), None);
    }
}
