//! Counts what goes over the wire: the report's numbers are measured, not derived.

use std::sync::atomic::{AtomicU64, Ordering};

/// Requests and bytes since it was made.
#[derive(Debug, Default)]
pub struct Meter {
    requests: AtomicU64,
    bytes_sent: AtomicU64,
}

impl Meter {
    /// One more request leaves.
    pub fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of a request's body left.
    pub fn sent(&self, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Requests made, tokens and repetitions included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of request bodies sent.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }
}
