//! The host key that somebody wrote down: whole, or its fingerprint.

use std::fmt;
use std::str::FromStr;

use russh::keys::ssh_key::Fingerprint;
use russh::keys::{HashAlg, PublicKey};

/// `ssh-ed25519 AAAA...` or `SHA256:...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostKeyPin {
    Key(PublicKey),
    Fingerprint(Fingerprint),
}

/// What is wrong with a pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a host key: expected one as in `ssh-ed25519 AAAA...`, or a fingerprint as in `SHA256:...`"
)]
pub struct HostKeyPinError;

impl HostKeyPin {
    pub(super) fn matches(&self, key: &PublicKey) -> bool {
        match self {
            HostKeyPin::Key(pinned) => pinned.key_data() == key.key_data(),
            HostKeyPin::Fingerprint(pinned) => *pinned == key.fingerprint(HashAlg::Sha256),
        }
    }
}

impl FromStr for HostKeyPin {
    type Err = HostKeyPinError;

    fn from_str(text: &str) -> Result<Self, HostKeyPinError> {
        let text = text.trim();
        if text.starts_with("SHA256:") {
            // Some tools pad what OpenSSH does not.
            let fingerprint = text.trim_end_matches('=').parse();
            return fingerprint
                .map(HostKeyPin::Fingerprint)
                .map_err(|_| HostKeyPinError);
        }
        PublicKey::from_openssh(text)
            .map(HostKeyPin::Key)
            .map_err(|_| HostKeyPinError)
    }
}

impl fmt::Display for HostKeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostKeyPin::Key(key) => key.fingerprint(HashAlg::Sha256).fmt(f),
            HostKeyPin::Fingerprint(fingerprint) => fingerprint.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn a_key_and_its_fingerprint_are_the_same_pin() {
        let pin: HostKeyPin = KEY.parse().unwrap();
        let HostKeyPin::Key(key) = &pin else {
            panic!("{pin:?}")
        };
        let fingerprint: HostKeyPin = format!("{pin}=").parse().unwrap();
        assert!(pin.matches(key) && fingerprint.matches(key));
        assert!(
            format!("{KEY} a comment")
                .parse::<HostKeyPin>()
                .unwrap()
                .matches(key)
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "SHA256:",
            "SHA256:short",
            "MD5:aa:bb",
            "ssh-ed25519",
            "ssh-rsa !!",
            KEY.get(12..).unwrap(),
        ] {
            assert_eq!(text.parse::<HostKeyPin>(), Err(HostKeyPinError), "{text}");
        }
    }
}
