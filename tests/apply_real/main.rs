//! `orch apply` against a real API server, scheduler and controller manager.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests may stop at the first surprise, as tests do"
)]

mod api_server;
mod fixture;
mod kubelet;
mod nodes;
mod objects;
mod refusals;
mod rollouts;
mod shipped;
