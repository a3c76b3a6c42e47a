//! Command line.
pub mod images;
