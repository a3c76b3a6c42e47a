//! Key files: the cluster's, made on the host; a node's, read on the node.

mod cluster;
mod rotate;
mod store;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use russh::keys::{Algorithm, PrivateKey, PublicKey};

pub use self::cluster::{EnsuredKeys, Roster, ensure_cluster_keys};
pub use self::rotate::{Rotation, Stage, advance_rotation, begin_rotation, read_rotation};

/// Private keys are this long at most; anything longer is not one.
const MAX_KEY_FILE_BYTES: u64 = 16 * 1024;
/// The server's key and its successor.
const MAX_KNOWN_HOST_KEYS: usize = 2;

/// What went wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot create the directory {}", path.display())]
    CreateDirectory { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} can be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display()
    )]
    TooOpen { path: PathBuf, mode: u32 },
    #[error("{} is too large to be a key", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is not an unencrypted OpenSSH ed25519 private key", path.display())]
    PrivateKey {
        path: PathBuf,
        source: russh::keys::ssh_key::Error,
    },
    #[error("{} is not an OpenSSH ed25519 public key", path.display())]
    PublicKey {
        path: PathBuf,
        source: russh::keys::ssh_key::Error,
    },
    #[error("{} names {count} keys of the server; it has one, or two while it gets a new one", path.display())]
    KnownHost { path: PathBuf, count: usize },
    #[error("{} is a {algorithm} key; the join uses ed25519", path.display())]
    Algorithm { path: PathBuf, algorithm: String },
    #[error("{} does not say how far the rotation of keys is; nothing was changed", path.display())]
    Rotation {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{} has schema {schema}, which is of another version of orch; nothing was changed", path.display())]
    RotationSchema { path: PathBuf, schema: u32 },
    #[error("cannot make an ed25519 key")]
    Generate(#[source] russh::keys::ssh_key::Error),
}

/// Reads a private key, insisting that only its owner can.
pub fn read_private_key(path: &Path) -> Result<PrivateKey, KeyError> {
    let metadata = fs::metadata(path).map_err(|source| KeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyError::TooOpen {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let text = zeroize::Zeroizing::new(read_bounded(path)?);
    let key = PrivateKey::from_openssh(text.as_bytes()).map_err(|source| KeyError::PrivateKey {
        path: path.to_owned(),
        source,
    })?;
    require_ed25519(path, key.algorithm())?;
    Ok(key)
}

/// Reads a public key in OpenSSH's one-line format.
pub fn read_public_key(path: &Path) -> Result<PublicKey, KeyError> {
    parse_public_key(path, read_bounded(path)?.trim())
}

/// Reads the server's public keys, one a line: one, or two while it gets a new one.
pub fn read_known_host(path: &Path) -> Result<Vec<PublicKey>, KeyError> {
    let text = read_bounded(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys = lines
        .map(|line| parse_public_key(path, line))
        .collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() || keys.len() > MAX_KNOWN_HOST_KEYS {
        return Err(KeyError::KnownHost {
            path: path.to_owned(),
            count: keys.len(),
        });
    }
    Ok(keys)
}

fn parse_public_key(path: &Path, line: &str) -> Result<PublicKey, KeyError> {
    let key = PublicKey::from_openssh(line).map_err(|source| KeyError::PublicKey {
        path: path.to_owned(),
        source,
    })?;
    require_ed25519(path, key.algorithm())?;
    Ok(key)
}

fn require_ed25519(path: &Path, algorithm: Algorithm) -> Result<(), KeyError> {
    if algorithm == Algorithm::Ed25519 {
        return Ok(());
    }
    Err(KeyError::Algorithm {
        path: path.to_owned(),
        algorithm: algorithm.to_string(),
    })
}

fn read_bounded(path: &Path) -> Result<String, KeyError> {
    let read = |source| KeyError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(read)?.len() > MAX_KEY_FILE_BYTES {
        return Err(KeyError::TooLarge {
            path: path.to_owned(),
        });
    }
    fs::read_to_string(path).map_err(read)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key_file(mode: u32, content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let file = key_file(0o644, b"");
        let error = read_private_key(file.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_server_has_one_key_or_two() {
        let line = |seed: u8| {
            let pair = russh::keys::ssh_key::private::Ed25519Keypair::from_seed(&[seed; 32]);
            PrivateKey::from(pair).public_key().to_openssh().unwrap() + "\n"
        };
        let read = |text: &str| read_known_host(key_file(0o600, text.as_bytes()).path());
        assert_eq!(read(&line(1)).unwrap().len(), 1);
        assert_eq!(read(&format!("{}\n{}", line(1), line(2))).unwrap().len(), 2);
        for bad in [
            String::new(),
            line(1) + &line(2) + &line(3),
            line(1) + "nonsense",
        ] {
            assert!(read(&bad).is_err(), "{bad}");
        }
    }
}
