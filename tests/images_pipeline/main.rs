//! The whole pipeline with a real builder and a real registry: names, layers, pushes, pins and checks.
//!
//! Needs Docker and, for the first run, a Debian mirror: the registry is this repository's own image.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../images_fake/mod.rs"]
mod images_fake;

mod bases;
mod check;
mod project;
mod pushes;
mod refusals;
