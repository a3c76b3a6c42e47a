//! What has to travel to a node: compared by SHA-256, so that what is there already stays where it is.
//!
//! Hashing K3s and its images takes a node longer than everything else of a run that changes nothing. What was hashed once is
//! remembered on the node by inode, size and change time, which every write to a file moves.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use orch_contract::node_paths;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Delivery, Host, NodeError, SharedFile};
use crate::remote::PrivateFile;

/// A file that a node lacks, or has otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// Where it goes.
    pub path: String,
    /// It is there, with another content or mode.
    pub replaces: bool,
}

impl fmt::Display for Parcel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.replaces {
            "differs"
        } else {
            "is missing"
        };
        write!(formatter, "{} {how}", self.path)
    }
}

/// Everything that one node must have.
pub(super) struct Load {
    /// Shared files by where they go, with their mode.
    pub(super) shared: Vec<(String, SharedFile, u32)>,
    /// This node's own files by name; they go to `/etc/orch` with mode 0600.
    pub(super) private: Vec<PrivateFile>,
}

/// A file as it is on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Present {
    sha256: String,
    mode: u32,
    is_root: bool,
}

/// A node's answer to [`SURVEY`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Survey(BTreeMap<String, Present>);

/// Prints `sha256 mode owner path` for every file in `$2...` that exists. With `$1` = record it keeps what it hashed in
/// [`SUMS`]; otherwise it changes nothing. Needs a POSIX shell, stat and sha256sum.
pub(super) const SURVEY: &str = r#"
record=$1; sums=$2; shift 2; kept=
for file in "$@"; do
    key=$(stat -L -c '%d:%i:%s:%.9Z' -- "$file" 2>/dev/null) || continue
    sum=$(grep -s "^$key " "$sums" | tail -n 1 | cut -d' ' -f2)
    if [ "${#sum}" != 64 ]; then
        sum=$(sha256sum < "$file") || exit 1
        sum=${sum%% *}
    fi
    kept="$kept$key $sum
"
    printf '%s %s %s\n' "$sum" "$(stat -L -c '%a %u' -- "$file")" "$file"
done
if [ "$record" = record ] && [ -d "${sums%/*}" ] && [ "$kept" != "$(cat "$sums" 2>/dev/null)
" ]; then
    umask 077
    printf %s "$kept" > "$sums.new" && mv -f "$sums.new" "$sums"
fi
"#;

/// Where a node remembers what it hashed.
pub(super) const SUMS: &str = "/var/lib/orch/uploads.sums";

impl Load {
    pub(super) fn read(host: &Host, delivery: &Delivery) -> Result<Self, NodeError> {
        let artifacts = delivery.artifacts.iter().map(|file| {
            let path = format!("{}/{}", node_paths::ARTIFACTS, file_name(&file.path));
            (path, file.clone(), mode_of(&file.path))
        });
        let mut load = Self::provisioner_only(delivery);
        load.shared.extend(artifacts);
        load.private = own_files(host)?;
        Ok(load)
    }

    /// The keys with which the node joins, or lets others join.
    pub(super) fn keys(host: &Host) -> Result<Self, NodeError> {
        let mut private = own_files(host)?;
        let configuration = Path::new(node_paths::NODE_CONFIG).file_name();
        private.retain(|file| configuration != Some(file.name.as_ref()));
        Ok(Self {
            shared: Vec::new(),
            private,
        })
    }

    /// Enough to take a node out of its cluster.
    pub(super) fn provisioner_only(delivery: &Delivery) -> Self {
        let path = node_paths::PROVISIONER.to_owned();
        Self {
            shared: vec![(path, delivery.provisioner.clone(), 0o755)],
            private: Vec::new(),
        }
    }

    /// Every path that the survey has to look at.
    pub(super) fn paths(&self) -> Vec<String> {
        let shared = self.shared.iter().map(|(path, ..)| path.clone());
        let private = self.private.iter().map(|file| private_path(&file.name));
        shared.chain(private).collect()
    }

    /// The shared files that the node lacks.
    pub(super) fn missing_shared(&self, survey: &Survey) -> Vec<&(String, SharedFile, u32)> {
        let lacks = |(path, file, mode): &&(String, SharedFile, u32)| {
            survey.0.get(path).is_none_or(|present| {
                present.sha256 != file.sha256 || present.mode != *mode || !present.is_root
            })
        };
        self.shared.iter().filter(lacks).collect()
    }

    pub(super) fn parcels(&self, survey: &Survey) -> Vec<Parcel> {
        let shared = self
            .missing_shared(survey)
            .into_iter()
            .map(|(path, ..)| path.clone());
        let private = self.private.iter().filter(|file| survey.lacks(file));
        shared
            .chain(private.map(|file| private_path(&file.name)))
            .map(|path| Parcel {
                replaces: survey.0.contains_key(&path),
                path,
            })
            .collect()
    }

    /// Whether the node has the very provisioner that is to run.
    pub(super) fn has_provisioner(&self, survey: &Survey) -> bool {
        let mut missing = self.missing_shared(survey).into_iter();
        missing.all(|(path, ..)| path != node_paths::PROVISIONER)
    }
}

impl Survey {
    /// Whether the node lacks this file of its own.
    pub(super) fn lacks(&self, file: &PrivateFile) -> bool {
        self.0.get(&private_path(&file.name)).is_none_or(|present| {
            present.sha256 != hex::encode(Sha256::digest(file.content.as_slice()))
                || present.mode != 0o600
                || !present.is_root
        })
    }

    /// Reads what [`SURVEY`] printed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut files = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let mut fields = line.splitn(4, ' ');
            let mut next = || fields.next().unwrap_or_default();
            let (sha256, mode, owner, path) = (next(), next(), next(), next());
            let is_sum = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
            let mode = u32::from_str_radix(mode, 8);
            let (true, Ok(mode), true) = (is_sum, mode, path.starts_with('/')) else {
                return Err(format!(
                    "{line:?} instead of a file's sum, mode, owner and path"
                ));
            };
            let present = Present {
                sha256: sha256.to_owned(),
                mode,
                is_root: owner == "0",
            };
            files.insert(path.to_owned(), present);
        }
        Ok(Self(files))
    }
}

