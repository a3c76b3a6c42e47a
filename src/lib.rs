//! orch: turns empty machines into a K3s cluster, and Dockerfiles into pinned, running images.
//!
//! `cli` parses, `commands` composes, the domain folders do the work and never import one another;
//! `process`, `progress` and `project` are what they all may use.

pub mod artifacts;
pub mod bundle;
pub mod cli;
pub mod commands;
pub mod config;
pub mod exit;
pub mod files;
pub mod host;
pub mod images;
pub mod kube;
pub mod machines;
pub mod manifests;
pub mod nodes;
pub mod process;
pub mod progress;
pub mod project;
pub mod remote;
pub mod ui;
