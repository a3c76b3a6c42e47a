//! Commands.
pub mod images;
