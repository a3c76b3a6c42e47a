//! The join over real SSH between two network namespaces. Needs root, iproute2, OpenSSH's client and, for
//! tokens in a real API server, the stand-in for K3s.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod facts;
mod limits;
mod openssh;
mod real_cluster;
mod servers;
mod support;
mod tokens;
