//! orch.

pub mod cli;
pub mod commands;
pub mod files;
pub mod kube;
pub mod manifests;
