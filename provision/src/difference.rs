//! What differs between two texts, as lines that may be shown: bounded, and without anything secret.
//!
//! Files that may hold credentials are not compared as text. Their values are replaced first, by where they stand and
//! not by what they look like, so that a password that somebody put into the file by hand is not shown either.

use serde_json::{Map, Value};
use similar::TextDiff;

use crate::redact::redact_setting;

/// How many lines of a difference are shown, and how many characters of a line.
const LINES: usize = 40;
const COLUMNS: usize = 200;
const CONTEXT: usize = 1;

const HIDDEN: &str = "[hidden]";
const HIDDEN_OTHER: &str = "[hidden, differs]";

/// What of a file may be shown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum View {
    /// Everything but what looks like a credential: every user of the machine can read it.
    Open,
    /// A YAML document, and of it the values below the paths that this accepts.
    Yaml(fn(&[&str]) -> bool),
    /// Assignments `NAME=value`, of which only the names.
    Assignments,
    /// Nothing.
    Hidden,
}

/// The lines that differ, in the manner of `diff --unified`.
pub(crate) fn difference(view: View, before: Option<&[u8]>, after: Option<&str>) -> Vec<String> {
    let before = before.map(String::from_utf8_lossy).unwrap_or_default();
    let after = after.unwrap_or_default();
    match view {
        View::Hidden => vec![format!("{} lines, not shown", after.lines().count())],
        View::Open => unified(&open(&before), &open(after)),
        View::Assignments => {
            let (before, after) = assignments(&before, after);
            unified(&before, &after)
        }
        View::Yaml(shows) => match (parse(&before), parse(after)) {
            (Some(before), Some(after)) => {
                let old = mask(&before, Some(&after), &mut Vec::new(), shows, HIDDEN);
                let new = mask(&after, Some(&before), &mut Vec::new(), shows, HIDDEN_OTHER);
                let (old, new) = (outline(&old), outline(&new));
                if old == new {
                    vec!["only comments or the layout differ".to_owned()]
                } else {
                    unified(&old, &new)
                }
            }
            _ => vec!["what is there is no valid YAML and not shown".to_owned()],
        },
    }
}

fn unified(before: &str, after: &str) -> Vec<String> {
    let text = TextDiff::from_lines(before, after);
    let shown = text
        .unified_diff()
        .context_radius(CONTEXT)
        .missing_newline_hint(false)
        .to_string();
    let mut lines: Vec<String> = shown.lines().take(LINES).map(shorten).collect();
    let left = shown.lines().count().saturating_sub(LINES);
    if left > 0 {
        lines.push(format!("... {left} more lines"));
    }
    lines
}

