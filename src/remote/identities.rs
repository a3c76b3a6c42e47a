//! Key files: which there are, which can be used, and what is the matter with the others.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{Certificate, PrivateKey, PublicKey, decode_secret_key};
use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::error::Reason;
use super::target::{Hop, Identity};

/// No key is longer.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// A file that was to hold a key.
#[derive(Debug)]
pub(super) struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) public: Option<PublicKey>,
    pub(super) private: Private,
    pub(super) certificate: Option<Certificate>,
}

#[derive(Debug)]
pub(super) enum Private {
    Ready(Arc<PrivateKey>),
    /// Only an agent may have it.
    Elsewhere,
    /// What is the matter, and what to do.
    Unusable(String),
}

/// Reads a host's key files. Those that do not exist are left out, unless the caller named them.
pub(super) async fn load(hop: &Hop) -> Result<Vec<KeyFile>, Reason> {
    let mut files = Vec::new();
    for Identity { path, wanted } in &hop.identities {
        match read_key(path).await {
            Ok(file) => files.push(file),
            Err(source) if *wanted => {
                let path = path.clone();
                return Err(Reason::NoIdentity { path, source });
            }
            Err(_) => {}
        }
    }
    for path in &hop.certificates {
        let certificate = read_certificate(path).await;
        let matching = files.iter_mut().find(|file| {
            let key = file.public.as_ref().map(PublicKey::key_data);
            certificate
                .as_ref()
                .is_some_and(|certificate| key == Some(certificate.public_key()))
        });
        if let Some(file) = matching {
            file.certificate = certificate;
        }
    }
    Ok(files)
}

async fn read_key(path: &Path) -> io::Result<KeyFile> {
    let beside = read_public(&with_suffix(path, ".pub")).await;
    let (text, metadata) = match read(path).await {
        Ok(read) => read,
        // OpenSSH, too, takes the public half alone as the name of a key in an agent.
        Err(error) if error.kind() == io::ErrorKind::NotFound && beside.is_some() => {
            return Ok(KeyFile {
                path: path.to_owned(),
                public: beside,
                private: Private::Elsewhere,
                certificate: read_certificate(&with_suffix(path, "-cert.pub")).await,
            });
        }
        Err(error) => return Err(error),
    };
    let shown = path.display();
    let (public, private) = if let Ok(public) = PublicKey::from_openssh(text.trim()) {
        (Some(public), Private::Elsewhere)
    } else if metadata.mode() & 0o077 != 0 && metadata.uid() == rustix::process::geteuid().as_raw()
    {
        let why = format!("others can read it; run: chmod 600 {shown}");
        (beside, Private::Unusable(why))
    } else {
        match decode_secret_key(&text, None) {
            Ok(key) => (
                Some(key.public_key().clone()),
                Private::Ready(Arc::new(key)),
            ),
            Err(_) if is_encrypted(&text) => {
                let inside = PrivateKey::from_openssh(text.as_bytes()).ok();
                let inside = inside.map(|key| key.public_key().clone());
                let why = format!("it has a passphrase; run: ssh-add {shown}");
                (inside.or(beside), Private::Unusable(why))
            }
            Err(error) => (
                beside,
                Private::Unusable(format!("it cannot be read as a private key: {error}")),
            ),
        }
    };
    Ok(KeyFile {
        path: path.to_owned(),
        public,
        private,
        certificate: read_certificate(&with_suffix(path, "-cert.pub")).await,
    })
}

/// In each of the formats that ssh-keygen writes; not all of them have the library say so.
fn is_encrypted(text: &str) -> bool {
    let openssh = PrivateKey::from_openssh(text.as_bytes()).is_ok_and(|key| key.is_encrypted());
    openssh
        || text.contains("BEGIN ENCRYPTED PRIVATE KEY")
        || text.contains("Proc-Type: 4,ENCRYPTED")
}

async fn read(path: &Path) -> io::Result<(Zeroizing<String>, std::fs::Metadata)> {
    let file = tokio::fs::File::open(path).await?;
    let metadata = file.metadata().await?;
    if metadata.len() > MAX_KEY_BYTES {
        return Err(io::Error::other("too large to be a key"));
    }
    // The room is there from the start, so that no half of a key is left behind where it had been.
    let room = usize::try_from(metadata.len())
        .unwrap_or_default()
        .saturating_add(1);
    let mut text = Zeroizing::new(String::with_capacity(room));
    file.take(MAX_KEY_BYTES).read_to_string(&mut text).await?;
    Ok((text, metadata))
}

async fn read_public(path: &Path) -> Option<PublicKey> {
    let (text, _) = read(path).await.ok()?;
    PublicKey::from_openssh(text.trim()).ok()
}

async fn read_certificate(path: &Path) -> Option<Certificate> {
    let (text, _) = read(path).await.ok()?;
    Certificate::from_openssh(text.trim()).ok()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
