//! The service's key files, read whenever they are needed.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use orch_contract::Join;
use orch_ssh::keys::{KeyError, read_private_key};
use orch_ssh::server::KeySource;
use orch_ssh::{AuthorizedKeys, PrivateKey};

/// A node that is added and a host key that is rotated need no restart, and connections that stand go on.
pub(crate) struct KeyFiles {
    host_key: PathBuf,
    authorized_keys: PathBuf,
    /// Used while the file is being replaced by somebody who does not do so at once.
    last_host_key: Mutex<PrivateKey>,
}

impl KeyFiles {
    /// Without a host key there is no service.
    pub(crate) fn new(join: &Join) -> Result<Self, KeyError> {
        Ok(Self {
            host_key: join.host_key.clone(),
            authorized_keys: join.authorized_keys.clone(),
            last_host_key: Mutex::new(read_private_key(&join.host_key)?),
        })
    }
}

impl KeySource for KeyFiles {
    fn host_key(&self) -> Result<PrivateKey, String> {
        let mut last = self
            .last_host_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Ok(key) = read_private_key(&self.host_key) {
            *last = key;
        }
        Ok(last.clone())
    }

    fn authorized_keys(&self) -> Result<AuthorizedKeys, String> {
        let unusable = |problem: String| format!("{}: {problem}", self.authorized_keys.display());
        let text = fs::read_to_string(&self.authorized_keys)
            .map_err(|error| unusable(error.to_string()))?;
        AuthorizedKeys::parse(&text)
            .map_err(|error| unusable(orch_runner::error_chain(&error).join(": ")))
    }
}

#[cfg(test)]
mod tests {
    use orch_contract::ClusterKeys;
    use orch_ssh::keys::{ensure_cluster_keys, read_public_key};

    use super::*;

    #[test]
    fn a_new_host_key_is_used_and_a_damaged_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        let join = Join {
            host_key: layout.host_key(),
            authorized_keys: layout.authorized_keys(),
            ..Join::default()
        };
        assert!(KeyFiles::new(&join).is_err());
        ensure_cluster_keys(&layout, &[]).unwrap();
        let keys = KeyFiles::new(&join).unwrap();
        fs::remove_file(layout.host_key()).unwrap();
        assert!(keys.host_key().is_ok());
        ensure_cluster_keys(&layout, &[]).unwrap();
        let public = read_public_key(&layout.host_public_key()).unwrap();
        assert_eq!(
            keys.host_key().unwrap().public_key().key_data(),
            public.key_data()
        );
        fs::write(layout.host_key(), "half a k").unwrap();
        assert_eq!(
            keys.host_key().unwrap().public_key().key_data(),
            public.key_data()
        );
    }

    #[test]
    fn a_list_that_cannot_be_read_says_which() {
        let directory = tempfile::tempdir().unwrap();
        let layout = ClusterKeys::new(directory.path());
        ensure_cluster_keys(&layout, &[]).unwrap();
        let join = Join {
            host_key: layout.host_key(),
            authorized_keys: layout.authorized_keys(),
            ..Join::default()
        };
        let keys = KeyFiles::new(&join).unwrap();
        assert_eq!(keys.authorized_keys().unwrap().len(), 1, "the operator");
        fs::write(layout.authorized_keys(), "nonsense\n").unwrap();
        let problem = keys.authorized_keys().unwrap_err();
        assert!(problem.contains("authorized_keys: line 1"), "{problem}");
    }
}
