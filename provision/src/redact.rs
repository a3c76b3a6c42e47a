//! Takes tokens out of text that others wrote, such as a journal, before anybody sees it.

const REPLACEMENT: &str = "[token redacted]";

/// Replaces K3s tokens (`K10<hash>::<user>:<password>`, `K10<hash>::<id>.<secret>`) and bare
/// bootstrap tokens (`<6>.<16>` of lower-case letters and digits).
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

fn is_token(word: &str) -> bool {
    let word = word.trim_end_matches(['.', ':']);
    if word.contains("K10") && word.contains("::") {
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

    proptest! {
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
