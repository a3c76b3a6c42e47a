//! Which images a cluster runs, or would run again: after a rollback, at a CronJob's next turn.

use std::collections::BTreeSet;

use kube::core::Request;
use serde_json::Value;

use super::KubeError;
use super::error::Cause;

/// What holds pod templates, now or for a rollback.
const LISTS: [&str; 9] = [
    "/api/v1/pods",
    "/api/v1/replicationcontrollers",
    "/apis/apps/v1/deployments",
    "/apis/apps/v1/replicasets",
    "/apis/apps/v1/statefulsets",
    "/apis/apps/v1/daemonsets",
    "/apis/apps/v1/controllerrevisions",
    "/apis/batch/v1/jobs",
    "/apis/batch/v1/cronjobs",
];
/// Objects a page.
const PAGE: u32 = 250;
/// Fields of pods and their templates that name images: of containers, of their status, of image volumes.
const FIELDS: [&str; 3] = ["image", "imageID", "reference"];

/// Every image that an object in any namespace names.
pub async fn images_in_use(client: &kube::Client) -> Result<BTreeSet<String>, KubeError> {
    let mut images = BTreeSet::new();
    for path in LISTS {
        let failed = |error: kube::Error| KubeError::Request {
            operation: format!("asking the cluster for its images ({path})"),
            source: Cause::from(error),
        };
        let mut token = String::new();
        loop {
            let mut parameters = kube::api::ListParams::default().limit(PAGE);
            if !token.is_empty() {
                parameters = parameters.continue_token(&token);
            }
            let request = Request::new(path)
                .list(&parameters)
                .map_err(|error| failed(kube::Error::BuildRequest(error)))?;
            let list: Value = client.request(request).await.map_err(failed)?;
            collect(&list, &mut images);
            match list.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(next) if !next.is_empty() => token = next.to_owned(),
                _ => break,
            }
        }
    }
    Ok(images)
}

fn collect(value: &Value, images: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str().filter(|_| FIELDS.contains(&name.as_str())) {
                    Some(image) => {
                        images.insert(image.to_owned());
                    }
                    None => collect(value, images),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, images)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn images_are_found_wherever_a_template_is() {
        let list = json!({"items": [
            {"spec": {"containers": [{"image": "a"}], "initContainers": [{"image": "b"}],
                "ephemeralContainers": [{"image": "c"}], "volumes": [{"image": {"reference": "d"}}]},
             "status": {"containerStatuses": [{"image": "e", "imageID": "f"}]}},
            {"spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"image": "g"}]}}}}}},
            {"data": {"spec": {"template": {"spec": {"containers": [{"image": "h"}]}}}}}
        ]});
        let mut images = BTreeSet::new();
        collect(&list, &mut images);
        let found: Vec<&str> = images.iter().map(String::as_str).collect();
        assert_eq!(found, ["a", "b", "c", "d", "e", "f", "g", "h"]);
    }
}