/// What is in the node's folder, in the order of its names.
fn own_files(host: &Host) -> Result<Vec<PrivateFile>, NodeError> {
    let local = |path: &Path| {
        let (node, path) = (host.name.clone(), path.to_owned());
        move |source| NodeError::Local { node, path, source }
    };
    let mut private = Vec::new();
    for entry in std::fs::read_dir(&host.folder).map_err(local(&host.folder))? {
        let path = entry.map_err(local(&host.folder))?.path();
        let bytes = std::fs::read(&path)
            .map(Zeroizing::new)
            .map_err(local(&path))?;
        private.push(PrivateFile {
            name: file_name(&path),
            content: bytes,
        });
    }
    private.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(private)
}

fn private_path(name: &str) -> String {
    format!("{}/{name}", node_paths::CONFIG_DIRECTORY)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn mode_of(path: &PathBuf) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    let is_program =
        std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o111 != 0);
    if is_program { 0o755 } else { 0o644 }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    fn survey(record: &str, sums: &Path, files: &[&Path]) -> String {
        let output = Command::new("sh")
            .args(["-c", SURVEY, "orch", record])
            .arg(sums)
            .args(files)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_survey_says_what_is_there_and_remembers_only_when_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let (file, none) = (folder.path().join("a file"), folder.path().join("none"));
        let sums = folder.path().join("sums");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let expected = hex::encode(Sha256::digest(b"x"));
        let text = survey("look", &sums, &[&file, &none]);
        assert!(!sums.exists());
        let parsed = Survey::parse(&text).unwrap();
        let present = &parsed.0[file.to_str().unwrap()];
        assert_eq!(
            (present.sha256.as_str(), present.mode),
            (expected.as_str(), 0o640)
        );
        assert_eq!(parsed.0.len(), 1);
        assert_eq!(survey("record", &sums, &[&file]), text);
        let kept = std::fs::read_to_string(&sums).unwrap();
        assert!(kept.contains(&expected), "{kept}");
        // What is remembered is believed, as long as the file is the same one.
        let other = "ab".repeat(32);
        std::fs::write(&sums, kept.replace(&expected, &other)).unwrap();
        assert!(survey("look", &sums, &[&file]).starts_with(&other));
        std::fs::write(&file, "longer").unwrap();
        let text = survey("record", &sums, &[&file]);
        assert!(
            text.starts_with(&hex::encode(Sha256::digest(b"longer"))),
            "{text}"
        );
        assert!(!std::fs::read_to_string(&sums).unwrap().contains(&other));
    }

    #[test]
    fn an_answer_that_is_none_is_refused() {
        for text in ["sudo: command not found", "abc 600 0 /x", "/x"] {
            assert!(Survey::parse(text).is_err(), "{text}");
        }
        let sum = "0".repeat(64);
        assert!(Survey::parse(&format!("{sum} 9 0 /x")).is_err());
        assert!(Survey::parse(&format!("{sum} 600 0 x")).is_err());
        assert_eq!(Survey::parse("").unwrap(), Survey::default());
    }

    #[test]
    fn only_what_differs_travels() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("node")).unwrap();
        std::fs::write(path("node/node.json"), "{}").unwrap();
        std::fs::write(path("node/join_client_key"), "key").unwrap();
        std::fs::write(path("k3s"), "K3S").unwrap();
        let file = |name: &str, sum: &str| SharedFile {
            path: path(name),
            sha256: sum.repeat(64),
        };
        let host = Host {
            name: "a".to_owned(),
            role: orch_contract::Role::Agent,
            folder: path("node"),
            wanted: crate::remote::Wanted::default(),
        };
        let delivery = Delivery {
            provisioner: file("orch-provision", "1"),
            artifacts: vec![file("k3s", "2")],
        };
        let keys = Load::keys(&host).unwrap();
        assert_eq!(keys.paths(), ["/etc/orch/join_client_key"]);
        let load = Load::read(&host, &delivery).unwrap();
        let all: Vec<_> = load
            .parcels(&Survey::default())
            .iter()
            .map(Parcel::to_string)
            .collect();
        assert_eq!(
            all,
            [
                "/usr/local/bin/orch-provision is missing",
                "/var/lib/orch/artifacts/k3s is missing",
                "/etc/orch/join_client_key is missing",
                "/etc/orch/node.json is missing"
            ]
        );
        let line = |sum: &str, mode: &str, path: &str| format!("{sum} {mode} 0 {path}\n");
        let json = hex::encode(Sha256::digest(b"{}"));
        let key = hex::encode(Sha256::digest(b"key"));
        let text = [
            line(&"1".repeat(64), "755", "/usr/local/bin/orch-provision"),
            line(&"3".repeat(64), "644", "/var/lib/orch/artifacts/k3s"),
            line(&json, "600", "/etc/orch/node.json"),
            line(&key, "644", "/etc/orch/join_client_key"),
        ];
        let survey = Survey::parse(&text.concat()).unwrap();
        assert!(load.has_provisioner(&survey));
        let some: Vec<_> = load
            .parcels(&survey)
            .iter()
            .map(Parcel::to_string)
            .collect();
        assert_eq!(
            some,
            [
                "/var/lib/orch/artifacts/k3s differs",
                "/etc/orch/join_client_key differs"
            ]
        );
    }
}
