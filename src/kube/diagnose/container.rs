//! What keeps a container from running, as the kubelet says it.

use k8s_openapi::api::core::v1::ContainerStatus;

use super::Cause;

/// What is wrong with a container, if anything is.
pub(super) fn trouble(container: &ContainerStatus) -> Option<(Cause, String)> {
    let state = container.state.clone().unwrap_or_default();
    let waiting = state.waiting.unwrap_or_default();
    let reason = waiting.reason.unwrap_or_default();
    let message = waiting.message.unwrap_or_default();
    let say = |cause, message: &str| Some((cause, format!("{reason}: {message}")));
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" | "ImageInspectError" => {
            let text = message.to_lowercase();
            let missing = [
                "not found",
                "manifest unknown",
                "denied",
                "unauthorized",
                "forbidden",
                "does not exist",
            ];
            let cause = if missing.iter().any(|word| text.contains(word)) {
                Cause::ImageMissing
            } else {
                Cause::ImagePull
            };
            say(cause, &message)
        }
        "InvalidImageName" | "ErrImageNeverPull" => say(Cause::InvalidImage, &message),
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError" => say(Cause::Configuration, &message),
        "CrashLoopBackOff" => say(
            Cause::CrashLoop,
            &how_it_ended(container).unwrap_or(message),
        ),
        _ if container.ready => None,
        _ => Some((
            Cause::Crashed,
            format!("it ended: {}", how_it_ended(container)?),
        )),
    }
}

/// How a container ended that is not meant to: now, or before it was started again.
fn how_it_ended(container: &ContainerStatus) -> Option<String> {
    let now = container
        .state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let before = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let ended = now.or(before)?;
    // An init container that has done its work ends with 0.
    if now.is_some() && ended.exit_code == 0 {
        return None;
    }
    Some(format!(
        "exit code {} ({}), {} restarts",
        ended.exit_code,
        ended.reason.as_deref().unwrap_or("no reason"),
        container.restart_count
    ))
}
