//! Steps that know whether they are needed, and the runner that reports what becomes of them.
//!
//! No step is known here, and nothing is printed: events go to a [`Reporter`].

mod report;
mod run;
mod step;
mod wait;

pub use report::{Recorder, Reporter, StepReport};
pub use run::{Runner, Witness};
pub use step::{Check, ExitCoded, Need, Step, StepFailure, error_chain};
pub use wait::{Probe, Wait, WaitError};
