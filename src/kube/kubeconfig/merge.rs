//! One cluster's entries into a kubeconfig that holds others: `~/.kube/config`.
//!
//! The file is locked as client-go locks it, replaced whole, and keeps everything else, comments included. An entry of the
//! same name that leads to another server is somebody else's and is not overwritten.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use zeroize::Zeroizing;

use super::edit::{self, Entries};
use super::wipe;
use crate::files;

/// client-go holds the lock for the time of one write.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Why the entries were not merged; the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("cannot {operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path}:{line}:{column}: this is no kubeconfig: {problem}")]
    Syntax {
        path: PathBuf,
        line: u64,
        column: u64,
        problem: &'static str,
    },
    #[error(
        "{lock} exists: another program changes that kubeconfig, or one was killed while it did; if none runs, delete {lock}"
    )]
    Locked { lock: PathBuf },
    #[error(
        "{path} has another {name:?} already (a {theirs}); give this one another name with --name, or replace that one with --force"
    )]
    Taken {
        path: PathBuf,
        name: String,
        theirs: String,
    },
    #[error(
        "{path} with the entries in it cannot be written so that it reads back as it is meant; merge into another file with --into"
    )]
    Unwritable { path: PathBuf },
    #[error("the cluster's own kubeconfig {path} cannot be used: {problem}")]
    Source { path: PathBuf, problem: String },
}

/// What a merge came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Merged {
    pub file: PathBuf,
    /// The context's name.
    pub context: String,
    pub changed: bool,
    /// Whether the file's current context is this one.
    pub current: bool,
    /// False where the file had a form that could not be edited in place and was written anew: comments are gone then.
    pub in_place: bool,
}

/// The file that kubectl would write to: the first that exists of `$KUBECONFIG`, or its last; `~/.kube/config` without it.
pub fn default_file(kubeconfig: Option<&OsStr>, home: Option<&OsStr>) -> Option<PathBuf> {
    let listed: Vec<PathBuf> = kubeconfig
        .map(|list| std::env::split_paths(list).collect())
        .unwrap_or_default();
    let named = || listed.iter().filter(|path| !path.as_os_str().is_empty());
    named()
        .find(|path| path.exists())
        .or_else(|| named().next_back())
        .cloned()
        .or_else(|| Some(Path::new(home?).join(".kube/config")))
}

