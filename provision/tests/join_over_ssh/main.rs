//! The join over real SSH between two network namespaces. Needs root, iproute2 and OpenSSH's client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod facts;
mod limits;
mod openssh;
mod support;
mod tokens;
