//! What files name: every digest and every tag of ours in the working tree and in every branch and tag of the git repository.
//!
//! Text is searched, not YAML: a digest in a Helm chart, a script or a README is one that somebody may need. Too much is found
//! that way, never too little.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::bytes::Regex;

use super::GcError;
use super::decide::Roots;
use super::git::{Commit, Git};
use super::history::{self, Former};
use crate::images::hash::{is_digest, is_input_tag};

/// What is looked for, in the words that git's and Rust's regular expressions share. Before a digest, what makes an image's of it:
/// `name@`, or a key as in kustomize's `digest: sha256:...`, Helm's values or JSON, whatever the quotes.
const PATTERN: &str = concat!(
    r#"(@|([Dd]igest|DIGEST|[Ss]ha(256)?|SHA(256)?|[Ii]mage|IMAGE)"#,
    r#"["'\\]{0,4}[[:space:]]{0,8}[:=][[:space:]]{0,8}["'\\]{0,4})?"#,
    r#"sha256:[0-9a-f]{64}|in-[0-9a-f]{12}"#
);
/// More bytes than a match can have.
const LONGEST: usize = 256;
/// How much of a file is in memory at a time.
const PIECE: usize = 1 << 20;
/// Files that git ignores and that may describe what runs all the same.
const DESCRIPTIONS: [&str; 4] = [
    ":(icase)*.yaml",
    ":(icase)*.yml",
    ":(icase)*.json",
    ":(icase)*.lock",
];
/// How every search begins. Git refuses half of them where `submodule.recurse` is set; submodules are searched by themselves.
const GREP: [&str; 6] = ["grep", "--no-recurse-submodules", "-z", "-a", "-o", "-E"];
/// Trees that one `git grep` gets: far from the limit of a command line.
const BATCH: usize = 200;
/// The tag with which programs mark folders that hold nothing of value (bford.info/cachedir).
const CACHE_MARK: &str = "CACHEDIR.TAG";

#[allow(
    clippy::unwrap_used,
    reason = "a constant that a test compiles is no bad input"
)]
static MENTION: LazyLock<Regex> = LazyLock::new(|| Regex::new(PATTERN).unwrap());

/// Where to look.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The project's folder.
    pub root: PathBuf,
    /// Files and folders that git may ignore: locks, manifests.
    pub extra: Vec<PathBuf>,
    /// `images.lock`, whose earlier versions git may know.
    pub lock: PathBuf,
    /// Ask git for branches, tags and stashes.
    pub git: bool,
    /// Make sure that no remote has a branch that is not here.
    pub remotes: bool,
}

/// What was found, and where.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The roots.
    pub roots: Roots,
    /// Branches, tags and other commits that were searched.
    pub commits: usize,
    /// Where images of this project were at any time.
    pub former: Former,
}

impl Roots {
    /// Takes in everything that `text` names. `who` is for the report.
    pub fn mention(&mut self, text: &[u8], who: &str) {
        for found in MENTION.find_iter(text) {
            let word = String::from_utf8_lossy(found.as_bytes());
            if is_input_tag(&word) {
                self.tags
                    .entry(word.into_owned())
                    .or_insert_with(|| who.to_owned());
                continue;
            }
            let Some(start) = word.find("sha256:") else {
                continue;
            };
            let digest = word.get(start..).unwrap_or_default().to_owned();
            if start > 0 {
                self.images.insert(digest.clone());
            }
            self.digests.entry(digest).or_insert_with(|| who.to_owned());
        }
    }

    /// Takes in what the user wants kept.
    pub fn keep(&mut self, value: &str) -> Result<(), GcError> {
        let digest = is_digest(value);
        if !digest && !is_input_tag(value) {
            return Err(GcError::Keep {
                value: value.to_owned(),
            });
        }
        if digest {
            self.images.insert(value.to_owned());
        }
        self.mention(value.as_bytes(), "--protect");
        Ok(())
    }
}

