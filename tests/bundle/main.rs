//! Bundles: what is written is read, nothing else is, and what comes out is what went in.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on has failed"
)]

mod containerd;
mod create;
mod files;
mod hostile;
#[path = "../images_fake/mod.rs"]
mod images_fake;
#[path = "../images_project/mod.rs"]
mod images_project;
mod install;
mod site;
