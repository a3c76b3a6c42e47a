//! The join over SSH: key files, the client that asks for a token, the server that grants one.
//!
//! The server here is no login: it authenticates a key, reads one request, answers it and closes.
//! What a grant and what facts are made of is the caller's business (see [`server::Grantor`] and
//! [`server::FactsSource`]).

mod algorithms;
pub mod authorized;
pub mod client;
mod deadline;
pub mod keys;
pub mod server;

pub use authorized::{AuthorizedKeys, Member, Principal};
pub use russh::keys::{PrivateKey, PublicKey};
