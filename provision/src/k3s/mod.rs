//! K3s's side of the contract: its paths, files, assets and what its journal means.
//!
//! Pure: everything here turns values into values. The facts are K3s's documentation and source.

pub(crate) mod config;
pub(crate) mod datastore;
pub(crate) mod flags;
pub(crate) mod journal;
pub(crate) mod paths;
pub(crate) mod registries;
pub(crate) mod release;
pub(crate) mod units;
mod yaml;

pub(crate) use yaml::YamlError;