/// Merges the one cluster of `source` into `target` under `name`. `force` replaces another cluster of that name; `make_current`
/// makes it the current context, which it becomes anyway where there is none.
pub fn merge(
    source: &Path,
    target: &Path,
    name: &str,
    force: bool,
    make_current: bool,
) -> Result<Merged, MergeError> {
    let text = fs::read_to_string(source)
        .map(Zeroizing::new)
        .map_err(io_error("read", source))?;
    let entries = Entries::read(&text, name).map_err(|problem| MergeError::Source {
        path: source.to_owned(),
        problem,
    })?;
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(io_error("make the folder of", target))?;
    }
    // By the name that was given, as client-go does, and not by that of what a link leads to.
    let _lock = Lock::take(target)?;
    // A link is followed, or the rename would put a file in its place.
    let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    let before = match fs::read_to_string(&target) {
        Ok(text) => Zeroizing::new(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Zeroizing::default(),
        Err(error) => return Err(io_error("read", &target)(error)),
    };
    let config = edit::parse(&before).map_err(|error| MergeError::Syntax {
        path: target.clone(),
        line: error.line,
        column: error.column,
        problem: error.problem,
    })?;
    if let Some(theirs) = entries.taken(&config).filter(|_| !force) {
        return Err(MergeError::Taken {
            path: target,
            name: name.to_owned(),
            theirs,
        });
    }
    let has_current = config
        .get("current-context")
        .and_then(Value::as_str)
        .is_some_and(|current| !current.is_empty());
    let current = make_current || !has_current;
    let edited = edit::merge(&before, &config, &entries, current);
    let Some(edited) = edited else {
        wipe(config);
        return Err(MergeError::Unwritable { path: target });
    };
    let is_current = current || config["current-context"] == name;
    wipe(config);
    let changed = *edited.text != *before;
    if changed {
        files::replace_private(&target, edited.text.as_bytes())
            .map_err(io_error("write", &target))?;
    }
    Ok(Merged {
        file: target,
        context: name.to_owned(),
        changed,
        current: is_current,
        in_place: edited.in_place,
    })
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MergeError {
    let path = path.to_owned();
    move |source| MergeError::Io {
        operation,
        path,
        source,
    }
}

/// `<file>.lock`, which exists as long as somebody changes the file (client-go, tools/clientcmd).
struct Lock(PathBuf);

impl Lock {
    fn take(file: &Path) -> Result<Self, MergeError> {
        let mut name = file.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        let started = Instant::now();
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            match options.open(&lock) {
                Ok(_) => return Ok(Self(lock)),
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("lock", &lock)(error));
                }
                Err(_) if started.elapsed() >= LOCK_PATIENCE => {
                    return Err(MergeError::Locked { lock });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A lock that cannot be removed is told to whoever comes next.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const SOURCE: &str = "\
apiVersion: v1
kind: Config
clusters:
- name: movies
  cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: QQ==}
contexts:
- name: movies
  context: {cluster: movies, user: movies, namespace: microservices}
current-context: movies
users:
- name: movies
  user: {client-key-data: c2VjcmV0}
";
    const THEIRS: &str = "\
# mine, since 2019
apiVersion: v1
kind: Config
clusters:
- cluster: {server: 'https://cloud:443'}
  name: cloud   # the cloud
contexts: [] # none yet
current-context: cloud
users:
    - name: cloud
      user:
          exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}
preferences: {}
extensions:
- {name: odd, extension: {}}
";

    fn folder(target: Option<&str>) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (source, file) = (
            folder.path().join("k3s.yaml"),
            folder.path().join("kube/config"),
        );
        fs::write(&source, SOURCE).unwrap();
        fs::create_dir(folder.path().join("kube")).unwrap();
        if let Some(text) = target {
            fs::write(&file, text).unwrap();
        }
        (folder, source, file)
    }

    #[test]
    fn everything_else_stays_byte_for_byte_and_a_second_merge_changes_nothing() {
        let (_folder, source, file) = folder(Some(THEIRS));
        let merged = merge(&source, &file, "movies", false, false).unwrap();
        assert!(
            merged.changed && merged.in_place && !merged.current,
            "{merged:?}"
        );
        let text = fs::read_to_string(&file).unwrap();
        for line in THEIRS.lines().filter(|line| !line.starts_with("contexts")) {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let parsed = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(parsed.current_context.as_deref(), Some("cloud"));
        let names: Vec<_> = parsed
            .contexts
            .iter()
            .map(|context| &context.name)
            .collect();
        assert_eq!(names, ["movies"]);
        assert_eq!(parsed.clusters.len(), 2);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = merge(&source, &file, "movies", false, false).unwrap();
        assert!(!again.changed);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert!(!file.with_extension("lock").exists());
    }

    #[test]
    fn a_comment_above_the_next_item_is_that_items() {
        let theirs = "\
apiVersion: v1
kind: Config
clusters:
- name: movies
  cluster: {server: 'https://127.0.0.1:6443'}

# the cloud, since 2019
- name: cloud
  cluster: {server: 'https://cloud:443'}
# the end
contexts: []
users: []
";
        let (_folder, source, file) = folder(Some(theirs));
        assert!(
            merge(&source, &file, "movies", false, false)
                .unwrap()
                .in_place
        );
        let text = fs::read_to_string(&file).unwrap();
        let (_, after) = text.split_once("QQ==").unwrap();
        let (_, rest) = after.split_once('\n').unwrap();
        assert!(
            rest.starts_with("\n# the cloud, since 2019\n- name: cloud\n"),
            "{text}"
        );
        assert!(text.contains("# the end\n"), "{text}");
    }

    #[test]
    fn a_new_file_gets_the_context_as_its_current_one() {
        let (_folder, source, file) = folder(None);
        let merged = merge(&source, &file, "other", false, false).unwrap();
        assert!(merged.changed && merged.current);
        let parsed = kube::config::Kubeconfig::read_from(&file).unwrap();
        assert_eq!(parsed.current_context.as_deref(), Some("other"));
        assert_eq!(
            parsed.contexts[0].context.as_ref().unwrap().cluster,
            "other"
        );
    }

    #[test]
    fn a_cluster_that_was_made_anew_is_replaced_and_another_of_its_name_is_not() {
        let (_folder, source, file) = folder(Some(THEIRS));
        merge(&source, &file, "movies", false, true).unwrap();
        fs::write(&source, SOURCE.replace("QQ==", "Qg==")).unwrap();
        let merged = merge(&source, &file, "movies", false, false).unwrap();
        assert!(merged.changed && merged.current && merged.in_place);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("Qg==") && !text.contains("QQ=="), "{text}");

        fs::write(&source, SOURCE.replace("127.0.0.1:6443", "127.0.0.1:7443")).unwrap();
        let error = merge(&source, &file, "movies", false, false).unwrap_err();
        assert!(
            error.to_string().contains("https://127.0.0.1:6443"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        assert!(
            merge(&source, &file, "movies", true, false)
                .unwrap()
                .changed
        );
    }

    #[test]
    fn another_clusters_context_or_user_of_the_name_is_not_overwritten() {
        let aliased =
            "contexts:\n- name: movies\n  context: {cluster: 'arn:x', user: 'arn:x'}\nusers: []\n";
        let user = "users:\n- name: movies\n  user: {token: secret}\n";
        for (text, expected) in [(aliased, "a context, of arn:x"), (user, "a user")] {
            let (_folder, source, file) = folder(Some(text));
            let error = merge(&source, &file, "movies", false, false).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
            assert!(
                merge(&source, &file, "movies", true, false)
                    .unwrap()
                    .changed
            );
        }
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone_and_not_quoted() {
        for text in ["users: [secret\n", "- secret\n", "users: secret\n", "\u{0}"] {
            let (_folder, source, file) = folder(Some(text));
            let error = merge(&source, &file, "movies", false, false).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn a_link_stays_a_link_and_a_held_lock_is_named() {
        let (folder, source, file) = folder(Some(THEIRS));
        let link = folder.path().join("link");
        symlink(&file, &link).unwrap();
        merge(&source, &link, "movies", false, false).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&file).unwrap().contains("movies"));
        for (name, lock) in [(&file, "kube/config.lock"), (&link, "link.lock")] {
            let lock = folder.path().join(lock);
            fs::write(&lock, "").unwrap();
            let error = merge(&source, name, "movies", false, false).unwrap_err();
            let expected = format!("{} exists", lock.display());
            assert!(error.to_string().contains(&expected), "{error}");
            assert!(lock.exists(), "it is another's");
            fs::remove_file(&lock).unwrap();
        }
    }

    #[test]
    fn the_file_is_the_one_that_kubectl_would_write_to() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("b");
        fs::write(&there, "").unwrap();
        let list = std::env::join_paths([folder.path().join("a"), there.clone()]).unwrap();
        let home = Some(OsStr::new("/home/me"));
        assert_eq!(default_file(Some(&list), home), Some(there));
        let none = OsStr::new("/none/a:/none/b");
        assert_eq!(default_file(Some(none), home), Some("/none/b".into()));
        assert_eq!(
            default_file(None, home),
            Some("/home/me/.kube/config".into())
        );
        assert_eq!(default_file(Some(OsStr::new("")), None), None);
    }
}
