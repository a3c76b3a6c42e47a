//! Mounts, as /proc/self/mountinfo lists them.

use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: String,
}

/// Reads /proc/self/mountinfo (proc(5)), in the order of mounting.
pub(crate) fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            Some(Mount {
                point: PathBuf::from(unescape(left.split(' ').nth(4)?)),
                kind: right.next()?.to_owned(),
                source: unescape(right.next()?),
            })
        })
        .collect()
}

/// The topmost mount exactly at a path.
pub(crate) fn mount_at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.point == path)
}

/// Blanks and backslashes are written as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        output.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                output.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                output.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    output.push_str(rest);
    output
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn points_kinds_and_sources_are_read() {
        let mounts = parse_mounts(
            "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n\
             37 35 0:50 / /var/lib/orch/volumes rw - nfs4 10.0.0.1:/x rw,vers=4.2\n",
        );
        assert_eq!(mounts[0].point, Path::new("/mnt/a b"));
        let found = mount_at(&mounts, Path::new("/var/lib/orch/volumes")).unwrap();
        assert_eq!(
            (found.kind.as_str(), found.source.as_str()),
            ("nfs4", "10.0.0.1:/x")
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,200}") {
            let _ = parse_mounts(&text);
            let _ = unescape(&text);
        }
    }
}
