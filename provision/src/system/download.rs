//! Downloads: https only, certificates verified, proxies honoured, into a file.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use orch_contract::Unit;
use orch_runner::StepReport;
use tokio::io::AsyncWriteExt;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that delivers nothing for this long is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 3;
const REPORT_EVERY_BYTES: u64 = 8 << 20;

/// A download that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownloadError {
    #[error("cannot set up TLS")]
    Client(#[source] reqwest::Error),
    #[error("cannot download {url}")]
    Request { url: String, source: reqwest::Error },
    #[error("cannot download {url}: the server answered {status}")]
    Status { url: String, status: u16 },
    #[error("the download of {url} did not end within {} s", timeout.as_secs())]
    Timeout { url: String, timeout: Duration },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl DownloadError {
    fn is_transient(&self) -> bool {
        match self {
            DownloadError::Request { .. } => true,
            DownloadError::Status { status, .. } => *status == 429 || *status >= 500,
            DownloadError::Client(_)
            | DownloadError::Timeout { .. }
            | DownloadError::Write { .. } => false,
        }
    }
}

/// Fetches a URL into a file. The file is the caller's to verify and to rename.
#[async_trait]
pub(crate) trait Download: Send + Sync {
    async fn fetch(
        &self,
        url: &str,
        to: &Path,
        timeout: Duration,
        report: &StepReport<'_>,
    ) -> Result<(), DownloadError>;
}

/// The real network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Https;

impl Https {
    async fn attempt(url: &str, to: &Path, report: &StepReport<'_>) -> Result<(), DownloadError> {
        let request = |source| DownloadError::Request {
            url: url.to_owned(),
            source,
        };
        let write = |source| DownloadError::Write {
            path: to.to_owned(),
            source,
        };
        let client = reqwest::Client::builder()
            .https_only(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("orch-provision/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(DownloadError::Client)?;
        let mut response = client.get(url).send().await.map_err(request)?;
        if !response.status().is_success() {
            return Err(DownloadError::Status {
                url: url.to_owned(),
                status: response.status().as_u16(),
            });
        }
        let total = response.content_length();
        let mut file = tokio::fs::File::create(to).await.map_err(write)?;
        let (mut done, mut reported) = (0, 0);
        while let Some(chunk) = response.chunk().await.map_err(request)? {
            file.write_all(&chunk).await.map_err(write)?;
            done += chunk.len() as u64;
            if done - reported >= REPORT_EVERY_BYTES {
                report.progress(done, total, Unit::Bytes);
                reported = done;
            }
        }
        file.sync_all().await.map_err(write)?;
        report.progress(done, total, Unit::Bytes);
        Ok(())
    }

    async fn with_retries(
        url: &str,
        to: &Path,
        report: &StepReport<'_>,
    ) -> Result<(), DownloadError> {
        let mut attempt = 1;
        loop {
            match Self::attempt(url, to, report).await {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                    report.warn(format!("{error}; trying again ({attempt} of {ATTEMPTS})"));
                    tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }
}

#[async_trait]
impl Download for Https {
    async fn fetch(
        &self,
        url: &str,
        to: &Path,
        timeout: Duration,
        report: &StepReport<'_>,
    ) -> Result<(), DownloadError> {
        // Installing the process-wide provider twice is harmless: the first one stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if let Some(directory) = to.parent() {
            std::fs::create_dir_all(directory).map_err(|source| DownloadError::Write {
                path: directory.to_owned(),
                source,
            })?;
        }
        tokio::time::timeout(timeout, Self::with_retries(url, to, report))
            .await
            .unwrap_or(Err(DownloadError::Timeout {
                url: url.to_owned(),
                timeout,
            }))
    }
}

#[cfg(test)]
pub(crate) use fake::FakeDownload;

#[cfg(test)]
mod fake {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::super::{Files, MemoryFiles};
    use super::*;

    /// Serves from a map into files in memory; anything else is a 404.
    pub(crate) struct FakeDownload<'a> {
        pub(crate) files: &'a MemoryFiles,
        pub(crate) pages: BTreeMap<String, String>,
        pub(crate) asked: Mutex<Vec<String>>,
    }

    impl<'a> FakeDownload<'a> {
        pub(crate) fn new(files: &'a MemoryFiles, pages: &[(&str, &str)]) -> Self {
            Self {
                files,
                pages: pages
                    .iter()
                    .map(|(url, text)| ((*url).to_owned(), (*text).to_owned()))
                    .collect(),
                asked: Mutex::default(),
            }
        }
    }

    #[async_trait]
    impl Download for FakeDownload<'_> {
        async fn fetch(
            &self,
            url: &str,
            to: &Path,
            _timeout: Duration,
            _report: &StepReport<'_>,
        ) -> Result<(), DownloadError> {
            self.asked.lock().unwrap().push(url.to_owned());
            let page = self.pages.get(url).ok_or_else(|| DownloadError::Status {
                url: url.to_owned(),
                status: 404,
            })?;
            self.files.write(to, page.as_bytes(), 0o644).unwrap();
            Ok(())
        }
    }
}
