//! A stack's Secrets: made once from a committed example, then left alone.
//!
//! `secrets.example.yaml` is a file of `v1` Secrets whose `stringData` values may be `<generate:N>`:
//! N random characters (16 to 128) out of `A-Z a-z 0-9`, the first one a letter, so that the value needs
//! no quoting in YAML, a URL or a shell. Everything else is copied byte for byte, comments included.
//! An anchor on a placeholder and aliases to it give several keys the same value.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::distr::{Alphabetic, Alphanumeric};
use zeroize::Zeroizing;

use super::yaml::{self, Located, Node};
use super::{ManifestError, load};
use crate::files;

/// The committed example, never applied.
pub const EXAMPLE_FILE: &str = "secrets.example.yaml";
/// The generated file beside it: mode 0600, not for git.
pub const SECRETS_FILE: &str = "secrets.yaml";

const PLACEHOLDER: &str = "<generate:";
const LENGTHS: std::ops::RangeInclusive<usize> = 16..=128;
const HEADER: &str = "\
# Generated from secrets.example.yaml, once. Private to this cluster: do not commit it.
# Applied like any other manifest, and never overwritten.
";

/// What [`ensure_secrets`] found or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretsOutcome {
    /// The stack has no example, so it needs no generated Secrets.
    NotNeeded,
    /// The file exists and was not touched.
    Present(PathBuf),
    /// The file was written.
    Generated(PathBuf),
}

/// Why the Secrets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}; the folder must be writable")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Example(#[from] ManifestError),
}

/// The file that [`ensure_secrets`] would write now, if any.
pub fn secrets_needed(directory: &Path) -> Option<PathBuf> {
    let target = directory.join(SECRETS_FILE);
    (directory.join(EXAMPLE_FILE).is_file() && !target.exists()).then_some(target)
}

/// Writes the Secrets from the example when they do not exist.
pub fn ensure_secrets(directory: &Path) -> Result<SecretsOutcome, SecretsError> {
    let target = directory.join(SECRETS_FILE);
    if target.exists() {
        return Ok(SecretsOutcome::Present(target));
    }
    let example = directory.join(EXAMPLE_FILE);
    let text = match std::fs::read_to_string(&example) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(SecretsOutcome::NotNeeded);
        }
        Err(source) => {
            return Err(SecretsError::Read {
                path: example,
                source,
            });
        }
    };
    let content = generate(&text, &example)?;
    match files::create_private(&target, content.as_bytes()) {
        Ok(()) => Ok(SecretsOutcome::Generated(target)),
        // Another run was faster, and its values are the ones in use.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Ok(SecretsOutcome::Present(target))
        }
        Err(source) => Err(SecretsError::Write {
            path: target,
            source,
        }),
    }
}

/// The example with its placeholders replaced; `path` is for the errors only.
fn generate(example: &str, path: &Path) -> Result<Zeroizing<String>, ManifestError> {
    let example = example.strip_prefix('\u{feff}').unwrap_or(example);
    let mut wanted = BTreeMap::new();
    for document in yaml::parse(example, path)? {
        collect_placeholders(&document, example, path, &mut wanted)?;
    }
    // Reserved whole: a buffer that grows leaves its old bytes behind.
    let room =
        HEADER.len() + example.len() + wanted.values().map(|(_, length)| length).sum::<usize>();
    let mut output = Zeroizing::new(String::with_capacity(room));
    output.push_str(HEADER);
    let mut copied = 0;
    for (range, length) in wanted.into_values() {
        output.push_str(&example[copied..range.start]);
        push_random(&mut output, length);
        copied = range.end;
    }
    output.push_str(&example[copied..]);
    Ok(output)
}

fn push_random(output: &mut String, length: usize) {
    let mut random = rand::rng();
    output.push(char::from(random.sample::<u8, _>(Alphabetic)));
    for _ in 1..length {
        output.push(char::from(random.sample::<u8, _>(Alphanumeric)));
    }
}

/// Where in the text placeholders stand and how long their values are to be. Keyed by offset: an alias
/// leads to its anchor's value, which is replaced once.
type Placeholders = BTreeMap<usize, (Range<usize>, usize)>;

fn collect_placeholders(
    document: &Located,
    text: &str,
    path: &Path,
    wanted: &mut Placeholders,
) -> Result<(), ManifestError> {
    let kind = load::required(document, "kind", path)?;
    if kind != "Secret" {
        return Err(load::invalid(
            document,
            path,
            format!("{kind} does not belong here: the example holds Secrets only"),
        ));
    }
    if let Some(data) = document.value.get("data") {
        return Err(load::invalid(
            data,
            path,
            "write stringData instead of data, in plain text",
        ));
    }
    let Some(Node::Map(entries)) = document.value.get("stringData").map(|node| &node.value) else {
        return Err(load::invalid(
            document,
            path,
            "a Secret of the example needs stringData, a map",
        ));
    };
    for (key, value) in entries {
        let Some(content) = value.value.as_str() else {
            return Err(load::invalid(
                value,
                path,
                format!("stringData.{} must be a string; quote it", key.value),
            ));
        };
        if !content.contains(PLACEHOLDER) {
            continue;
        }
        let Some(length) = placeholder_length(content) else {
            return Err(load::invalid(
                value,
                path,
                format!(
                    "a placeholder is the whole value and reads <generate:N> with N from {} to {}",
                    LENGTHS.start(),
                    LENGTHS.end()
                ),
            ));
        };
        let Some(range) = placeholder_range(value, text, content) else {
            return Err(load::invalid(
                value,
                path,
                "write the placeholder on the line of its key, plain or in quotes",
            ));
        };
        wanted.insert(range.start, (range, length));
    }
    Ok(())
}

