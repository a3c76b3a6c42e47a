//! orch.

pub mod config;
pub mod exit;
pub mod host;
pub mod process;
pub mod project;
