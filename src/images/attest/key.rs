//! Keys that sign and verify: ECDSA on P-256, in PEM.
//!
//! A private key is PKCS#8 (`openssl genpkey`), or the form that `cosign generate-key-pair` writes: PKCS#8 in a NaCl secretbox
//! whose key scrypt derives from a password. A public key is a SubjectPublicKeyInfo. What is secret is wiped when it is dropped
//! and appears in no error.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_secretbox::aead::Aead as _;
use crypto_secretbox::{KeyInit as _, XSalsa20Poly1305};
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use serde::Deserialize;
use zeroize::Zeroizing;

/// The environment variable that cosign reads a key's password from.
pub const PASSWORD_VARIABLE: &str = "COSIGN_PASSWORD";

/// No key is as long as this, in bytes.
const KEY_FILE_LIMIT: u64 = 64 * 1024;
/// What scrypt may take: 128 * N * r bytes. cosign writes N = 65536 and r = 8, which is 64 MiB.
const SCRYPT_MEMORY_LIMIT: u64 = 1024 * 1024 * 1024;

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the {role} key {path}")]
    Read {
        /// Private or public.
        role: &'static str,
        /// The key's file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{path} is no {role} key that can be used: {reason}")]
    Format {
        /// Private or public.
        role: &'static str,
        /// The key's file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// It is encrypted.
    #[error(
        "{path} is encrypted: put its password into the environment variable {PASSWORD_VARIABLE}, or name a file that holds it with --password-file"
    )]
    Locked {
        /// The key's file.
        path: PathBuf,
    },
    /// It is encrypted with another password.
    #[error("the password does not open {path}: check {PASSWORD_VARIABLE} or --password-file")]
    Password {
        /// The key's file.
        path: PathBuf,
    },
    /// The password's file cannot be read.
    #[error("cannot read the password file {path}")]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Where a signing key is and how it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// The key.
    pub path: PathBuf,
    /// A file whose first line is the password; without one, [`PASSWORD_VARIABLE`] counts.
    pub password_file: Option<PathBuf>,
}

/// A key that signs.
pub struct PrivateKey(SigningKey);

/// A key that verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// cosign's encrypted key, as go-tuf writes it.
#[derive(Deserialize)]
struct Sealed {
    kdf: Derivation,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Derivation {
    name: String,
    params: ScryptParameters,
    salt: String,
}

#[derive(Deserialize)]
struct ScryptParameters {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

impl KeyFile {
    /// Opens the key.
    pub fn open(&self) -> Result<PrivateKey, KeyError> {
        PrivateKey::read(&self.path, || self.password())
    }

    fn password(&self) -> Result<Option<Zeroizing<String>>, KeyError> {
        let Some(path) = &self.password_file else {
            return Ok(std::env::var(PASSWORD_VARIABLE).ok().map(Zeroizing::new));
        };
        let text = fs::read_to_string(path).map_err(|source| KeyError::PasswordFile {
            path: path.clone(),
            source,
        })?;
        let text = Zeroizing::new(text);
        let line = text.lines().next().unwrap_or_default();
        Ok(Some(Zeroizing::new(line.to_owned())))
    }
}

impl PrivateKey {
    /// Reads a key. `password` is asked only if the key is encrypted.
    pub fn read(
        path: &Path,
        password: impl FnOnce() -> Result<Option<Zeroizing<String>>, KeyError>,
    ) -> Result<Self, KeyError> {
        let text = read_text(path, "private")?;
        let format = |reason: String| KeyError::Format {
            role: "private",
            path: path.to_owned(),
            reason,
        };
        let (label, bytes) = pem_rfc7468::decode_vec(text.as_bytes())
            .map_err(|error| format(format!("it is not PEM ({error})")))?;
        let bytes = Zeroizing::new(bytes);
        let der = match label {
            "PRIVATE KEY" => bytes,
            "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => {
                let password = password()?.ok_or_else(|| KeyError::Locked {
                    path: path.to_owned(),
                })?;
                unseal(&bytes, &password)
                    .map_err(format)?
                    .ok_or_else(|| KeyError::Password {
                        path: path.to_owned(),
                    })?
            }
            "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => {
                return Err(format(format!(
                    "it is an `{label}`: convert it with `openssl pkcs8 -topk8 -nocrypt -in {}`",
                    path.display()
                )));
            }
            "PUBLIC KEY" => return Err(format("it is the public half".to_owned())),
            other => return Err(format(format!("it is a `{other}`"))),
        };
        let key = SigningKey::from_pkcs8_der(&der).map_err(|_| {
            format(
                "it is not on the curve P-256: make one with `cosign generate-key-pair`".to_owned(),
            )
        })?;
        Ok(Self(key))
    }

