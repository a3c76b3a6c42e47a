//! Git as garbage collection asks it: which commits somebody may go back to, and where they are checked out.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::GcError;

/// A commit and what people call it.
pub(super) type Commit = (String, String);

/// A repository, asked from its top folder.
pub(super) struct Git {
    pub(super) folder: PathBuf,
}

/// What git answered.
pub(super) struct Output {
    pub(super) code: Option<i32>,
    pub(super) stdout: Vec<u8>,
    pub(super) reason: String,
}

impl Git {
    pub(super) async fn open(root: &Path) -> Result<Self, GcError> {
        let git = Self {
            folder: root.to_owned(),
        };
        let top = git.run(&["rev-parse", "--show-toplevel"], b"").await?;
        if top.code != Some(0) {
            return Err(GcError::NoGit {
                root: root.to_owned(),
                reason: top.reason,
            });
        }
        let shallow = git.lines(&["rev-parse", "--is-shallow-repository"]).await?;
        if shallow.first().is_some_and(|answer| answer == "true") {
            return Err(GcError::Shallow {
                root: root.to_owned(),
            });
        }
        let folder = String::from_utf8_lossy(&top.stdout)
            .trim_end_matches('\n')
            .into();
        Ok(Self { folder })
    }

    /// All refs (branches, those of remotes, tags, notes), stashes, and what is checked out anywhere.
    pub(super) async fn commits(&self) -> Result<Vec<Commit>, GcError> {
        let mut commits = Vec::new();
        let refs = ["for-each-ref", "--format=%(objectname) %(refname:short)"];
        for line in self.lines(&refs).await? {
            if let Some((id, name)) = line.split_once(' ') {
                commits.push((id.to_owned(), name.to_owned()));
            }
        }
        // Empty where nothing was ever stashed.
        for line in self.lines(&["stash", "list", "--format=%H %P"]).await? {
            let ids = line.split(' ');
            commits.extend(ids.map(|id| (id.to_owned(), "a stash".to_owned())));
        }
        for line in self.lines(&["worktree", "list", "--porcelain"]).await? {
            if let Some(id) = line.strip_prefix("HEAD ") {
                commits.push((id.to_owned(), "HEAD".to_owned()));
            }
        }
        Ok(commits)
    }

