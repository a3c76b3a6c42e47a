//! Whether the key that a host shows is the right one, and which kinds of keys to ask it for.
//!
//! A pinned key decides alone. Otherwise the lists of known hosts do, as OpenSSH reads them; who is in none is refused.
//! Certificates of hosts are not supported, and no list is ever written.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use russh::keys::ssh_key::EcdsaCurve;
use russh::keys::{Algorithm, HashAlg, PublicKey};

use super::error::Reason;
use super::host_key_pin::HostKeyPin;
use super::known_hosts::{self, Entry, Marker, name_with_port};
use super::target::Hop;

/// What is known of one host's keys.
#[derive(Debug, Clone)]
pub(super) struct HostKeys {
    ssh: String,
    /// The name under which it is listed, which is also what people call it.
    name: String,
    pin: Option<HostKeyPin>,
    entries: Vec<Entry>,
    /// Entries for the name without its port, which OpenSSH accepts where the port has none.
    portless: Vec<Entry>,
    revoked: Vec<(PublicKey, String)>,
    files: Vec<String>,
}

impl HostKeys {
    /// Reads the lists.
    pub(super) async fn of(hop: &Hop) -> Result<Self, Reason> {
        let name = match &hop.host_key_alias {
            Some(alias) => alias.to_lowercase(),
            None => name_with_port(&hop.host, hop.port),
        };
        let mut keys = Self {
            ssh: hop.ssh.clone(),
            pin: hop.pin.clone(),
            entries: Vec::new(),
            portless: Vec::new(),
            revoked: Vec::new(),
            files: Vec::new(),
            name,
        };
        if let Some(path) = &hop.revoked_host_keys {
            // A list that cannot be read revokes everything, in OpenSSH as well.
            let text = tokio::fs::read_to_string(path).await;
            let text = text.map_err(|source| Reason::KnownHosts {
                path: path.clone(),
                source,
            })?;
            keys.revoke(&text, path)?;
        }
        if keys.pin.is_some() {
            return Ok(keys);
        }
        for path in &hop.known_hosts {
            let text = match tokio::fs::read(path).await {
                // Other lines may be anything.
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    let path = path.clone();
                    return Err(Reason::KnownHosts { path, source });
                }
            };
            keys.read(&text, path, hop);
        }
        Ok(keys)
    }

    fn read(&mut self, text: &str, path: &Path, hop: &Hop) {
        self.files.push(path.display().to_string());
        self.entries
            .extend(known_hosts::entries(text, path, &self.name));
        if hop.host_key_alias.is_none() && hop.port != 22 {
            let portless = name_with_port(&hop.host, 22);
            self.portless
                .extend(known_hosts::entries(text, path, &portless));
        }
    }

    /// A line that cannot be read might be the one that counts.
    fn revoke(&mut self, text: &str, path: &Path) -> Result<(), Reason> {
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = PublicKey::from_openssh(line).map_err(|_| Reason::KnownHosts {
                path: path.to_owned(),
                source: io::Error::other(format!("line {number} is no public key")),
            })?;
            self.revoked.push((key, path.display().to_string()));
        }
        Ok(())
    }

    /// The kinds of keys to ask for, those first that are known: a host has several, and shows the first that is asked for.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let known: BTreeSet<String> = match &self.pin {
            Some(HostKeyPin::Key(key)) => [family(&key.algorithm())].into(),
            Some(HostKeyPin::Fingerprint(_)) => BTreeSet::new(),
            None => {
                let entries = if self.entries.is_empty() {
                    &self.portless
                } else {
                    &self.entries
                };
                let plain = entries.iter().filter(|entry| entry.marker == Marker::Plain);
                plain.map(|entry| family(&entry.key.algorithm())).collect()
            }
        };
        let mut all = supported();
        // The sort is stable: within a kind, the better comes first.
        all.sort_by_key(|algorithm| !known.contains(&family(algorithm)));
        all
    }

    /// A fingerprint does not say of which kind of key it is: each is asked for in turn.
    pub(super) fn attempts(&self) -> Vec<Vec<Algorithm>> {
        if !matches!(self.pin, Some(HostKeyPin::Fingerprint(_))) {
            return vec![self.algorithms()];
        }
        let mut attempts: Vec<Vec<Algorithm>> = Vec::new();
        for algorithm in supported() {
            match attempts.last_mut() {
                Some(last) if last.first().map(family) == Some(family(&algorithm)) => {
                    last.push(algorithm);
                }
                _ => attempts.push(vec![algorithm]),
            }
        }
        attempts
    }

    /// Whether this is the host's key.
    pub(super) fn verify(&self, shown: &PublicKey) -> Result<(), Reason> {
        let revoked_here = self.entries.iter().chain(&self.portless);
        let revoked_here = revoked_here.filter(|entry| entry.marker == Marker::Revoked);
        let revoked = revoked_here.map(|entry| (&entry.key, entry.place.to_string()));
        let revoked = revoked.chain(self.revoked.iter().map(|(key, place)| (key, place.clone())));
        for (key, place) in revoked {
            if key.key_data() == shown.key_data() {
                return Err(Reason::RevokedHostKey {
                    host: self.name.clone(),
                    fingerprint: fingerprint(shown),
                    place,
                });
            }
        }
        if let Some(pin) = &self.pin {
            if pin.matches(shown) {
                return Ok(());
            }
            let expected = format!("{pin}, the one that was given for it");
            return Err(self.changed(
                shown,
                expected,
                "give the new one as `ssh.host_key` in orch.yaml".into(),
            ));
        }
        let plain = |entry: &&Entry| entry.marker == Marker::Plain;
        let is_shown = |entry: &Entry| entry.key.key_data() == shown.key_data();
        let known: Vec<&Entry> = self.entries.iter().filter(plain).collect();
        if known.iter().any(|entry| is_shown(entry)) {
            return Ok(());
        }
        if !known.is_empty() {
            let expected = known.iter().map(|entry| {
                format!(
                    "{} ({}, {})",
                    fingerprint(&entry.key),
                    entry.key.algorithm(),
                    entry.place
                )
            });
            let expected = expected.collect::<Vec<_>>().join(" or ");
            let remedy = known
                .iter()
                .map(|entry| entry.place.removal(&self.name))
                .collect::<BTreeSet<_>>();
            let remedy = format!(
                "remove the old one: {}",
                remedy.into_iter().collect::<Vec<_>>().join("; ")
            );
            return Err(self.changed(shown, expected, remedy));
        }
        if self.portless.iter().filter(plain).any(is_shown) {
            return Ok(());
        }
        Err(self.unknown(shown))
    }

    fn changed(&self, shown: &PublicKey, expected: String, remedy: String) -> Reason {
        Reason::ChangedHostKey {
            host: self.name.clone(),
            algorithm: shown.algorithm().to_string(),
            fingerprint: fingerprint(shown),
            expected,
            remedy,
        }
    }

    fn unknown(&self, shown: &PublicKey) -> Reason {
        let authority = self
            .entries
            .iter()
            .find(|entry| entry.marker == Marker::CertificateAuthority);
        let note = match authority {
            Some(entry) => format!(
                "; {} has a certificate authority for it, but certificates of hosts are not supported here: the host's own key is needed",
                entry.place
            ),
            None if self.files.is_empty() => "; there is no list of known hosts".into(),
            None => format!("; not in {}", self.files.join(", ")),
        };
        let mut key = shown.clone();
        key.set_comment("");
        Reason::UnknownHost {
            host: self.name.clone(),
            algorithm: shown.algorithm().to_string().into(),
            fingerprint: fingerprint(shown),
            key: key.to_openssh().unwrap_or_default().trim_end().to_owned(),
            note: note.into(),
            ssh: self.ssh.as_str().into(),
        }
    }
}

pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// What we verify, in order of preference. RSA with SHA-1 is not among it, as in OpenSSH since 8.8.
fn supported() -> Vec<Algorithm> {
    let ecdsa = [
        EcdsaCurve::NistP256,
        EcdsaCurve::NistP384,
        EcdsaCurve::NistP521,
    ];
    let rsa = [HashAlg::Sha512, HashAlg::Sha256];
    let mut all = vec![Algorithm::Ed25519];
    all.extend(ecdsa.map(|curve| Algorithm::Ecdsa { curve }));
    all.extend(rsa.map(|hash| Algorithm::Rsa { hash: Some(hash) }));
    all
}

/// One name for all that one key can do.
fn family(algorithm: &Algorithm) -> String {
    match algorithm {
        Algorithm::Rsa { .. } => "rsa".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "host_keys_tests.rs"]
mod tests;
