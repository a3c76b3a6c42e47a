//! The cluster as its API server shows it: apply, plan, wait, status.
//!
//! Boundary: takes a kubeconfig path and JSON objects, talks to one API server and reports events. It
//! knows no files of manifests, no images and no terminal. Values of Secrets never leave it: not in an
//! event, not in an error, not in a plan.

mod apply;
mod client;
mod diagnose;
mod discovery;
mod error;
mod event;
mod in_use;
pub mod kubeconfig;
pub mod kubectl;
pub mod nodes;
mod plan;
mod redact;
mod retry;
mod rollout;
pub mod status;
mod wait;
mod watch;

pub use apply::{Applied, ApplyOptions, Desired, FIELD_MANAGER, apply};
pub use client::{connect, connect_impatient};
pub use error::{Cause, Conflict, KubeError};
pub use event::{ApplyEvent, ApplyResult, PlainReporter, Reporter};
pub use in_use::images_in_use;
pub use plan::{Change, Plan, PlannedAction, PlannedObject, plan};
pub use rollout::{Workload, WorkloadKind};
pub use wait::{Patience, RolloutError, StuckWorkload, WaitOptions, wait_for_rollouts};
