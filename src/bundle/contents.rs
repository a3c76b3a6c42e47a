//! `bundle.json`: what a bundle holds, and which names may be in one.
//!
//! A reader takes this list for the truth about all that follows, so it is checked before anything else: names that stay where
//! they belong, no name twice, every image whole.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{layout, unpacked};

/// Version of the format.
pub const SCHEMA: u64 = 1;

/// The folders of a bundle: K3s's release assets, programs, images, the project.
pub const K3S: &str = "k3s";
/// Programs: the provisioner, and orch itself where it runs anywhere.
pub const PROGRAMS: &str = "bin";
/// An OCI image layout.
pub const IMAGES: &str = "images";
/// `orch.yaml` and what it names.
pub const PROJECT: &str = "project";

/// A tar header without extensions holds no more of a path.
const LONGEST_PATH: usize = 200;

/// What is in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// [`SCHEMA`].
    pub schema: u64,
    /// The orch that made it.
    pub orch: String,
    /// The cluster that it is for.
    pub cluster: String,
    /// What its nodes must be, such as `linux/amd64`.
    pub platform: String,
    pub k3s: K3s,
    pub images: Vec<Image>,
    /// Images that the manifests name without a digest, as somebody allowed: they are not in it.
    pub kept: Vec<String>,
    /// What is not in it and why.
    pub left_out: Vec<String>,
    /// All that follows, in this order.
    pub members: Vec<Member>,
}

/// Which K3s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct K3s {
    pub version: String,
    /// It is not K3s but orch's stand-in for it.
    pub standin: bool,
}

/// An image as manifests name it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// With its registry, such as `docker.io/me/app`.
    pub repository: String,
    pub tag: Option<String>,
    /// Of its manifest or index, `sha256:...`.
    pub digest: String,
    pub media_type: String,
    /// Bytes of that manifest or index.
    pub size: u64,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub path: String,
    pub size: u64,
    pub sha256: String,
    pub executable: bool,
}

impl Member {
    /// The name inside a folder of the bundle.
    pub fn below(&self, folder: &str) -> Option<&str> {
        self.path.strip_prefix(folder)?.strip_prefix('/')
    }
}

impl Contents {
    /// The bytes of `bundle.json`; equal contents give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Plain data always serialises.
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Whether a reader takes it; says which entry it would refuse, and why.
    pub fn check(&self) -> Result<(), (String, String)> {
        let mut known = BTreeSet::new();
        let mut last: Option<&str> = None;
        for member in &self.members {
            let refused = |reason: &str| Err((member.path.clone(), reason.to_owned()));
            if let Err(reason) = check_path(&member.path) {
                return refused(reason);
            }
            if last.is_some_and(|last| last >= member.path.as_str()) {
                return refused("the list is not in order, or has it twice");
            }
            last = Some(&member.path);
            let mut folder = member.path.as_str();
            while let Some((parent, _)) = folder.rsplit_once('/') {
                if known.contains(parent) {
                    return refused("lies below a file");
                }
                folder = parent;
            }
            known.insert(member.path.as_str());
            if !is_sha256(&member.sha256) {
                return refused("its checksum is not 64 hexadecimal digits in lower case");
            }
            if let Some(name) = member.below(IMAGES)
                && let Err(reason) = layout::check_member(name, member, self)
            {
                return refused(&reason);
            }
        }
        let holds = |path: &str| known.contains(path);
        for image in &self.images {
            let refused = |reason: &str| Err((layout::name(image), reason.to_owned()));
            let hex = image.digest.strip_prefix("sha256:").unwrap_or_default();
            if !is_sha256(hex) {
                return refused("its digest is not sha256: with 64 hexadecimal digits");
            }
            if !holds(&format!("{IMAGES}/{}", layout::blob(hex))) {
                return refused("its manifest is missing");
            }
        }
        for needed in [layout::MARKER, layout::INDEX] {
            let path = format!("{IMAGES}/{needed}");
            if !holds(&path) {
                return Err((path, "is missing".to_owned()));
            }
        }
        for needed in ["project/orch.yaml", "bin/orch-provision"] {
            if !holds(needed) {
                return Err((needed.to_owned(), "is missing".to_owned()));
            }
        }
        let is_name = |name: &str| {
            let mut bytes = name.bytes();
            !name.is_empty()
                && name.len() <= 63
                && bytes
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        // It becomes a folder's name.
        if !is_name(&self.cluster) {
            return Err((
                format!("cluster {:?}", self.cluster),
                "is no cluster's name".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Whether a member may have this path.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > LONGEST_PATH {
        return Err("its path is longer than 200 bytes");
    }
    if path
        .chars()
        .any(|character| character.is_control() || character == '\\')
    {
        return Err("its path has control characters or a backslash");
    }
    let parts: Vec<&str> = path.split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return Err("its path does not stay in the bundle");
    }
    // The state of clusters and their keys are in hidden folders, and nothing that belongs into a bundle is hidden.
    if parts.iter().any(|part| part.starts_with('.')) {
        return Err("its path is hidden");
    }
    match parts.as_slice() {
        // That one is made when the bundle is unpacked.
        [PROJECT, unpacked::FOLDER, ..] => Err("its path is that of an unpacked bundle"),
        [K3S | PROGRAMS, _] | [IMAGES | PROJECT, _, ..] => Ok(()),
        _ => Err("its path is none that a bundle has"),
    }
}

/// 64 hexadecimal digits in lower case.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[path = "contents_tests.rs"]
mod tests;
