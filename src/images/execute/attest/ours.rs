//! About which images this run may speak for itself.

use super::Pipeline;
use crate::images::ImageError;
use crate::images::attest::AttestError;
use crate::images::execute::gather::{Planned, Prepared};
use crate::images::input::Input;
use crate::images::plan::Action;

/// Did the lock list this image for these sources before the run?
pub(in crate::images::execute) fn is_listed(
    prepared: &Prepared,
    component: &str,
    input: &Input,
    digest: &str,
) -> bool {
    let locked = prepared.lock.components.get(component);
    locked.is_some_and(|entry| entry.digest == digest && entry.input == input.hash.to_string())
}

impl Pipeline {
    /// A key vouches only for what this run puts there and for what the lock listed before it. That an image has the right tag
    /// says nothing: whoever may push can move it.
    pub(in crate::images::execute) fn check_ours(
        &self,
        prepared: &Prepared,
        planned: &Planned,
    ) -> Result<(), ImageError> {
        for step in planned.steps.iter().filter(|step| step.published) {
            let (
                Action::Skip {
                    digest: Some(digest),
                },
                Some(input),
            ) = (&step.action, planned.inputs.get(&step.component))
            else {
                continue;
            };
            if !is_listed(prepared, &step.component, input, digest) {
                return Err(self.not_ours(&step.component, input, digest));
            }
        }
        Ok(())
    }

    /// An image that must not be signed just because it has the component's tag.
    pub(in crate::images::execute) fn not_ours(
        &self,
        component: &str,
        input: &Input,
        digest: &str,
    ) -> ImageError {
        let repository = self.destination.repository(component);
        AttestError::NotOurs {
            component: component.to_owned(),
            reference: format!("{repository}:{}@{digest}", input.tag),
            lock: self.settings.lock.clone(),
        }
        .into()
    }
}
