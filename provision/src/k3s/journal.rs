//! What K3s's journal means. K3s waits for ever on most mistakes and says why in passing, so the
//! known sayings are looked up here.

use crate::redact::redact;

/// A cause that the journal names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// What it means and what to do.
    pub(crate) meaning: &'static str,
    /// The line that says so.
    pub(crate) line: String,
    /// Whether waiting cannot help.
    pub(crate) is_final: bool,
}

struct Pattern {
    /// Parts that a line must have, in lower case.
    parts: &'static [&'static str],
    meaning: &'static str,
    is_final: bool,
}

/// The more telling first: the last of them to appear in the journal is not always the cause.
const PATTERNS: &[Pattern] = &[
    Pattern {
        parts: &["ca hash does not match"],
        meaning: "the token belongs to another cluster than the one that answers: the server was made anew, or the address is another cluster's; run `orch-provision reset` on this node and provision it again",
        is_final: true,
    },
    Pattern {
        parts: &["node password rejected"],
        meaning: "the server remembers a node of this name with another password; run `orch-provision reset` on this node and provision it again, which makes the server forget the old one",
        is_final: true,
    },
    Pattern {
        parts: &["token rejected"],
        meaning: "the server does not accept this node's token: it has expired or was deleted; remove /var/lib/orch/join-token and provision this node again",
        is_final: true,
    },
    Pattern {
        parts: &["401 unauthorized"],
        meaning: "the server does not accept this node's token: it has expired or was deleted; remove /var/lib/orch/join-token and provision this node again",
        is_final: true,
    },
    Pattern {
        parts: &["not authorized"],
        meaning: "the server does not accept this node's token or password; remove /var/lib/orch/join-token and provision this node again",
        is_final: false,
    },
    Pattern {
        parts: &["bootstrap data already found and encrypted with different token"],
        meaning: "the data directory was made with another server token; put that token back, or run `orch-provision reset` to start over without the data",
        is_final: true,
    },
    Pattern {
        parts: &["registries.yaml"],
        meaning: "K3s cannot use /etc/rancher/k3s/registries.yaml; correct `registries` in the node's configuration",
        is_final: false,
    },
    Pattern {
        parts: &["address already in use"],
        meaning: "another program has a port that K3s needs; `ss -ltnp` names it",
        is_final: false,
    },
    Pattern {
        parts: &["no space left on device"],
        meaning: "the disk is full",
        is_final: true,
    },
    Pattern {
        parts: &["failed to find memory cgroup"],
        meaning: "the kernel runs without the memory cgroup; boot it with cgroup_enable=memory cgroup_memory=1",
        is_final: true,
    },
    Pattern {
        parts: &["certificate signed by unknown authority"],
        meaning: "the server has another CA than this node knows: it was made anew; run `orch-provision reset` on this node and provision it again",
        is_final: false,
    },
    Pattern {
        parts: &["certificate has expired or is not yet valid"],
        meaning: "the clocks of this node and of the server differ, or a certificate has expired; compare `date` on both",
        is_final: false,
    },
    Pattern {
        parts: &["no route to host"],
        meaning: "this node cannot reach the server's address; check the network and `server.address`",
        is_final: false,
    },
    Pattern {
        parts: &["connection refused"],
        meaning: "nothing answers at the server's address and port; is K3s running there?",
        is_final: false,
    },
    Pattern {
        parts: &["i/o timeout"],
        meaning: "the server's address does not answer; check the network, firewalls and `server.address`",
        is_final: false,
    },
    Pattern {
        parts: &["waiting to retrieve agent configuration"],
        meaning: "the server does not hand out this node's configuration; see the server's journal (`journalctl -u k3s`)",
        is_final: false,
    },
];

/// The most telling known cause in some journal lines.
pub(crate) fn find_cause(lines: &[String]) -> Option<Cause> {
    PATTERNS.iter().find_map(|pattern| {
        let line = lines.iter().rev().find(|line| {
            let line = line.to_lowercase();
            pattern.parts.iter().all(|part| line.contains(part))
        })?;
        Some(Cause {
            meaning: pattern.meaning,
            line: redact(line),
            is_final: pattern.is_final,
        })
    })
}

/// The journal's last lines that are worth showing: errors and warnings where there are any.
pub(crate) fn tail(lines: &[String], count: usize) -> Vec<String> {
    let serious: Vec<&String> = lines
        .iter()
        .filter(|line| {
            ["level=error", "level=fatal", "level=warn", "panic:"]
                .iter()
                .any(|mark| line.contains(mark))
        })
        .collect();
    let chosen = if serious.is_empty() {
        lines.iter().collect()
    } else {
        serious
    };
    let start = chosen.len().saturating_sub(count);
    chosen[start..].iter().map(|line| redact(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn the_telling_line_wins_over_the_last() {
        let cause = find_cause(&lines(&[
            r#"level=fatal msg="token CA hash does not match the Cluster CA certificate hash: a != b""#,
            r#"level=info msg="Waiting to retrieve agent configuration; server is not ready""#,
        ]))
        .unwrap();
        assert!(
            cause.is_final && cause.meaning.contains("another cluster"),
            "{cause:?}"
        );
    }

    #[test]
    fn a_quiet_info_line_is_a_cause_too() {
        let cause = find_cause(&lines(&[
            r#"level=info msg="Waiting to retrieve agent configuration; server is not ready: Node password rejected, duplicate hostname""#,
        ]))
        .unwrap();
        assert!(cause.meaning.contains("another password"), "{cause:?}");
    }

    #[test]
    fn an_ordinary_journal_has_no_cause() {
        assert_eq!(find_cause(&lines(&["level=info msg=started"])), None);
    }

    #[test]
    fn the_tail_prefers_errors_and_shows_no_token() {
        let shown = tail(
            &lines(&[
                "level=info msg=a",
                "level=error msg=K10abc::x:y",
                "level=info msg=b",
            ]),
            5,
        );
        assert_eq!(shown, ["level=error msg=[token redacted]"]);
    }
}
