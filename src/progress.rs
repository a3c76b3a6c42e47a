//! How long work says what it is doing. Domains report through this trait; only `ui` implements it
//! for people and machines.

/// Receives what a piece of work has to say while it runs.
pub trait Progress: Send + Sync {
    /// One line for people, without a line end.
    fn note(&self, text: &str);
    /// `done` of `total` bytes of `what`; `None` where the total is not known.
    fn bytes(&self, what: &str, done: u64, total: Option<u64>);
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn note(&self, _: &str) {}
    fn bytes(&self, _: &str, _: u64, _: Option<u64>) {}
}
