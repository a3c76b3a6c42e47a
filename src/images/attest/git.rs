//! Which commit a component's sources are, if they are exactly that.

use std::path::Path;

use tokio::process::Command;
use url::Url;

use crate::images::context::Context;
use crate::images::engine::child;

/// What git says about a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkout {
    /// Where the repository can be cloned from, without credentials.
    pub remote: Option<String>,
    /// The commit that is checked out.
    pub commit: String,
    /// Do the sources differ from that commit?
    pub dirty: bool,
}

/// The state of the sources that `context` lists, built by `dockerfile`; nothing if they are in no git repository.
pub async fn checkout(context: &Context, dockerfile: &Path) -> Option<Checkout> {
    let folder = context.root.as_path();
    let commit = git(folder, &["rev-parse", "--verify", "HEAD"]).await?;
    let folders = [Some(folder), dockerfile.parent()];
    let mut dirty = false;
    for folder in folders.into_iter().flatten() {
        dirty |= is_dirty(folder, context).await;
    }
    let remote = git(folder, &["remote", "get-url", "origin"]).await;
    Some(Checkout {
        remote: remote.and_then(|remote| public(remote.trim())),
        commit: commit.trim().to_owned(),
        dirty,
    })
}

/// Is anything below `folder` that takes part in the build not what the commit says? What git cannot tell counts as dirty.
async fn is_dirty(folder: &Path, context: &Context) -> bool {
    let arguments = [
        "status",
        "--porcelain=v1",
        "-z",
        "--no-renames",
        "--untracked-files=all",
        "--ignored",
        "--",
        ".",
    ];
    let Some(status) = git(folder, &arguments).await else {
        return true;
    };
    let Some(prefix) = git(folder, &["rev-parse", "--show-prefix"]).await else {
        return true;
    };
    let prefix = prefix.trim_end_matches('\n');
    let mut lines = status.split('\0').filter(|line| !line.is_empty());
    lines.any(|line| {
        let (state, path) = line.split_at_checked(3).unwrap_or((line, ""));
        // A file that git ignores takes part unless .dockerignore leaves it out as well; one that is changed or gone always counts.
        let path = path.strip_prefix(prefix).unwrap_or(path);
        state.trim() != "!!" || context.holds(path)
    })
}

impl Context {
    /// Does the listing have this path, or one below it?
    fn holds(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.entries.iter().any(|entry| {
            entry
                .path
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

async fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(arguments);
    child::output(command).await.ok()
}

/// A remote that others can clone from, without user and password; nothing for a path on this machine.
fn public(remote: &str) -> Option<String> {
    let text = match remote.split_once("://") {
        Some(_) => remote.to_owned(),
        // `user@host:path`, as ssh takes it.
        None => {
            let (host, path) = remote.split_once(':')?;
            let host = host.rsplit('@').next().unwrap_or(host);
            if host.is_empty() || host.contains('/') {
                return None;
            }
            format!("ssh://{host}/{}", path.trim_start_matches('/'))
        }
    };
    let mut url = Url::parse(&text).ok()?;
    if !matches!(url.scheme(), "http" | "https" | "ssh" | "git") {
        return None;
    }
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    url.set_query(None);
    Some(format!("git+{url}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_shows_no_credentials_and_no_folder_of_this_machine() {
        for (remote, wanted) in [
            (
                "https://me:hush@git.example/a/b.git?private_token=hush",
                Some("git+https://git.example/a/b.git"),
            ),
            (
                "git@git.example:a/b.git",
                Some("git+ssh://git.example/a/b.git"),
            ),
            (
                "ssh://git@git.example:2222/a",
                Some("git+ssh://git.example:2222/a"),
            ),
            ("/srv/git/b.git", None),
            ("../b", None),
            ("file:///srv/git/b", None),
        ] {
            assert_eq!(public(remote).as_deref(), wanted, "{remote}");
        }
    }

    async fn run(folder: &Path, arguments: &[&str]) {
        let identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"];
        let arguments: Vec<&str> = identity.iter().chain(arguments).copied().collect();
        assert!(git(folder, &arguments).await.is_some(), "{arguments:?}");
    }

    async fn state(folder: &Path) -> Option<Checkout> {
        let dockerfile = folder.join("Dockerfile");
        let context = Context::scan(folder, &dockerfile).unwrap();
        checkout(&context, &dockerfile).await
    }

    #[tokio::test]
    async fn a_checkout_is_clean_as_long_as_what_is_built_is_what_was_committed() {
        let root = tempfile::tempdir().unwrap();
        let app = root.path().join("app");
        std::fs::create_dir(&app).unwrap();
        let write = |path: &str, text: &str| std::fs::write(root.path().join(path), text).unwrap();
        write("app/Dockerfile", "FROM scratch\n");
        assert_eq!(state(&app).await, None);
        write(".gitignore", "*.log\ntarget/\n");
        write("app/.dockerignore", "target\n");
        run(root.path(), &["init", "-q"]).await;
        run(root.path(), &["add", "."]).await;
        run(root.path(), &["commit", "-qm", "x"]).await;
        let clean = state(&app).await.unwrap();
        assert!(!clean.dirty && clean.commit.len() == 40, "{clean:?}");
        // Something elsewhere, and something that neither git nor the build sees.
        write("manifest.yaml", "x");
        std::fs::create_dir(app.join("target")).unwrap();
        write("app/target/x", "x");
        assert!(!state(&app).await.unwrap().dirty);
        write("app/build.log", "git ignores it, the build does not");
        assert!(state(&app).await.unwrap().dirty);
        std::fs::remove_file(app.join("build.log")).unwrap();
        assert!(!state(&app).await.unwrap().dirty);
        write("app/new", "x");
        assert!(state(&app).await.unwrap().dirty);
    }
}