    /// The folders in which this repository is checked out.
    pub(super) async fn worktrees(&self) -> Result<Vec<PathBuf>, GcError> {
        let lines = self.lines(&["worktree", "list", "--porcelain"]).await?;
        let mut folders: Vec<PathBuf> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("worktree "))
            .map(PathBuf::from)
            // One that was deleted by hand is still listed.
            .filter(|folder| folder.join(".git").exists())
            .collect();
        // In a submodule, or with git's own files kept elsewhere, the list has the folder of those instead.
        if !folders.contains(&self.folder) {
            folders.push(self.folder.clone());
        }
        Ok(folders)
    }

    /// The branches and tags of a remote, all of which must be here.
    pub(super) async fn remote(&self, remote: &str) -> Result<Vec<Commit>, GcError> {
        let arguments = ["ls-remote", "--quiet", "--heads", "--tags", "--", remote];
        let output = self.run(&arguments, b"").await?;
        if output.code != Some(0) {
            return Err(GcError::Remote {
                remote: remote.to_owned(),
                reason: output.reason,
            });
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        let commits: Vec<Commit> = listed
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(id, name)| (id.to_owned(), format!("{remote} {name}")))
            .collect();
        for ((_, name), kind) in commits.iter().zip(self.kinds(&commits, "").await?) {
            if kind.is_none() {
                return Err(GcError::Behind {
                    remote: remote.to_owned(),
                    branch: name
                        .strip_prefix(remote)
                        .unwrap_or(name)
                        .trim_start()
                        .to_owned(),
                });
            }
        }
        Ok(commits)
    }

    /// The ID that each object has with `suffix`, or nothing if it is not here.
    async fn kinds(
        &self,
        commits: &[Commit],
        suffix: &str,
    ) -> Result<Vec<Option<String>>, GcError> {
        let input: String = commits
            .iter()
            .map(|(id, _)| format!("{id}{suffix}\n"))
            .collect();
        let arguments = ["cat-file", "--batch-check=%(objectname)"];
        let output = self.checked(&arguments, input.as_bytes()).await?;
        Ok(String::from_utf8_lossy(&output)
            .lines()
            .map(|line| (!line.ends_with(" missing")).then(|| line.to_owned()))
            .collect())
    }

    /// The trees of commits, each once, and who has it. What has none, such as a tag on a file, names no images.
    pub(super) async fn trees(&self, commits: &[Commit]) -> Result<Vec<Commit>, GcError> {
        let mut seen = std::collections::BTreeSet::new();
        let kinds = self.kinds(commits, "^{tree}").await?;
        let trees = commits
            .iter()
            .zip(kinds)
            .filter_map(|((_, name), tree)| Some((tree?, name.clone())))
            .filter(|(tree, _)| seen.insert(tree.clone()))
            .collect();
        Ok(trees)
    }

    /// The versions that a file has had, by ID, in all that led to `commits`.
    pub(super) async fn versions(
        &self,
        commits: &[Commit],
        path: &str,
    ) -> Result<Vec<String>, GcError> {
        let commits = self.kinds(commits, "^{commit}").await?;
        let input: String = commits
            .iter()
            .flatten()
            .map(|id| format!("{id}\n"))
            .collect();
        if input.is_empty() {
            return Ok(Vec::new());
        }
        let literal = format!(":(literal){path}");
        let options = ["rev-list", "--full-history", "--objects", "--stdin"];
        let arguments = [&options[..], &["--", &literal]].concat();
        let output = self.checked(&arguments, input.as_bytes()).await?;
        let lines = String::from_utf8_lossy(&output);
        let versions = lines.lines().filter_map(|line| line.split_once(' '));
        Ok(versions
            .filter(|(_, name)| *name == path)
            .map(|(id, _)| id.to_owned())
            .collect())
    }

    /// What is in files of these IDs.
    pub(super) async fn contents(&self, ids: &[String]) -> Result<Vec<Vec<u8>>, GcError> {
        let input: String = ids.iter().map(|id| format!("{id}\n")).collect();
        let output = self
            .checked(&["cat-file", "--batch"], input.as_bytes())
            .await?;
        let mut contents = Vec::with_capacity(ids.len());
        let mut rest = output.as_slice();
        // Each file follows a line `ID TYPE SIZE`.
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at(end + 1);
            let head = String::from_utf8_lossy(head);
            let size = head.trim_end().rsplit(' ').next();
            let size = size.and_then(|size| size.parse::<usize>().ok());
            let Some((content, after)) = size.and_then(|size| tail.split_at_checked(size)) else {
                return Err(GcError::Git {
                    command: "cat-file --batch".to_owned(),
                    folder: self.folder.clone(),
                    reason: head.trim_end().to_owned(),
                });
            };
            contents.push(content.to_owned());
            rest = after.strip_prefix(b"\n").unwrap_or(after);
        }
        Ok(contents)
    }

    pub(super) async fn lines(&self, arguments: &[&str]) -> Result<Vec<String>, GcError> {
        let output = self.checked(arguments, b"").await?;
        let text = String::from_utf8_lossy(&output);
        Ok(text.lines().map(str::to_owned).collect())
    }

    pub(super) async fn checked(
        &self,
        arguments: &[&str],
        input: &[u8],
    ) -> Result<Vec<u8>, GcError> {
        let output = self.run(arguments, input).await?;
        if output.code == Some(0) {
            return Ok(output.stdout);
        }
        Err(GcError::Git {
            command: arguments.join(" "),
            folder: self.folder.clone(),
            reason: output.reason,
        })
    }

    pub(super) async fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Output, GcError> {
        let failed = |error: std::io::Error| GcError::Git {
            command: arguments.first().copied().unwrap_or_default().to_owned(),
            folder: self.folder.clone(),
            reason: error.to_string(),
        };
        let mut child = Command::new("git")
            .arg("-C")
            .arg(&self.folder)
            .args(arguments)
            // Nobody is there to answer a question.
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdin = child.stdin.take();
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // Whether git read it all shows in its answer.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.map_err(failed)?;
        let words = String::from_utf8_lossy(&output.stderr);
        Ok(Output {
            code: output.status.code(),
            stdout: output.stdout,
            reason: without_logins(words.trim()),
        })
    }
}

/// Git's words without what stands before the `@` of a URL.
fn without_logins(words: &str) -> String {
    let mut result = String::with_capacity(words.len());
    let mut rest = words;
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        result.push_str(before);
        let end = after
            .find(['/', ' ', '\'', '"', '\n'])
            .unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        let host = authority.rfind('@').map_or(0, |at| at + 1);
        result.push_str(authority.get(host..).unwrap_or_default());
        rest = tail;
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_in_a_url_is_not_repeated() {
        let words = "fatal: unable to access 'https://me:hush@host/a.git/': x ssh://git@h/y, b@c";
        assert_eq!(
            without_logins(words),
            "fatal: unable to access 'https://host/a.git/': x ssh://h/y, b@c"
        );
    }
}