    /// An ASN.1 ECDSA signature over the SHA-256 of `message`. RFC 6979: equal messages give equal signatures.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: DerSignature = self.0.sign(message);
        signature.as_bytes().to_vec()
    }

    /// The half that verifies.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.verifying_key())
    }
}

impl PublicKey {
    /// Reads a key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = read_text(path, "public")?;
        let key = VerifyingKey::from_public_key_pem(&text).map_err(|error| KeyError::Format {
            role: "public",
            path: path.to_owned(),
            reason: format!(
                "a PEM `PUBLIC KEY` on the curve P-256 is wanted, such as cosign.pub ({error})"
            ),
        })?;
        Ok(Self(key))
    }

    /// Is this an ASN.1 ECDSA signature of ours over `message`?
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        DerSignature::try_from(signature)
            .is_ok_and(|signature| self.0.verify(message, &signature).is_ok())
    }
}

fn read_text(path: &Path, role: &'static str) -> Result<Zeroizing<String>, KeyError> {
    let read = |source| KeyError::Read {
        role,
        path: path.to_owned(),
        source,
    };
    let length = fs::metadata(path).map_err(read)?.len();
    if length > KEY_FILE_LIMIT {
        return Err(KeyError::Format {
            role,
            path: path.to_owned(),
            reason: format!("it has {length} bytes, more than any key"),
        });
    }
    fs::read_to_string(path).map(Zeroizing::new).map_err(read)
}

