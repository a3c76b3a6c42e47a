//! Audit events as lines of JSON on stderr, which systemd puts into the journal.

use std::io::Write;

use jiff::Timestamp;
use orch_ssh::server::{Audit, AuditEvent};
use serde_json::{Map, Value};

use crate::redact::redact;

/// What a peer sent may be long; a log line is not.
const MAX_WHAT_CHARACTERS: usize = 200;

pub(crate) struct JournalAudit;

impl Audit for JournalAudit {
    fn record(&self, event: AuditEvent) {
        // A journal that cannot be written to must not stop the service.
        let _ = writeln!(
            std::io::stderr().lock(),
            "{}",
            line(&event, Timestamp::now())
        );
    }
}

/// One object; fields that an event has not are left out.
fn line(event: &AuditEvent, now: Timestamp) -> String {
    let what: String = redact(&event.what)
        .chars()
        .take(MAX_WHAT_CHARACTERS)
        .collect();
    let mut object = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(name.to_owned(), value);
        }
    };
    put("time", Some(now.to_string().into()));
    put("audit", Some(event.kind.as_str().into()));
    put("outcome", Some(event.kind.outcome().into()));
    put("peer", event.peer.map(|peer| peer.to_string().into()));
    put(
        "network",
        event.network.map(|network| network.to_string().into()),
    );
    put("key", event.key.clone().map(Value::from));
    put("node", event.node.as_ref().map(|node| node.as_str().into()));
    put("what", (!what.is_empty()).then(|| what.into()));
    put("count", event.count.map(Value::from));
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use orch_ssh::server::AuditKind;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_one_object_with_what_is_known() {
        let mut event = AuditEvent::of_peer(
            AuditKind::Denied,
            "[2001:db8::1]:50000".parse().unwrap(),
            "the command id",
        );
        event.node = Some("agent".parse().unwrap());
        event.key = Some("SHA256:abc".into());
        let line = line(&event, Timestamp::UNIX_EPOCH);
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            read,
            serde_json::json!({
                "time": "1970-01-01T00:00:00Z", "audit": "denied", "outcome": "refused",
                "peer": "[2001:db8::1]:50000", "key": "SHA256:abc", "node": "agent",
                "what": "the command id",
            })
        );
    }

    proptest! {
        #[test]
        fn no_line_has_a_token_or_a_line_break(
            before in "\\PC{0,250}",
            ca in "[0-9a-f]{64}",
            id in "[a-z0-9]{6}",
            secret in "[a-z0-9]{16}",
            after in "\\PC{0,20}",
            whole in any::<bool>(),
        ) {
            let token = if whole { format!("K10{ca}::{id}.{secret}") } else { format!("{id}.{secret}") };
            let event = AuditEvent::new(AuditKind::Denied, format!("{before} {token} {after}"));
            let line = line(&event, Timestamp::UNIX_EPOCH);
            // Not even half of it, where the line was shortened.
            prop_assert!(!line.contains(&secret[..8]) || before.contains(&secret[..8]) || after.contains(&secret[..8]));
            prop_assert!(!line.contains('\n'));
            prop_assert!(serde_json::from_str::<Value>(&line).is_ok());
        }
    }
}
