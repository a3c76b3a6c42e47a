//! What the cluster noted about objects: of many events, the newest of each reason.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Event;

/// The newest event about each object, by the object's UID.
#[derive(Default)]
pub(in crate::kube) struct Events {
    newest: HashMap<String, HashMap<String, Note>>,
}

struct Note {
    at: String,
    message: String,
}

impl Events {
    pub(in crate::kube) fn collect<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut newest: HashMap<String, HashMap<String, Note>> = HashMap::new();
        for event in events {
            let (Some(uid), Some(reason)) = (&event.involved_object.uid, &event.reason) else {
                continue;
            };
            let note = Note {
                at: when(event),
                message: event.message.clone().unwrap_or_default(),
            };
            let notes = newest.entry(uid.clone()).or_default();
            if notes.get(reason).is_none_or(|known| known.at <= note.at) {
                notes.insert(reason.clone(), note);
            }
        }
        Self { newest }
    }

    /// The newest message about the object among these reasons.
    pub(super) fn about(&self, uid: &str, reasons: &[&str]) -> Option<&str> {
        let notes = self.newest.get(uid)?;
        reasons
            .iter()
            .filter_map(|reason| notes.get(*reason))
            .max_by(|one, other| one.at.cmp(&other.at))
            .map(|note| note.message.as_str())
    }
}

/// RFC 3339 in UTC sorts as text.
fn when(event: &Event) -> String {
    let precise = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let precise = precise.or(event.event_time.as_ref()).map(|time| time.0);
    let coarse = event.last_timestamp.as_ref().map(|time| time.0);
    let created = event
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0);
    coarse
        .max(precise)
        .or(created)
        .map(|time| time.to_string())
        .unwrap_or_default()
}
