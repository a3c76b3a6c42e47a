//! Keeps the values of a stack's own Secrets out of what is shown.
//!
//! A container's last log lines or an API server's message may repeat a password. Known values are
//! replaced before anything leaves this folder.

use k8s_openapi::ByteString;
use zeroize::Zeroizing;

/// Shorter values are words that appear everywhere, such as a user name.
const SHORTEST: usize = 12;
const MASK: &str = "[secret]";

/// The values that must not be shown.
#[derive(Default)]
pub(super) struct Redactor {
    values: Vec<Zeroizing<String>>,
}

impl Redactor {
    /// Remembers the values of an object when it is a Secret.
    pub(super) fn learn(&mut self, object: &serde_json::Value) {
        if object["kind"] != "Secret" || object["apiVersion"] != "v1" {
            return;
        }
        let texts = |field: &str| {
            object[field]
                .as_object()
                .into_iter()
                .flat_map(|map| map.values())
        };
        for value in texts("stringData").filter_map(|value| value.as_str()) {
            self.add(value);
        }
        for value in texts("data") {
            value
                .as_str()
                .into_iter()
                .for_each(|encoded| self.add(encoded));
            let decoded = serde_json::from_value::<ByteString>(value.clone())
                .map(|bytes| Zeroizing::new(bytes.0));
            if let Some(text) = decoded
                .ok()
                .as_ref()
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
            {
                self.add(text);
            }
        }
    }

    fn add(&mut self, value: &str) {
        // A file's last line end is often cut by whoever reads it.
        let value = value.trim();
        if value.len() >= SHORTEST {
            self.values.push(Zeroizing::new(value.to_owned()));
        }
    }

    pub(super) fn clean(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| {
            text.replace(value.as_str(), MASK)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_secrets_are_masked_in_both_forms() {
        let mut redactor = Redactor::default();
        redactor.learn(&serde_json::json!({
            "apiVersion": "v1", "kind": "Secret",
            "stringData": {"password": "correcthorsebattery", "username": "db"},
            "data": {"key": "c3RhcGxlLXN0YXBsZS1zdGFwbGU="},
        }));
        redactor.learn(&serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"note": "a perfectly public note"},
        }));
        let text = "db correcthorsebattery staple-staple-staple c3RhcGxlLXN0YXBsZS1zdGFwbGU= a perfectly public note";
        assert_eq!(
            redactor.clean(text),
            "db [secret] [secret] [secret] a perfectly public note"
        );
    }
}
