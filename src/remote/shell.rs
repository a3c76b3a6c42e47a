//! Words and scripts for the shell of another machine. The one place that quotes.
//!
//! Boundary: text to text.

/// One word as a shell reads it back unchanged.
///
/// Backslashes stand outside the quotes, because fish reads them inside of single quotes, too.
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    let mut open = false;
    for c in text.chars() {
        let inside = !matches!(c, '\'' | '\\');
        if inside != open {
            quoted.push('\'');
            open = inside;
        }
        if !inside {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    if open {
        quoted.push('\'');
    }
    if text.is_empty() {
        quoted.push_str("''");
    }
    quoted
}

/// A command line of these words.
pub fn words<S: AsRef<str>>(list: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = list.into_iter().map(|text| word(text.as_ref())).collect();
    quoted.join(" ")
}

/// A command line that has a POSIX shell run `script` with `$1` and so on, whatever shell the user logs in with.
pub(super) fn script(script: &str, arguments: &[&str]) -> String {
    let mut list = vec!["exec", "/bin/sh", "-c", script];
    if !arguments.is_empty() {
        // What the shell calls itself in its messages.
        list.push("orch");
        list.extend(arguments);
    }
    words(list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_that_need_no_quotes_get_none() {
        assert_eq!(
            words(["ls", "-l", "a b", "it's", ""]),
            r"ls -l 'a b' 'it'\''s' ''"
        );
        assert_eq!(word(r"a\b"), r"'a'\\'b'");
        assert_eq!(word(r"\"), r"\\");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn a_shell_reads_the_word_back(text in "[^\0]{0,40}") {
            let output = std::process::Command::new("sh")
                .args(["-c", &script(r#"printf %s "$1""#, &[&text])])
                .output()
                .unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
