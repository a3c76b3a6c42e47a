//! What was found around a failure, while the machine is still as it was.

use serde::{Deserialize, Serialize};

/// Lines for people under a title; bounded, and without anything secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Whose lines they are: `journal of k3s.service`.
    pub title: String,
    pub lines: Vec<String>,
}
