//! Hosts as ssh's command line and `ProxyJump` name them.

use super::error::Reason;

/// One host as the command line of ssh would name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) host: String,
    pub(super) user: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) jump: Option<String>,
}

/// `[user@]host[:port]`, also as `ssh://`, the host also in brackets.
pub(super) fn parse_jump(text: &str) -> Result<Asked, Reason> {
    let invalid = |why| Reason::Invalid {
        what: "the jump host",
        value: text.to_owned(),
        why,
    };
    let rest = text.trim();
    let rest = rest.strip_prefix("ssh://").unwrap_or(rest);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user.to_owned()), rest),
        None => (None, rest),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, behind) = bracketed
                .split_once(']')
                .ok_or(invalid("a bracket is missing"))?;
            match behind.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if behind.is_empty() => (host, None),
                None => return Err(invalid("there is something behind the bracket")),
            }
        }
        // More than one colon is an IPv6 address without a port.
        None if rest.matches(':').count() > 1 => (rest, None),
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = match port {
        None => None,
        Some(text) => match text.parse() {
            Ok(0) | Err(_) => return Err(invalid("its port is no number between 1 and 65535")),
            Ok(port) => Some(port),
        },
    };
    Ok(Asked {
        host: host.to_owned(),
        user,
        port,
        jump: None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn jump(text: &str) -> Option<(Option<String>, String, Option<u16>)> {
        let asked = parse_jump(text).ok()?;
        Some((asked.user, asked.host, asked.port))
    }

    #[test]
    fn jump_hosts() {
        let named = |user: Option<&str>, host: &str, port| {
            Some((user.map(str::to_owned), host.to_owned(), port))
        };
        assert_eq!(jump("gate"), named(None, "gate", None));
        assert_eq!(jump("me@gate:2222"), named(Some("me"), "gate", Some(2222)));
        assert_eq!(jump("ssh://me@gate:1"), named(Some("me"), "gate", Some(1)));
        assert_eq!(
            jump("me@[fd00::1]:22"),
            named(Some("me"), "fd00::1", Some(22))
        );
        assert_eq!(jump("fd00::1"), named(None, "fd00::1", None));
        for wrong in [
            "gate:",
            "gate:0",
            "gate:x",
            "[fd00::1",
            "[fd00::1]22",
            "gate:70000",
        ] {
            assert_eq!(jump(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_jump_host_is_read_or_refused(text in "[a@:\\[\\]/0-9,.-]{0,30}") {
            let _ = parse_jump(&text);
        }
    }
}
