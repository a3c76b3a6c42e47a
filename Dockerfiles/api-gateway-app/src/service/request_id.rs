//! The id that ties the log lines of one request together across services.

use axum::http::{HeaderName, HeaderValue};
use uuid::Uuid;

/// Header in which the id travels over HTTP and AMQP alike.
pub(crate) const REQUEST_ID: &str = "x-request-id";
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static(REQUEST_ID);
const MAX_LENGTH: usize = 128;

/// A caller's id if it is harmless in a log, else a new one.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    pub(crate) fn accept_or_generate(given: Option<&HeaderValue>) -> Self {
        given
            .filter(|value| is_harmless(value.as_bytes()))
            .cloned()
            .or_else(|| HeaderValue::try_from(Uuid::now_v7().to_string()).ok())
            .map_or(Self(HeaderValue::from_static("none")), Self)
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub(crate) fn header_value(&self) -> HeaderValue {
        self.0.clone()
    }
}

fn is_harmless(value: &[u8]) -> bool {
    (1..=MAX_LENGTH).contains(&value.len())
        && value
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_a_harmless_id_and_replaces_any_other() {
        let given = HeaderValue::from_static("abc-123.X_y:z");
        assert_eq!(
            RequestId::accept_or_generate(Some(&given)).as_str(),
            "abc-123.X_y:z"
        );

        let long = "a".repeat(MAX_LENGTH + 1);
        for hostile in ["", "a b", "{}", "\"", long.as_str()] {
            let given = HeaderValue::from_str(hostile).unwrap();
            let id = RequestId::accept_or_generate(Some(&given));
            assert!(Uuid::parse_str(id.as_str()).is_ok(), "kept {hostile:?}");
        }
    }
}
