//! Files as they should be, compared with what is there: plan first, then write what differs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use orch_contract::{Action, Change, Subject};

use crate::difference::{View, difference};
use crate::system::{FileError, Files, sha256_hex};

/// The marker of a file that orch wrote and may therefore take away again.
pub(crate) const MARKER: &str = "# Written by orch-provision";

/// One file.
#[derive(Debug, Clone)]
struct DesiredFile {
    path: PathBuf,
    /// None: the file must not be there, unless somebody else wrote it.
    content: Option<String>,
    mode: u32,
    view: View,
}

/// How a file differs from what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    NotNeeded,
    Missing,
    Content,
    Mode(u32),
}

/// A set of files that belong together.
#[derive(Debug, Clone, Default)]
pub(crate) struct DesiredFiles(Vec<DesiredFile>);

impl DesiredFiles {
    /// A file that is for everybody's eyes, or else one whose content no report shows.
    pub(crate) fn add(&mut self, path: impl Into<PathBuf>, content: String, mode: u32) {
        let view = if mode & 0o077 == 0 {
            View::Hidden
        } else {
            View::Open
        };
        self.add_viewed(path, content, mode, view);
    }

    /// A file of which reports show what its view allows.
    pub(crate) fn add_viewed(
        &mut self,
        path: impl Into<PathBuf>,
        content: String,
        mode: u32,
        view: View,
    ) {
        self.0.push(DesiredFile {
            path: path.into(),
            content: Some(content),
            mode,
            view,
        });
    }

    pub(crate) fn add_absent(&mut self, path: impl Into<PathBuf>) {
        self.0.push(DesiredFile {
            path: path.into(),
            content: None,
            mode: 0,
            view: View::Hidden,
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

    /// What differs, and how; empty where all is well.
    pub(crate) fn changes(&self, files: &dyn Files) -> Result<Vec<Change>, FileError> {
        let mut changes = Vec::new();
        for file in &self.0 {
            let present = files.read(&file.path)?;
            if let Some(found) = file.difference(files, present.as_deref())? {
                changes.push(file.change(found, present.as_deref()));
            }
        }
        Ok(changes)
    }

    /// The files whose content differs: whoever read them has read something else.
    pub(crate) fn other_content(&self, files: &dyn Files) -> Result<Vec<String>, FileError> {
        let mut paths = Vec::new();
        for file in &self.0 {
            let present = files.read(&file.path)?;
            match file.difference(files, present.as_deref())? {
                None | Some(Difference::Mode(_)) => {}
                Some(_) => paths.push(file.path.display().to_string()),
            }
        }
        Ok(paths)
    }

    /// Writes what differs and nothing else.
    pub(crate) fn write(&self, files: &dyn Files) -> Result<(), FileError> {
        for file in &self.0 {
            let present = files.read(&file.path)?;
            if file.difference(files, present.as_deref())?.is_none() {
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
    fn difference(
        &self,
        files: &dyn Files,
        present: Option<&[u8]>,
    ) -> Result<Option<Difference>, FileError> {
        Ok(match (&self.content, present) {
            (None, None) => None,
            (None, Some(present)) => present
                .starts_with(MARKER.as_bytes())
                .then_some(Difference::NotNeeded),
            (Some(_), None) => Some(Difference::Missing),
            (Some(content), Some(present)) if content.as_bytes() != present => {
                Some(Difference::Content)
            }
            (Some(_), Some(_)) => files
                .mode(&self.path)?
                .filter(|mode| *mode != self.mode)
                .map(Difference::Mode),
        })
    }

    fn change(&self, found: Difference, present: Option<&[u8]>) -> Change {
        let (action, detail) = match found {
            Difference::NotNeeded => (Action::Remove, "is no longer needed".to_owned()),
            Difference::Missing => (Action::Create, "is missing".to_owned()),
            Difference::Content => (Action::Update, "differs".to_owned()),
            Difference::Mode(mode) => (
                Action::Update,
                format!("has mode {mode:04o}, not {:04o}", self.mode),
            ),
        };
        let diff = match found {
            Difference::Missing | Difference::Content => {
                difference(self.view, present, self.content.as_deref())
            }
            Difference::NotNeeded | Difference::Mode(_) => Vec::new(),
        };
        Change::new(
            Subject::File,
            self.path.display().to_string(),
            action,
            detail,
        )
        .with_diff(diff)
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
        files.put("/edited", "x\n", 0o644);
        let mut desired = DesiredFiles::default();
        desired.add("/same", "a".into(), 0o600);
        desired.add("/open", "b".into(), 0o600);
        desired.add("/new", "c".into(), 0o600);
        desired.add("/edited", "y\n".into(), 0o644);
        desired.add_absent("/ours");
        desired.add_absent("/theirs");
        let changes = desired.changes(&files).unwrap();
        let said: Vec<String> = changes
            .iter()
            .map(|change| format!("{}: {} {}", change.action, change.name, change.detail))
            .collect();
        assert_eq!(
            said,
            [
                "update: /open has mode 0644, not 0600",
                "create: /new is missing",
                "update: /edited differs",
                "remove: /ours is no longer needed"
            ]
        );
        assert_eq!(changes[2].diff, ["@@ -1 +1 @@", "-x", "+y"]);
        assert_eq!(
            desired.other_content(&files).unwrap(),
            ["/new", "/edited", "/ours"]
        );
        desired.write(&files).unwrap();
        assert_eq!(
            files.take_writes(),
            ["/open", "/new", "/edited"].map(PathBuf::from)
        );
        assert_eq!(desired.changes(&files).unwrap(), []);
        assert_eq!(files.text("/theirs").as_deref(), Some("x"));
        assert_eq!(files.text("/ours"), None);
    }
}
