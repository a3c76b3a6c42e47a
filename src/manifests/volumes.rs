//! The directories that a stack's PersistentVolumes expect on the nodes.
//!
//! A hostPath volume knows no owner, and a root init container is not allowed to give it one: the
//! annotation [`VOLUME_OWNER_ANNOTATION`] says whose the directory is, and the provisioner makes it.

use std::path::Path;

use orch_contract::VolumeDirectory;

use super::storage::SHARED_STORAGE_CLASS;
use super::{ManifestError, Stack};

/// `uid:gid` in decimal, on a PersistentVolume of class `orch-shared`.
pub const VOLUME_OWNER_ANNOTATION: &str = "orch.dev/volume-owner";

impl<State> Stack<State> {
    /// The directories below `root`, the one that the nodes share.
    pub fn volume_directories(&self, root: &Path) -> Result<Vec<VolumeDirectory>, ManifestError> {
        let mut directories = Vec::new();
        for manifest in self
            .manifests
            .iter()
            .filter(|m| m.kind == "PersistentVolume")
        {
            let object = &manifest.object;
            let annotation = &object["metadata"]["annotations"][VOLUME_OWNER_ANNOTATION];
            let shared = object["spec"]["storageClassName"] == SHARED_STORAGE_CLASS;
            let (true, Some(owner)) = (shared, annotation.as_str()) else {
                continue;
            };
            let volume = || manifest.name.clone();
            let parsed = owner
                .split_once(':')
                .and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
            let (uid, gid) = parsed.ok_or_else(|| ManifestError::VolumeOwner {
                origin: manifest.origin.clone(),
                volume: volume(),
                owner: owner.to_owned(),
            })?;
            let path = object["spec"]["hostPath"]["path"]
                .as_str()
                .unwrap_or_default();
            let relative =
                Path::new(path)
                    .strip_prefix(root)
                    .map_err(|_| ManifestError::VolumePath {
                        origin: manifest.origin.clone(),
                        volume: volume(),
                        root: root.to_owned(),
                    })?;
            directories.push(VolumeDirectory {
                path: relative.to_owned(),
                uid,
                gid,
            });
        }
        Ok(directories)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(text: &str) -> Result<Vec<VolumeDirectory>, ManifestError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("volume.yaml"), text).unwrap();
        Stack::load(folder.path())?.volume_directories(Path::new("/var/lib/orch/volumes"))
    }

    const VOLUME: &str = r#"
apiVersion: v1
kind: PersistentVolume
metadata:
  name: data
  annotations: {orch.dev/volume-owner: "999:998"}
spec:
  storageClassName: orch-shared
  hostPath: {path: /var/lib/orch/volumes/movies/data}
"#;

    #[test]
    fn path_and_owner_come_from_the_volume() {
        let wanted = VolumeDirectory {
            path: "movies/data".into(),
            uid: 999,
            gid: 998,
        };
        assert_eq!(directories(VOLUME).unwrap(), [wanted]);
    }

    #[test]
    fn another_class_is_somebody_elses() {
        assert_eq!(
            directories(&VOLUME.replace("orch-shared", "fast")).unwrap(),
            []
        );
    }

    #[test]
    fn an_owner_that_is_no_pair_of_numbers_names_the_file() {
        let error = directories(&VOLUME.replace("999:998", "postgres"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("volume.yaml"), "{error}");
        assert!(error.contains("postgres"), "{error}");
    }

    #[test]
    fn a_path_elsewhere_is_refused() {
        let error =
            directories(&VOLUME.replace("/var/lib/orch/volumes/movies", "/etc")).unwrap_err();
        assert!(
            error.to_string().contains("/var/lib/orch/volumes"),
            "{error}"
        );
    }
}
