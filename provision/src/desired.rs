//! Files as they should be, compared with what is there: plan first, then write what differs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::system::{FileError, Files, sha256_hex};

/// The marker of a file that orch wrote and may therefore take away again.
const MARKER: &str = "# Written by orch-provision";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredFile {
    pub(crate) path: PathBuf,
    /// None: the file must not be there, unless somebody else wrote it.
    pub(crate) content: Option<String>,
    pub(crate) mode: u32,
}

/// A set of files that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DesiredFiles(Vec<DesiredFile>);

impl DesiredFiles {
    pub(crate) fn add(&mut self, path: impl Into<PathBuf>, content: String, mode: u32) {
        self.0.push(DesiredFile {
            path: path.into(),
            content: Some(content),
            mode,
        });
    }

    pub(crate) fn add_absent(&mut self, path: impl Into<PathBuf>) {
        self.0.push(DesiredFile {
            path: path.into(),
            content: None,
            mode: 0,
        });
    }

    /// SHA-256 by path, of what there should be: known before anything is written.
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        self.0
            .iter()
            .filter_map(|file| {
                let content = file.content.as_ref()?;
                Some((
                    file.path.display().to_string(),
                    sha256_hex(content.as_bytes()),
                ))
            })
            .collect()
    }

    /// What differs, as clauses for people; empty where all is well.
    pub(crate) fn differences(&self, files: &dyn Files) -> Result<Vec<String>, FileError> {
        let mut differences = Vec::new();
        for file in &self.0 {
            if let Some(problem) = file.difference(files)? {
                differences.push(format!("{} {problem}", file.path.display()));
            }
        }
        Ok(differences)
    }

    /// Writes what differs and nothing else.
    pub(crate) fn write(&self, files: &dyn Files) -> Result<(), FileError> {
        for file in &self.0 {
            if file.difference(files)?.is_none() {
                continue;
            }
            match &file.content {
                Some(content) => files.write(&file.path, content.as_bytes(), file.mode)?,
                None => files.remove(&file.path)?,
            }
        }
        Ok(())
    }
}

impl DesiredFile {
    fn difference(&self, files: &dyn Files) -> Result<Option<&'static str>, FileError> {
        let present = files.read(&self.path)?;
        Ok(match (&self.content, present) {
            (None, None) => None,
            (None, Some(present)) => present
                .starts_with(MARKER.as_bytes())
                .then_some("is no longer needed"),
            (Some(_), None) => Some("is missing"),
            (Some(content), Some(present)) if content.as_bytes() != present => Some("differs"),
            (Some(_), Some(_)) => {
                (files.mode(&self.path)? != Some(self.mode)).then_some("has another mode")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::MemoryFiles;

    #[test]
    fn only_what_differs_is_written() {
        let files = MemoryFiles::default();
        files.put("/same", "a", 0o600);
        files.put("/open", "b", 0o644);
        files.put("/ours", "# Written by orch-provision\n", 0o644);
        files.put("/theirs", "x", 0o644);
        let mut desired = DesiredFiles::default();
        desired.add("/same", "a".into(), 0o600);
        desired.add("/open", "b".into(), 0o600);
        desired.add("/new", "c".into(), 0o600);
        desired.add_absent("/ours");
        desired.add_absent("/theirs");
        assert_eq!(
            desired.differences(&files).unwrap(),
            [
                "/open has another mode",
                "/new is missing",
                "/ours is no longer needed"
            ]
        );
        desired.write(&files).unwrap();
        assert_eq!(files.take_writes(), [PathBuf::from("/open"), "/new".into()]);
        assert_eq!(desired.differences(&files).unwrap(), Vec::<String>::new());
        assert_eq!(files.text("/theirs").as_deref(), Some("x"));
        assert_eq!(files.text("/ours"), None);
    }
}
