//! orch.

pub mod config;