fn shorten(line: &str) -> String {
    // Control characters could move a terminal's cursor.
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(COLUMNS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn open(text: &str) -> String {
    text.lines()
        .map(|line| format!("{}\n", redact_setting(line)))
        .collect()
}

/// Both texts with their values replaced, by marks that differ where the values do.
fn assignments(before: &str, after: &str) -> (String, String) {
    let hide = |text: &str, other: &str, differs: &str| -> String {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let hidden = lines.map(|line| match line.split_once('=') {
            Some((name, _)) if other.lines().any(|known| known == line) => {
                format!("{name}={HIDDEN}\n")
            }
            Some((name, _)) => format!("{name}={differs}\n"),
            None => format!("{HIDDEN}\n"),
        });
        hidden.collect()
    };
    (
        hide(before, after, HIDDEN),
        hide(after, before, HIDDEN_OTHER),
    )
}

fn parse(text: &str) -> Option<Value> {
    if text.trim().is_empty() {
        return Some(Value::Null);
    }
    serde_saphyr::from_str(text).ok()
}

/// The value with everything replaced that its path does not allow to be shown.
fn mask(
    value: &Value,
    other: Option<&Value>,
    path: &mut Vec<String>,
    shows: fn(&[&str]) -> bool,
    differs: &str,
) -> Value {
    match value {
        Value::Object(map) => {
            let mut masked = Map::new();
            for (key, value) in map {
                path.push(key.clone());
                let other = other.and_then(|other| other.get(key));
                masked.insert(key.clone(), mask(value, other, path, shows, differs));
                path.pop();
            }
            Value::Object(masked)
        }
        Value::Array(list) => {
            let masked = list.iter().enumerate().map(|(index, value)| {
                let other = other.and_then(|other| other.get(index));
                mask(value, other, path, shows, differs)
            });
            Value::Array(masked.collect())
        }
        Value::Null | Value::Bool(_) => value.clone(),
        Value::Number(_) | Value::String(_) => {
            let parts: Vec<&str> = path.iter().map(String::as_str).collect();
            if shows(&parts) {
                match value {
                    Value::String(text) => Value::String(redact_setting(text)),
                    other => other.clone(),
                }
            } else if other == Some(value) {
                Value::String(HIDDEN.to_owned())
            } else {
                Value::String(differs.to_owned())
            }
        }
    }
}

/// The document with one line a value, its keys in the alphabet's order: order is layout.
fn outline(value: &Value) -> String {
    fn write(value: &Value, depth: usize, lead: &str, output: &mut String) {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(map) => {
                if !lead.is_empty() {
                    output.push_str(&format!("{indent}{lead}\n"));
                }
                let depth = depth + usize::from(!lead.is_empty());
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort();
                for key in keys {
                    write(&map[key], depth, &format!("{key}:"), output);
                }
            }
            Value::Array(list) => {
                output.push_str(&format!("{indent}{lead}\n"));
                for value in list {
                    write(value, depth + 1, "-", output);
                }
            }
            Value::Null if lead.is_empty() => {}
            Value::String(text) => output.push_str(&format!("{indent}{lead} {text}\n")),
            other => output.push_str(&format!("{indent}{lead} {other}\n")),
        }
    }
    let mut output = String::new();
    write(value, 0, "", &mut output);
    output
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mirrors(path: &[&str]) -> bool {
        path.first() == Some(&"mirrors")
    }

    #[test]
    fn an_open_file_is_compared_line_by_line() {
        let before = b"[Service]\nExecStart=/usr/local/bin/k3s server --token abc\nTasksMax=9\n";
        let after = "[Service]\nExecStart=/usr/local/bin/k3s server\nTasksMax=9\n";
        assert_eq!(
            difference(View::Open, Some(before), Some(after)),
            [
                "@@ -1,3 +1,3 @@",
                " [Service]",
                "-ExecStart=/usr/local/bin/k3s server --token [hidden]",
                "+ExecStart=/usr/local/bin/k3s server",
                " TasksMax=9",
            ]
        );
    }

    #[test]
    fn of_yaml_only_what_is_allowed_is_shown_and_that_the_rest_differs() {
        let before = b"# hunter1\nmirrors: {a: [http://u:hunter2@x]}\nconfigs:\n  a: {auth: {password: hunter3, username: u}}\n";
        let after =
            "mirrors:\n  a: [http://y]\nconfigs:\n  a: {auth: {password: hunter4, username: u}}\n";
        let shown = difference(View::Yaml(mirrors), Some(before), Some(after));
        assert_eq!(
            shown,
            [
                "@@ -3,3 +3,3 @@",
                "     auth:",
                "-      password: [hidden]",
                "+      password: [hidden, differs]",
                "       username: [hidden]",
                "@@ -7,2 +7,2 @@",
                "   a:",
                "-    - http://[hidden]@x",
                "+    - http://y",
            ]
        );
    }

    #[test]
    fn comments_layout_and_damage_are_named_and_not_shown() {
        let view = View::Yaml(mirrors);
        assert_eq!(
            difference(view, Some(b"# hunter2\na: 1\n"), Some("a: 1\n")),
            ["only comments or the layout differ"]
        );
        assert_eq!(
            difference(view, Some(b"a: {hunter2\n"), Some("a: 1\n")),
            ["what is there is no valid YAML and not shown"]
        );
    }

    #[test]
    fn values_of_an_environment_are_never_shown() {
        let before = b"# hunter1\nA=\"hunter2\"\nSAME=x\nexport hunter3\n";
        let after = "# Written by orch-provision.\nA=\"hunter4\"\nSAME=x\nB=\"hunter5\"\n";
        let shown = difference(View::Assignments, Some(before), Some(after)).join("\n");
        assert!(!shown.contains("hunter"), "{shown}");
        assert!(shown.contains("+A=[hidden, differs]\n"), "{shown}");
        assert!(shown.contains(" SAME=[hidden]\n"), "{shown}");
    }

    #[test]
    fn a_long_difference_is_cut() {
        let long = format!("{}\n", "x".repeat(1000)).repeat(100);
        let shown = difference(View::Open, None, Some(&long));
        assert_eq!(shown.len(), LINES + 1);
        assert_eq!(shown.last().unwrap(), "... 61 more lines");
        assert!(shown[1].len() < 300);
    }

    proptest! {
        /// Whatever else is in a file by hand, a value outside of the allowed paths is not shown.
        #[test]
        fn no_hidden_value_is_shown(
            key in "[a-z]{1,8}", quote in "[\"']?", before in "[ -~\n]{0,30}", flow in any::<bool>(),
        ) {
            let secret = "hunter2hunter2";
            let value = format!("{quote}{secret}{quote}");
            let text = if flow {
                format!("configs: {{a: {{{key}: {value}}}}}\n# {before}")
            } else {
                format!("{before}\nconfigs:\n  a:\n    {key}: {value}\n")
            };
            for view in [View::Yaml(mirrors), View::Assignments, View::Hidden] {
                let shown = difference(view, Some(text.as_bytes()), Some("mirrors: {}\n")).join("\n");
                prop_assert!(!shown.contains(secret), "{}", shown);
            }
        }
    }
}
