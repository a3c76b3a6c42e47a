//! What the pipeline asks of a container registry, one method per request of the OCI distribution specification.
//!
//! [`http::HttpRegistry`] speaks it; [`retry::Retrying`] and [`limit::Limited`] wrap any implementation. [`upload`] builds
//! "send this blob, whatever happens on the way" from the single requests. Boundary: knows blobs and manifests as bytes and
//! digests, nothing of components, builds or files in Manifests/.

mod around;
pub mod auth;
pub mod credentials;
pub mod http;
pub mod limit;
pub mod meter;
pub mod retry;
pub mod stand_in;
pub mod upload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::images::hash::Sha256Digest;

/// A request to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection.
    #[error(
        "{operation}: cannot connect to {host}: check the network, a proxy's settings, and that the registry runs"
    )]
    Connect {
        /// What was asked for.
        operation: String,
        /// Host and port.
        host: String,
        /// The client's reason.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke.
    #[error("{operation}: the connection to {host} broke")]
    Interrupted {
        /// What was asked for.
        operation: String,
        /// Host and port.
        host: String,
        /// The client's reason.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing moved any more.
    #[error("{operation}: {host} was silent for {seconds} s")]
    Silent {
        /// What was asked for.
        operation: String,
        /// Host and port.
        host: String,
        /// How long.
        seconds: u64,
    },
    /// The registry does not know us or does not let us.
    #[error("{operation}: {host} refuses access ({reason}): {advice}")]
    Denied {
        /// What was asked for.
        operation: String,
        /// Host and port.
        host: String,
        /// The registry's words.
        reason: String,
        /// What to do.
        advice: String,
    },
    /// The registry says no.
    #[error("{operation}: the registry answers {status} {message}")]
    Status {
        /// What was asked for.
        operation: String,
        /// HTTP status.
        status: u16,
        /// The registry's error code and message.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The registry does not keep to the specification.
    #[error("{operation}: {reason}")]
    Protocol {
        /// What was asked for.
        operation: String,
        /// What is missing or wrong in the answer.
        reason: String,
    },
    /// TLS did not come about.
    #[error("{operation}: no TLS connection to {host}: {reason}")]
    Tls {
        /// What was asked for.
        operation: String,
        /// Host and port.
        host: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A certificate or key for TLS cannot be used.
    #[error("cannot use {path} for TLS: {reason}")]
    Certificate {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The registry deletes nothing.
    #[error("{operation}: the registry deletes nothing ({reason}): {advice}")]
    NoDelete {
        /// What was asked for, and where.
        operation: String,
        /// The registry's words.
        reason: String,
        /// Where it can be done.
        advice: String,
    },
    /// A blob on this machine cannot be read.
    #[error("{operation}: cannot read {path}")]
    Blob {
        /// What was asked for.
        operation: String,
        /// The blob's file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Credentials are there and cannot be used.
    #[error(
        "cannot get the credentials for {registry} from Docker's configuration: {reason}; run `docker login`"
    )]
    Credentials {
        /// The registry.
        registry: String,
        /// The reason, without any secret.
        reason: String,
    },
    /// The local registry could not be started.
    #[error("the local registry does not run: {reason}")]
    StandIn {
        /// What went wrong and what to do.
        reason: String,
    },
}

impl RegistryError {
    /// May the same request succeed if it is made again?
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Interrupted { .. } | Self::Silent { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    /// How long the registry asks us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// A manifest's bytes, exactly as they are hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

impl RawManifest {
    /// The digest that pins it.
    pub fn digest(&self) -> String {
        Sha256Digest::of(&self.bytes).to_string()
    }
}

/// What a registry says about a manifest that it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// The manifest whose list of referrers it joined; nothing where the registry keeps no such lists.
    pub subject: Option<String>,
}

/// One thing that a manifest or an index points to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of what it points to.
    pub media_type: String,
    /// Its digest, `sha256:...`.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
    /// What an artifact's manifest is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Remarks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields of others, which are kept.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A blob's bytes as they come. Nobody has compared them with the digest yet.
pub type BlobStream = BoxStream<'static, Result<Bytes, RegistryError>>;

/// Where an upload goes on.
#[derive(Debug, Clone)]
pub struct Session {
    /// The registry's URL for it, with its state.
    pub location: Url,
    /// Repository that it belongs to.
    pub repository: String,
}

/// The answer to a wish to take a blob over from another repository.
#[derive(Debug)]
pub enum Mount {
    /// The blob is there now.
    Mounted,
    /// It has to be sent; the session is open already.
    Session(Session),
    /// The registry wants nothing of it: the blob is sent in an upload of its own.
    Refused,
}

/// Bytes that can be sent, and sent again.
#[derive(Clone)]
pub struct Blob {
    /// Where they are.
    pub source: BlobSource,
    /// Digest, `sha256:...`.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
    /// Told how many bytes more have left.
    pub progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

/// Where a [`Blob`]'s bytes are.
#[derive(Debug, Clone)]
pub enum BlobSource {
    /// In memory: configurations, which are small.
    Memory(Bytes),
    /// On disk: layers, which are read while they are sent.
    File(PathBuf),
}

/// The requests of the OCI distribution specification that the pipeline needs. `repository` is a path, e.g. `namespace/name`.
#[async_trait]
pub trait Registry: Send + Sync {
    /// The digest behind a tag or digest, if it is there.
    async fn head_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<String>, RegistryError>;
    /// The manifest behind a tag or digest, if it is there.
    async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<Option<RawManifest>, RegistryError>;
    /// Stores a manifest under a tag.
    async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: &RawManifest,
    ) -> Result<Stored, RegistryError>;
    /// The manifests that name `digest` as their subject; nothing if the registry keeps no such lists.
    async fn referrers(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError>;
    /// Is the blob there?
    async fn head_blob(&self, repository: &str, digest: &str) -> Result<bool, RegistryError>;
    /// The blob's bytes, if it is there.
    async fn get_blob(
        &self,
        repository: &str,
        digest: &str,
    ) -> Result<Option<BlobStream>, RegistryError>;
    /// Takes a blob over from another repository of the same registry.
    async fn mount_blob(
        &self,
        repository: &str,
        digest: &str,
        from: &str,
    ) -> Result<Mount, RegistryError>;
    /// Opens an upload.
    async fn start_upload(&self, repository: &str) -> Result<Session, RegistryError>;
    /// Sends `length` bytes of `blob` from `offset`.
    async fn patch_upload(
        &self,
        session: &Session,
        blob: &Blob,
        offset: u64,
        length: u64,
    ) -> Result<Session, RegistryError>;
    /// How many bytes of an interrupted upload arrived; nothing if the registry forgot it.
    async fn upload_status(
        &self,
        session: &Session,
    ) -> Result<Option<(Session, u64)>, RegistryError>;
    /// Closes an upload, sending the whole blob with it when `with_body`.
    async fn finish_upload(
        &self,
        session: &Session,
        blob: &Blob,
        with_body: bool,
    ) -> Result<(), RegistryError>;
    /// All tags of a repository; nothing if there is no such repository.
    async fn list_tags(&self, repository: &str) -> Result<Option<Vec<String>>, RegistryError>;
    /// Deletes a manifest and every tag that names it. False when it was gone already.
    async fn delete_manifest(&self, repository: &str, digest: &str) -> Result<bool, RegistryError>;
}