impl Sources {
    /// Looks everywhere.
    pub async fn gather(&self) -> Result<Found, GcError> {
        let mut found = Found::default();
        for path in &self.extra {
            walk(path, &mut found.roots)?;
        }
        if !self.git {
            walk(&self.root, &mut found.roots)?;
            return Ok(found);
        }
        let git = Git::open(&self.root).await?;
        let mut commits = git.commits().await?;
        if self.remotes {
            for remote in git.lines(&["remote"]).await? {
                commits.extend(git.remote(&remote).await?);
            }
        }
        let trees = git.trees(&commits).await?;
        found.commits = trees.len();
        for batch in trees.chunks(BATCH) {
            git.search_trees(batch, &mut found.roots).await?;
        }
        found.former = history::read(&git, &commits, &self.lock).await?;
        let worktrees = git.worktrees().await?;
        for folder in worktrees.iter().flat_map(|folder| nested(folder)) {
            if !worktrees.contains(&folder) {
                walk(&folder, &mut found.roots)?;
            }
        }
        for folder in worktrees {
            let git = Git { folder };
            git.search_files(&["--untracked"], &[], "file", &mut found.roots)
                .await?;
            let ignored = ["--untracked", "--no-exclude-standard"];
            git.search_files(&ignored, &DESCRIPTIONS, "file", &mut found.roots)
                .await?;
            git.search_files(&["--cached"], &[], "git index", &mut found.roots)
                .await?;
        }
        Ok(found)
    }
}

/// The repositories inside of `folder`, clones and submodules, which git leaves out of its search. What may not be entered is none
/// of this project's.
fn nested(folder: &Path) -> Vec<PathBuf> {
    let folders = walkdir::WalkDir::new(folder)
        .min_depth(1)
        .into_iter()
        .filter_entry(|entry| entry.file_type().is_dir() && is_of_value(entry))
        .filter_map(Result::ok)
        .map(walkdir::DirEntry::into_path);
    folders
        .filter(|folder| folder.join(".git").exists())
        .collect()
}

fn is_of_value(entry: &walkdir::DirEntry) -> bool {
    entry.file_name() != ".git" && !entry.path().join(CACHE_MARK).exists()
}