/// The PKCS#8 key in cosign's box; nothing if the password is another one.
fn unseal(json: &[u8], password: &str) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    let sealed: Sealed = serde_json::from_slice(json)
        .map_err(|error| format!("its encrypted content is not what cosign writes ({error})"))?;
    if sealed.kdf.name != "scrypt" || sealed.cipher.name != "nacl/secretbox" {
        return Err(format!(
            "it is encrypted with {} and {}, where scrypt and nacl/secretbox are known",
            sealed.kdf.name, sealed.cipher.name
        ));
    }
    let decode = |what: &str, text: &str| {
        STANDARD
            .decode(text)
            .map_err(|error| format!("its {what} is not base64 ({error})"))
    };
    let salt = decode("salt", &sealed.kdf.salt)?;
    let nonce: [u8; 24] = decode("nonce", &sealed.cipher.nonce)?
        .try_into()
        .map_err(|_| "its nonce does not have 24 bytes".to_owned())?;
    let ciphertext = decode("ciphertext", &sealed.ciphertext)?;
    let ScryptParameters { n, r, p } = sealed.kdf.params;
    let memory = n.checked_mul(128 * u64::from(r));
    if !n.is_power_of_two() || p > 16 || memory.is_none_or(|memory| memory > SCRYPT_MEMORY_LIMIT) {
        return Err(format!(
            "its scrypt parameters N={n} r={r} p={p} cannot be used"
        ));
    }
    let exponent = u8::try_from(n.ilog2()).map_err(|error| error.to_string())?;
    let parameters = scrypt::Params::new(exponent, r, p)
        .map_err(|error| format!("its scrypt parameters cannot be used ({error})"))?;
    let mut key = Zeroizing::new([0; 32]);
    scrypt::scrypt(password.as_bytes(), &salt, &parameters, key.as_mut())
        .map_err(|error| error.to_string())?;
    let opened =
        XSalsa20Poly1305::new(key.as_ref().into()).decrypt(&nonce.into(), ciphertext.as_slice());
    Ok(opened.ok().map(Zeroizing::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};

    fn key() -> SigningKey {
        SigningKey::from_slice(&[7; 32]).unwrap()
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn sealed(password: &str) -> String {
        let mut derived = [0; 32];
        let parameters = scrypt::Params::new(4, 8, 1).unwrap();
        scrypt::scrypt(password.as_bytes(), b"salt", &parameters, &mut derived).unwrap();
        let der = key().to_pkcs8_der().unwrap();
        let nonce = [3; 24];
        let ciphertext = XSalsa20Poly1305::new(&derived.into())
            .encrypt(&nonce.into(), der.as_bytes())
            .unwrap();
        let json = serde_json::json!({
            "kdf": {"name": "scrypt", "params": {"N": 16, "r": 8, "p": 1}, "salt": STANDARD.encode(b"salt")},
            "cipher": {"name": "nacl/secretbox", "nonce": STANDARD.encode(nonce)},
            "ciphertext": STANDARD.encode(ciphertext),
        });
        pem_rfc7468::encode_string(
            "ENCRYPTED SIGSTORE PRIVATE KEY",
            LineEnding::LF,
            json.to_string().as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn a_plain_key_signs_what_its_public_half_verifies_and_signs_it_equally_again() {
        let pem = key().to_pkcs8_pem(LineEnding::LF).unwrap();
        let (_folder, path) = file(&pem);
        let private = PrivateKey::read(&path, || panic!("a plain key has no password")).unwrap();
        let signature = private.sign(b"message");
        assert_eq!(signature, private.sign(b"message"));
        let pem = key()
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .unwrap();
        let (_folder, path) = file(&pem);
        let public = PublicKey::read(&path).unwrap();
        assert_eq!(public, private.public());
        assert!(public.verifies(b"message", &signature));
        assert!(!public.verifies(b"massage", &signature));
        assert!(!public.verifies(b"message", b"nonsense"));
    }

    #[test]
    fn an_encrypted_key_opens_with_its_password_alone() {
        let (_folder, path) = file(&sealed("open sesame"));
        let with = |password: Option<&str>| {
            let password = password.map(|text| Zeroizing::new(text.to_owned()));
            PrivateKey::read(&path, || Ok(password))
        };
        let opened = with(Some("open sesame")).unwrap();
        assert_eq!(opened.public(), PublicKey(*key().verifying_key()));
        let wrong = with(Some("hush-hush")).err().unwrap();
        assert!(matches!(wrong, KeyError::Password { .. }), "{wrong:?}");
        assert!(!format!("{wrong} {wrong:?}").contains("hush"));
        assert!(matches!(with(None), Err(KeyError::Locked { .. })));
    }

    #[test]
    fn the_first_line_of_a_file_is_the_password() {
        let (_folder, path) = file(&sealed("open sesame"));
        let (_other, password) = file("open sesame\n");
        let key = KeyFile {
            path,
            password_file: Some(password),
        };
        assert!(key.open().is_ok());
    }

    #[test]
    fn what_is_no_key_is_refused_with_a_next_step() {
        let huge = sealed("x").replace('\n', "");
        for (text, words) in [
            ("hello", "not PEM"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
                "openssl pkcs8 -topk8",
            ),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                "P-256",
            ),
            (
                "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
                "public half",
            ),
            (huge.as_str(), "not PEM"),
        ] {
            let (_folder, path) = file(text);
            let error = PrivateKey::read(&path, || Ok(None)).err().unwrap();
            assert!(error.to_string().contains(words), "{error}");
        }
        let greedy = serde_json::json!({
            "kdf": {"name": "scrypt", "params": {"N": 1_u64 << 40, "r": 8, "p": 1}, "salt": ""},
            "cipher": {"name": "nacl/secretbox", "nonce": STANDARD.encode([0; 24])},
            "ciphertext": "",
        });
        let error = unseal(greedy.to_string().as_bytes(), "x").unwrap_err();
        assert!(error.contains("scrypt parameters"), "{error}");
    }
}