fn placeholder_length(content: &str) -> Option<usize> {
    let length = content.strip_prefix(PLACEHOLDER)?.strip_suffix('>')?;
    length
        .parse()
        .ok()
        .filter(|length| LENGTHS.contains(length))
}

/// The placeholder's bytes inside the scalar that defines the value.
fn placeholder_range(value: &Located, text: &str, content: &str) -> Option<Range<usize>> {
    let span = value.defined.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
    let within = text.get(start..end)?.find(content)?;
    Some(start + within..start + within + content.len())
}

/// The first string below a node that starts like a placeholder.
pub(super) fn find_placeholder(node: &Located) -> Option<&Located> {
    match &node.value {
        Node::String(text) => text.starts_with(PLACEHOLDER).then_some(node),
        Node::List(items) => items.iter().find_map(find_placeholder),
        Node::Map(entries) => entries
            .iter()
            .find_map(|(_, value)| find_placeholder(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const EXAMPLE: &str = "\
# <generate:32> is explained here and stays.
apiVersion: v1
kind: Secret
metadata: {name: db}
stringData:
  username: inventory # ü stays
  password: <generate:32>
  quoted: \"<generate:16>\"   # comment
---
apiVersion: v1
kind: Secret
metadata: {name: mq}
stringData:
  password: &mq <generate:40>
  again: *mq
";

    fn strings(text: &str) -> Vec<serde_json::Value> {
        yaml::parse(text, Path::new("s.yaml"))
            .unwrap()
            .iter()
            .map(|document| document.value.to_json()["stringData"].clone())
            .collect()
    }

    fn is_strong(value: &serde_json::Value, length: usize) -> bool {
        let text = value.as_str().unwrap();
        text.len() == length
            && text.chars().all(|c| c.is_ascii_alphanumeric())
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
    }

    #[test]
    fn placeholders_become_random_and_all_else_stays() {
        let output = generate(EXAMPLE, Path::new("s.yaml")).unwrap();
        let values = strings(&output);
        assert_eq!(values[0]["username"], "inventory");
        assert!(is_strong(&values[0]["password"], 32), "{output:?}");
        assert!(is_strong(&values[0]["quoted"], 16));
        assert!(is_strong(&values[1]["password"], 40));
        assert_eq!(values[1]["password"], values[1]["again"]);
        assert!(output.starts_with(HEADER));
        assert!(output.contains("# <generate:32> is explained here and stays."));
        assert!(output.contains("inventory # ü stays"));

        let other = generate(EXAMPLE, Path::new("s.yaml")).unwrap();
        assert_ne!(strings(&other)[0]["password"], values[0]["password"]);
    }

    #[test]
    fn the_file_is_private_and_written_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            ensure_secrets(folder.path()).unwrap(),
            SecretsOutcome::NotNeeded
        );
        std::fs::write(folder.path().join(EXAMPLE_FILE), EXAMPLE).unwrap();
        let target = folder.path().join(SECRETS_FILE);
        assert_eq!(secrets_needed(folder.path()), Some(target.clone()));
        assert_eq!(
            ensure_secrets(folder.path()).unwrap(),
            SecretsOutcome::Generated(target.clone())
        );
        let mode = std::fs::metadata(&target).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let first = std::fs::read(&target).unwrap();
        assert_eq!(secrets_needed(folder.path()), None);
        assert_eq!(
            ensure_secrets(folder.path()).unwrap(),
            SecretsOutcome::Present(target.clone())
        );
        assert_eq!(std::fs::read(&target).unwrap(), first);
    }

    #[test]
    fn an_example_that_cannot_be_filled_in_writes_nothing() {
        for (from, to, expected) in [
            (
                "<generate:32>\n",
                "<generate:8>\n",
                "secrets.example.yaml:7:13: a placeholder",
            ),
            (
                "<generate:32>\n",
                "x<generate:32>\n",
                "secrets.example.yaml:7:13: a placeholder",
            ),
            (
                "<generate:32>\n",
                "12345678\n",
                "secrets.example.yaml:7:13: stringData.password must",
            ),
            (
                "stringData:\n  username",
                "data:\n  username",
                "secrets.example.yaml:6:3: write stringData",
            ),
            (
                "kind: Secret\nmetadata: {name: db}",
                "kind: Pod\nmetadata: {name: db}",
                "Secrets only",
            ),
            (
                "<generate:32>\n",
                "|\n    <generate:32>\n",
                "secrets.example.yaml:8:5: a placeholder",
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(EXAMPLE_FILE), EXAMPLE.replace(from, to)).unwrap();
            let error = ensure_secrets(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!folder.path().join(SECRETS_FILE).exists());
        }
    }
}