/// Reads files below `path`, without git's own and caches.
fn walk(path: &Path, roots: &mut Roots) -> Result<(), GcError> {
    let all = walkdir::WalkDir::new(path).into_iter();
    for entry in all.filter_entry(is_of_value) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if is_absent(&error) => continue,
            Err(error) => {
                let failed = error.path().unwrap_or(path).to_owned();
                return Err(GcError::Read {
                    path: failed,
                    source: error.into(),
                });
            }
        };
        // Pinning and applying follow links to files, and to no folders.
        let linked = || entry.path_is_symlink() && entry.path().is_file();
        if !entry.file_type().is_file() && !linked() {
            continue;
        }
        let who = format!("file {}", entry.path().display());
        let read = std::fs::File::open(entry.path()).and_then(|file| search_in(file, roots, &who));
        match read {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(GcError::Read {
                    path: entry.path().to_owned(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes in everything that `file` names, a piece at a time: it may be larger than the memory.
fn search_in(mut file: impl Read, roots: &mut Roots, who: &str) -> std::io::Result<()> {
    let mut piece = Vec::with_capacity(PIECE + LONGEST);
    loop {
        let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        roots.mention(&piece, who);
        if read < PIECE {
            return Ok(());
        }
        // What began in this piece may end in the next one.
        piece.drain(..piece.len().saturating_sub(LONGEST));
    }
}

fn is_absent(error: &walkdir::Error) -> bool {
    error
        .io_error()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

impl Git {
    async fn search_trees(&self, trees: &[Commit], roots: &mut Roots) -> Result<(), GcError> {
        let mut arguments = [&GREP[..], &["-e", PATTERN]].concat();
        arguments.extend(trees.iter().map(|(tree, _)| tree.as_str()));
        self.search(&arguments, roots, |place| {
            let (tree, path) = place.split_once(':').unwrap_or((place, ""));
            let name = trees.iter().find(|(id, _)| id == tree);
            format!("{} {path}", name.map_or(tree, |(_, name)| name))
        })
        .await
    }

    async fn search_files(
        &self,
        options: &[&str],
        paths: &[&str],
        kind: &str,
        roots: &mut Roots,
    ) -> Result<(), GcError> {
        let mut arguments = [&GREP[..], options].concat();
        arguments.extend(["-e", PATTERN, "--"]);
        arguments.extend(paths);
        self.search(&arguments, roots, |path| format!("{kind} {path}"))
            .await
    }

    async fn search(
        &self,
        arguments: &[&str],
        roots: &mut Roots,
        who: impl Fn(&str) -> String,
    ) -> Result<(), GcError> {
        let output = self.run(arguments, b"").await?;
        // 1 is grep's word for finding nothing.
        if output.code != Some(0) && !(output.code == Some(1) && output.stdout.is_empty()) {
            return Err(GcError::Git {
                command: "grep".to_owned(),
                folder: self.folder.clone(),
                reason: output.reason,
            });
        }
        for line in output.stdout.split(|byte| *byte == b'\n') {
            let place = line.split(|byte| *byte == 0).next().unwrap_or_default();
            roots.mention(line, &who(&String::from_utf8_lossy(place)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::process::Command;

    use super::*;

    fn hex(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn digests_and_tags_are_found_wherever_they_stand() {
        let mut roots = Roots::default();
        let text = format!(
            "image: a/b:in-0123456789ab@sha256:{}\n\"input\": \"sha256:{}\"\n\"digest\": \"sha256:{}\" xin-ba9876543210",
            hex('a'),
            hex('b'),
            hex('c')
        );
        roots.mention(text.as_bytes(), "x");
        let digests: Vec<&str> = roots.digests.keys().map(|digest| &digest[7..9]).collect();
        assert_eq!(digests, ["aa", "bb", "cc"]);
        assert_eq!(roots.images.len(), 2);
        assert!(roots.tags.contains_key("in-0123456789ab"));
        assert!(roots.tags.contains_key("in-ba9876543210"));
    }

    #[test]
    fn an_images_digest_is_known_by_what_stands_before_it() {
        let one = |before: &str| {
            let mut roots = Roots::default();
            roots.mention(format!("{before}sha256:{}", hex('a')).as_bytes(), "x");
            assert_eq!(roots.digests.len(), 1, "{before}");
            roots.images.len() == 1
        };
        for before in [
            "name@",
            "digest: ",
            "- {digest: '",
            "  imageDigest:   \"",
            "\"digest\":\"",
            "{\\\"digest\\\": \\\"",
            "--set image.digest=",
            "export WEB_DIGEST='",
            "sha: ",
            "sha256 = \"",
        ] {
            assert!(one(before), "{before}");
        }
        for before in [
            "",
            "\"input\": \"",
            "--hash=",
            "hash = \"",
            "\"context\": \"",
        ] {
            assert!(!one(before), "{before}");
        }
    }

    #[test]
    fn a_large_file_is_searched_in_pieces_and_nothing_falls_between_them() {
        let name = format!("imageDigest : \"sha256:{}", hex('a'));
        for back in [0, 1, 20, name.len() / 2, name.len() - 1, name.len()] {
            let mut text = vec![b' '; PIECE - back];
            text.extend_from_slice(name.as_bytes());
            text.resize(3 * PIECE, b'-');
            text.extend_from_slice(b"in-0123456789ab");
            let mut roots = Roots::default();
            search_in(text.as_slice(), &mut roots, "x").unwrap();
            assert_eq!((roots.images.len(), roots.tags.len()), (1, 1), "{back}");
        }
    }

    #[test]
    fn keep_takes_digests_and_tags_of_ours_alone() {
        let mut roots = Roots::default();
        roots.keep("in-0123456789ab").unwrap();
        roots.keep(&format!("sha256:{}", hex('a'))).unwrap();
        assert_eq!((roots.tags.len(), roots.images.len()), (1, 1));
        for wrong in ["latest", "sha256:abc", "", "in-1"] {
            let error = roots.keep(wrong).unwrap_err().to_string();
            assert!(error.contains("--protect"), "{error}");
        }
    }

    async fn git(folder: &Path, arguments: &[&str]) {
        let identity = [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "-c",
            "init.defaultBranch=main",
        ];
        let output = Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(identity)
            .args(arguments)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn sources_of(root: &Path) -> Sources {
        Sources {
            root: root.to_owned(),
            extra: Vec::new(),
            lock: root.join("images.lock"),
            git: true,
            remotes: true,
        }
    }

    #[tokio::test]
    async fn branches_tags_stashes_the_index_and_ignored_locks_count() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("clone");
        std::fs::create_dir(&root).unwrap();
        git(&root, &["init", "--quiet"]).await;
        let write = |tag: &str| std::fs::write(root.join("pod.yaml"), format!("image: a:{tag}\n"));
        let commit = [
            "commit",
            "--quiet",
            "--all",
            "--allow-empty",
            "--message",
            "x",
        ];
        write("in-000000000001").unwrap();
        git(&root, &["add", "."]).await;
        git(&root, &commit).await;
        git(&root, &["tag", "v1"]).await;
        git(&root, &["checkout", "--quiet", "-b", "other"]).await;
        write("in-000000000002").unwrap();
        git(&root, &commit).await;
        git(&root, &["checkout", "--quiet", "main"]).await;
        write("in-000000000003").unwrap();
        git(&root, &["stash"]).await;
        write("in-000000000004").unwrap();
        git(&root, &["stash"]).await;
        write("in-000000000005").unwrap();
        git(&root, &["add", "."]).await;
        write("in-000000000006").unwrap();
        std::fs::write(root.join("new file"), "in-000000000007").unwrap();
        std::fs::write(root.join(".gitignore"), "state\n").unwrap();
        std::fs::create_dir(root.join("state")).unwrap();
        std::fs::write(root.join("state/images.lock"), "in-000000000008").unwrap();
        std::fs::write(root.join("state/log"), "in-000000000009").unwrap();
        std::fs::write(root.join("state/Pod.YML"), "in-000000000010").unwrap();
        std::fs::write(root.join("state/pods.json"), "in-000000000011").unwrap();
        std::fs::create_dir(root.join("state/below")).unwrap();
        let kustomization = format!("images: [{{digest: \"sha256:{}\"}}]\n", hex('a'));
        std::fs::write(root.join("state/below/a.yaml"), kustomization).unwrap();
        std::fs::create_dir_all(root.join("state/clone/deploy")).unwrap();
        git(&root.join("state/clone"), &["init", "--quiet"]).await;
        std::fs::write(root.join("state/clone/deploy/a.yaml"), "in-000000000012").unwrap();
        let mut sources = sources_of(&root);
        sources.extra = vec![root.join("state/images.lock"), root.join("nowhere")];
        let found = sources.gather().await.unwrap();
        let tags: Vec<&str> = found.roots.tags.keys().map(|tag| &tag[13..]).collect();
        let expected = [
            "01", "02", "03", "04", "05", "06", "07", "08", "10", "11", "12",
        ];
        assert_eq!(tags, expected);
        assert!(found.roots.images.contains(&format!("sha256:{}", hex('a'))));
        assert_eq!(found.roots.tags["in-000000000002"], "other pod.yaml");

        // A clone that lacks a branch of its remote does not know what that one needs.
        let single = folder.path().join("single");
        let (from, to) = (root.display().to_string(), single.display().to_string());
        let url = format!("file://{from}");
        git(
            folder.path(),
            &[
                "clone",
                "--quiet",
                "--single-branch",
                "--branch",
                "main",
                &url,
                &to,
            ],
        )
        .await;
        let mut behind = sources_of(&single);
        let error = behind.gather().await.unwrap_err();
        assert!(matches!(error, GcError::Behind { .. }), "{error}");
        assert!(error.to_string().contains("refs/heads/other"), "{error}");
        behind.remotes = false;
        assert!(
            !behind
                .gather()
                .await
                .unwrap()
                .roots
                .tags
                .contains_key("in-000000000002")
        );
        git(
            &single,
            &[
                "fetch",
                "--quiet",
                "origin",
                "+refs/heads/*:refs/remotes/origin/*",
            ],
        )
        .await;
        behind.remotes = true;
        assert!(
            behind
                .gather()
                .await
                .unwrap()
                .roots
                .tags
                .contains_key("in-000000000002")
        );

        let shallow = folder.path().join("shallow");
        let to = shallow.display().to_string();
        git(
            folder.path(),
            &["clone", "--quiet", "--depth", "1", &url, &to],
        )
        .await;
        let error = sources_of(&shallow).gather().await.unwrap_err();
        assert!(matches!(error, GcError::Shallow { .. }), "{error}");
    }

    #[tokio::test]
    async fn files_count_where_gits_own_are_elsewhere_and_whatever_is_said_of_submodules() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("checkout");
        std::fs::create_dir(&root).unwrap();
        let init = ["init", "--quiet", "--separate-git-dir", "../own"];
        git(&root, &init).await;
        std::fs::write(root.join("new file"), "in-000000000001").unwrap();
        git(&root, &["config", "submodule.recurse", "true"]).await;
        let found = sources_of(&root).gather().await.unwrap();
        assert!(found.roots.tags.contains_key("in-000000000001"));
    }

    #[tokio::test]
    async fn every_version_of_the_lock_names_repositories() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        git(root, &["init", "--quiet"]).await;
        let lock = |text: &str| std::fs::write(root.join("images.lock"), text).unwrap();
        let entry = |name: &str, tag: &str| {
            format!(
                r#"{{"components": {{"{name}": {{"repository": "r/{name}", "tag": "{tag}"}}}}}}"#
            )
        };
        let commit = ["commit", "--quiet", "--all", "--message", "x"];
        lock(&entry("gone", "in-1"));
        std::fs::create_dir(root.join("below")).unwrap();
        std::fs::write(root.join("below/images.lock"), entry("other", "in-9")).unwrap();
        git(root, &["add", "."]).await;
        git(root, &commit).await;
        lock(&entry("gone", "in-2"));
        git(root, &commit).await;
        git(root, &["checkout", "--quiet", "-b", "side"]).await;
        lock("<<<<<<< no lock at all");
        git(root, &commit).await;
        lock(&entry("side", "in-3"));
        git(root, &commit).await;
        git(root, &["checkout", "--quiet", "main"]).await;
        // The merge keeps nothing of the side branch's file.
        git(root, &["merge", "--quiet", "--strategy", "ours", "side"]).await;
        git(root, &["branch", "-D", "side"]).await;
        git(root, &["rm", "--quiet", "images.lock"]).await;
        git(root, &commit).await;
        let found = sources_of(root).gather().await.unwrap();
        let places: Vec<String> = found
            .former
            .iter()
            .map(|(repository, tags)| format!("{repository} {tags:?}"))
            .collect();
        assert_eq!(places, [r#"r/gone {"in-1", "in-2"}"#, r#"r/side {"in-3"}"#]);
    }

    #[test]
    fn links_to_files_are_followed_and_those_that_lead_nowhere_do_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, manifests) = (folder.path().join("outside"), folder.path().join("k8s"));
        std::fs::write(&outside, "in-000000000001").unwrap();
        std::fs::create_dir(&manifests).unwrap();
        let link = |to: &Path, name: &str| {
            std::os::unix::fs::symlink(to, manifests.join(name)).unwrap();
        };
        link(&outside, "pod.yaml");
        link(Path::new("nowhere"), "gone.yaml");
        link(Path::new("circle.yaml"), "circle.yaml");
        link(folder.path(), "all");
        let mut roots = Roots::default();
        walk(&manifests, &mut roots).unwrap();
        assert!(roots.tags.contains_key("in-000000000001"));
    }

    #[tokio::test]
    async fn a_failure_of_git_names_the_folder_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "--quiet"]).await;
        let sources = sources_of(folder.path());
        std::fs::write(folder.path().join(".git/index"), "broken").unwrap();
        let error = sources.gather().await.unwrap_err().to_string();
        assert!(error.contains("`git grep` failed in /"), "{error}");
        assert!(error.contains("run the command again"), "{error}");
    }

    #[tokio::test]
    async fn without_git_the_files_count_and_only_when_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pod.yaml"), "in-000000000001").unwrap();
        std::fs::create_dir(folder.path().join("target")).unwrap();
        std::fs::write(folder.path().join("target/CACHEDIR.TAG"), "").unwrap();
        std::fs::write(folder.path().join("target/x"), "in-000000000002").unwrap();
        let mut sources = sources_of(folder.path());
        let error = sources.gather().await.unwrap_err();
        assert!(error.to_string().contains("--no-git"), "{error}");
        sources.git = false;
        let found = sources.gather().await.unwrap();
        assert_eq!(found.roots.tags.len(), 1);
    }
}
