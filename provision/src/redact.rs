//! Takes tokens out of text that others wrote, such as a journal, before anybody sees it.

const REPLACEMENT: &str = "[token redacted]";

/// Replaces K3s tokens (`K10<hash>::<user>:<password>`, `K10<hash>::<id>.<secret>`) and bare
/// bootstrap tokens (`<6>.<16>` of lower-case letters and digits), and service accounts' tokens.
pub(crate) fn redact(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut word = String::new();
    for character in text.chars() {
        if character.is_whitespace() || "\"'`,;=()[]{}<>".contains(character) {
            flush(&mut word, &mut output);
            output.push(character);
        } else {
            word.push(character);
        }
    }
    flush(&mut word, &mut output);
    output
}

fn flush(word: &mut String, output: &mut String) {
    output.push_str(if is_token(word) { REPLACEMENT } else { word });
    word.clear();
}

/// Three parts of base64, the first of which begins a JSON object: a service account's token (RFC 7519).
fn is_web_token(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let plain = |part: &&str| {
        part.len() > 8
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    matches!(parts[..], [first, _, _] if first.starts_with("eyJ")) && parts.iter().all(plain)
}

fn is_token(word: &str) -> bool {
    let word = word.trim_end_matches(['.', ':']);
    if word.contains("K10") && word.contains("::") {
        return true;
    }
    if is_web_token(word) {
        return true;
    }
    let plain = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    word.split_once('.')
        .is_some_and(|(id, secret)| plain(id, 6) && plain(secret, 16))
}

/// Words after which a value may be a credential.
const SENSITIVE: [&str; 8] = [
    "token",
    "password",
    "passwd",
    "secret",
    "credential",
    "auth=",
    "-key",
    "_key",
];
const HIDDEN: &str = "[hidden]";

/// One line of settings, such as of a unit or a value in YAML, without tokens, without what follows a word that
/// announces a credential, without the values of a unit's environment, and without the user part of URLs.
pub(crate) fn redact_setting(line: &str) -> String {
    let line = redact(line);
    if let Some((lead, assignment)) = line.split_once("Environment=") {
        let name = assignment.split('=').next().unwrap_or_default();
        return format!("{lead}Environment={name}={HIDDEN}");
    }
    // Lower case of ASCII only, so that places are the same in both.
    let lower = line.to_ascii_lowercase();
    let after = SENSITIVE
        .iter()
        .filter_map(|word| Some(lower.find(word)? + word.len()))
        .filter(|end| names_a_value(&line[*end..]))
        .min();
    match after {
        Some(end) => format!("{} {HIDDEN}", line[..end].trim_end_matches('=')),
        None => hide_url_users(&line),
    }
}

/// Whether what follows is a value, and not the rest of another word or of a path (`token-file: /x`).
fn names_a_value(rest: &str) -> bool {
    let rest = rest.trim_start_matches(|c: char| "=: \"'".contains(c));
    !rest.is_empty()
        && !rest.starts_with("-file")
        && !rest.starts_with('/')
        && !rest.starts_with("[token")
}

fn hide_url_users(line: &str) -> String {
    let mut output = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find("://").map(|at| at + 3) {
        output.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest
            .find(|c: char| c.is_whitespace() || "/\"'".contains(c))
            .unwrap_or(rest.len());
        if let Some(at) = rest[..end].rfind('@') {
            output.push_str(HIDDEN);
            rest = &rest[at..];
        }
    }
    output + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_are_taken_out_and_the_rest_stays() {
        let text = r#"level=error msg="bad token K10abc::server:pw, try" t=abcdef.0123456789abcdef at k3s.service"#;
        assert_eq!(
            redact(text),
            r#"level=error msg="bad token [token redacted], try" t=[token redacted] at k3s.service"#
        );
    }

    #[test]
    fn settings_lose_what_may_be_a_credential_and_keep_the_rest() {
        for (line, expected) in [
            ("Environment=A=b c", "Environment=A=[hidden]"),
            (
                "ExecStart=/k3s server --token abc",
                "ExecStart=/k3s server --token [hidden]",
            ),
            ("--agent-token=abc --x", "--agent-token [hidden]"),
            ("token-file: /var/lib/x", "token-file: /var/lib/x"),
            (
                "x https://u:p@host/a https://b",
                "x https://[hidden]@host/a https://b",
            ),
            ("Password: hunter2", "Password [hidden]"),
            (
                "ExecStart=/usr/local/bin/k3s agent",
                "ExecStart=/usr/local/bin/k3s agent",
            ),
        ] {
            assert_eq!(redact_setting(line), expected);
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line in "\\PC{0,80}") {
            let _ = redact_setting(&line);
        }

        #[test]
        fn no_token_survives(
            before in "[ -~\n]{0,20}",
            token in "K10[0-9a-f]{64}::[a-z0-9]{6}\\.[a-z0-9]{16}",
            after in "[ -~\n]{0,20}",
        ) {
            let text = format!("{before} {token} {after}");
            let output = redact(&text);
            let secret = token.rsplit('.').next().unwrap();
            prop_assert!(!output.contains(secret));
        }
    }
}
