//! Whose certificates a registry may have, and who we are to it: a CA file, and the folders that Docker reads.
//!
//! These come on top of what the system trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` included). Nothing turns verification off.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, ClientBuilder, Identity};
use zeroize::Zeroizing;

use crate::images::registry::RegistryError;

/// Where Docker's and Podman's engines look for a folder named like the registry.
const FOLDERS: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];
/// Where rootless Docker looks, below the home folder.
const HOME_FOLDER: &str = ".config/docker/certs.d";

/// How rustls words that the other side does not like something.
const ALERT: &str = "received fatal alert";

/// What is trusted and shown besides the system's own.
#[derive(Default)]
pub(super) struct Trust {
    authorities: Vec<Certificate>,
    identity: Option<Identity>,
}

/// The folders of this host.
pub(super) fn folders() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(HOME_FOLDER));
    FOLDERS.iter().map(PathBuf::from).chain(home).collect()
}

impl Trust {
    /// Reads `file` and, in each of `folders`, the folder called `registry`: `*.crt` are CAs, `*.cert` with `*.key` is our own
    /// certificate.
    pub(super) fn read(
        registry: &str,
        file: Option<&Path>,
        folders: &[PathBuf],
    ) -> Result<Self, RegistryError> {
        let mut trust = Self::default();
        if let Some(file) = file {
            trust.add_authorities(file)?;
        }
        for folder in folders {
            trust.add_folder(&folder.join(registry))?;
        }
        Ok(trust)
    }

    fn add_folder(&mut self, folder: &Path) -> Result<(), RegistryError> {
        let items = match std::fs::read_dir(folder) {
            Ok(items) => items,
            // Most registries have none, and a path through a file is none either. What only root may read (`/etc/docker` is often so)
            // is there for root's engine: whoever needs it here is told by the connection that fails.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound
                        | std::io::ErrorKind::NotADirectory
                        | std::io::ErrorKind::PermissionDenied
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(unusable(folder, &error.to_string())),
        };
        let mut paths = Vec::new();
        for item in items {
            paths.push(
                item.map_err(|error| unusable(folder, &error.to_string()))?
                    .path(),
            );
        }
        paths.sort();
        for path in &paths {
            match path.extension().and_then(OsStr::to_str) {
                Some("crt") => self.add_authorities(path)?,
                Some("cert") => self.set_identity(path, &path.with_extension("key"))?,
                Some("key") if !path.with_extension("cert").exists() => {
                    let wanted = path.with_extension("cert");
                    return Err(unusable(
                        path,
                        &format!(
                            "the certificate {} that belongs to it is missing",
                            wanted.display()
                        ),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add_authorities(&mut self, path: &Path) -> Result<(), RegistryError> {
        let bytes = read(path)?;
        let found = Certificate::from_pem_bundle(&bytes)
            .map_err(|_| unusable(path, "it is not PEM (`-----BEGIN CERTIFICATE-----`)"))?;
        if found.is_empty() {
            return Err(unusable(path, "it holds no certificate in PEM form"));
        }
        self.authorities.extend(found);
        Ok(())
    }

    fn set_identity(&mut self, certificate: &Path, key: &Path) -> Result<(), RegistryError> {
        if self.identity.is_some() {
            return Ok(());
        }
        let mut both = read(certificate)?;
        both.push(b'\n');
        both.extend_from_slice(&read(key)?);
        let identity = Identity::from_pem(&both).map_err(|_| {
            let reason = format!(
                "it and {} are no certificate and key in PEM form",
                key.display()
            );
            unusable(certificate, &reason)
        })?;
        self.identity = Some(identity);
        Ok(())
    }

    /// A client that trusts and shows all this.
    pub(super) fn apply(&self, builder: ClientBuilder) -> ClientBuilder {
        let builder = if self.authorities.is_empty() {
            builder
        } else {
            builder.tls_certs_merge(self.authorities.iter().cloned())
        };
        match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    }
}

/// Keys are read by this, too.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, RegistryError> {
    std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|error| unusable(path, &error.to_string()))
}

fn unusable(path: &Path, reason: &str) -> RegistryError {
    RegistryError::Certificate {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// What TLS did not like about a connection, with what to do; nothing if it was something else.
pub(super) fn complaint(error: &reqwest::Error, host: &str) -> Option<String> {
    let chain = || {
        std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| {
            error.source()
        })
    };
    let Some(found) = chain().find_map(tls_error) else {
        // HTTP/2 keeps only the words of what broke its connection.
        let words = chain().map(ToString::to_string);
        return words
            .filter(|words| words.contains(ALERT))
            .last()
            .map(|words| refusal(&words, host));
    };
    Some(match found {
        rustls::Error::InvalidCertificate(reason) => {
            let expected = matches!(
                reason,
                rustls::CertificateError::NotValidForName
                    | rustls::CertificateError::NotValidForNameContext { .. }
                    | rustls::CertificateError::Expired
                    | rustls::CertificateError::ExpiredContext { .. }
                    | rustls::CertificateError::NotValidYet
                    | rustls::CertificateError::NotValidYetContext { .. }
            );
            if expected {
                format!("its certificate cannot be accepted ({found}): the registry needs another one")
            } else {
                format!(
                    "its certificate is signed by nobody who is trusted here ({found}): name the CA's certificate with --ca-file \
                     or SSL_CERT_FILE, or put it into /etc/docker/certs.d/{host}/ca.crt"
                )
            }
        }
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS: if it is meant to be spoken to in the clear, say so with --plain-http".to_owned()
        }
        rustls::Error::AlertReceived(_) => refusal(&found.to_string(), host),
        other => format!("TLS failed: {other}"),
    })
}

fn refusal(words: &str, host: &str) -> String {
    format!(
        "it refuses the connection ({words}): if it wants a certificate of ours, put it into \
         /etc/docker/certs.d/{host}/client.cert and client.key"
    )
}

/// An I/O error hides what it wraps from [`std::error::Error::source`].
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    let inner: &'a (dyn std::error::Error + 'static) =
        error.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls_error(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(path: &str, content: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("registry.example:5000");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join(path), content).unwrap();
        let folders = [folder.path().to_owned()];
        let read = Trust::read("registry.example:5000", None, &folders);
        read.err().unwrap().to_string()
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let text = fails("ca.crt", "not PEM");
        assert!(text.contains("ca.crt"), "{text}");
        let text = fails("client.cert", "x");
        assert!(text.contains("client.key"), "{text}");
        let text = fails("client.key", "hush");
        assert!(text.contains("client.cert"), "{text}");
        assert!(!text.contains("hush"), "{text}");
        let missing = Trust::read("r", Some(Path::new("/nonexistent/ca.pem")), &[]);
        let text = missing.err().unwrap().to_string();
        assert!(text.contains("/nonexistent/ca.pem"), "{text}");
    }

    #[test]
    fn no_folder_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Trust::read("r", None, &[folder.path().to_owned()]).is_ok());
    }
}
