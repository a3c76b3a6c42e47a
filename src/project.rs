//! Where things are: the project's root, its state for one cluster, and the cache all clusters share.
//!
//! Boundary: paths only. State under `.orch/<cluster>` is private to the user (0700); everything in
//! the cache is named by its content and can be deleted at any time.

use std::path::{Path, PathBuf};

/// The folders of one project and one cluster in it.
#[derive(Debug, Clone)]
pub struct Project {
    root: PathBuf,
    file: PathBuf,
    cluster: String,
    cache: PathBuf,
}

impl Project {
    /// `file` is the `orch.yaml` in use; the folder it lies in is the root.
    pub fn new(file: &Path, cluster: &str) -> std::io::Result<Self> {
        let file = std::path::absolute(file)?;
        // Without links: the Vagrantfile names the same folder that way.
        let root = std::fs::canonicalize(file.parent().unwrap_or(Path::new("/")))?;
        Ok(Self {
            root,
            file,
            cluster: cluster.to_owned(),
            cache: cache_directory(),
        })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// What orch remembers of this cluster and cannot observe: keys, and copies for its machines.
    pub fn state(&self) -> PathBuf {
        self.root.join(".orch").join(&self.cluster)
    }

    /// Whether this is the project's main cluster, the one that plain `vagrant` sees.
    pub fn is_default(&self) -> bool {
        self.file
            .file_name()
            .is_some_and(|name| name == crate::config::FILE_NAME)
    }

    /// The kubeconfig: `k3s.yaml` in the root, or beside the state for a cluster with a file of its own.
    pub fn kubeconfig(&self) -> PathBuf {
        if self.is_default() {
            self.root.join("k3s.yaml")
        } else {
            self.state().join("k3s.yaml")
        }
    }

    /// How the nodes are reached, one file a node. Vagrant's machines: in the form of ssh_config(5), by the Vagrantfile. SSH hosts:
    /// JSON, what orch.yaml said last.
    pub fn reached(&self) -> PathBuf {
        self.state().join("reach")
    }

    /// Where Vagrant keeps its machine ids.
    pub fn vagrant_state(&self) -> PathBuf {
        if self.is_default() {
            self.root.join(".vagrant")
        } else {
            self.state().join("vagrant")
        }
    }
}

/// `$ORCH_CACHE`, or `orch` in the user's cache folder (XDG base directory specification).
pub fn cache_directory() -> PathBuf {
    if let Some(path) = std::env::var_os("ORCH_CACHE") {
        return PathBuf::from(path);
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    base.unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("orch")
}
