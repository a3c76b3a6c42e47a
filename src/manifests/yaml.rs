//! YAML text to a tree whose every node knows its place.
//!
//! Boundary: knows YAML, not Kubernetes. Scalars are read as kubectl reads them (YAML 1.1: `0440` is
//! octal, `yes` is a boolean), because a manifest must mean the same to both.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_saphyr::Spanned;

use super::{ManifestError, Origin};

/// A node and its place.
pub(super) type Located = Spanned<Node>;

/// What a YAML node can be once tags and anchors are resolved: JSON's types.
#[derive(Clone)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<Located>),
    Map(Vec<(Spanned<String>, Located)>),
}

impl Node {
    /// The value of a key, when this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Located> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(name, _)| name.value == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_list(&self) -> Option<&[Located]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// What the node is, for error messages.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    /// The same value without places.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Number(value) => Value::Number(value.clone()),
            Self::String(value) => Value::String(value.clone()),
            Self::List(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, value)| (key.value.clone(), value.value.to_json()))
                    .collect(),
            ),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Node, E> {
        Number::from_f64(value).map(Node::Number).ok_or_else(|| {
            E::custom("a number that is infinite or not a number has no JSON form; quote it")
        })
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

/// Every document of a file that is not empty; `path` is for the errors only.
pub(super) fn parse(text: &str, path: &Path) -> Result<Vec<Located>, ManifestError> {
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let location = error.location();
        let line = location.map_or(1, |place| place.line().max(1));
        let source_line = usize::try_from(line - 1)
            .ok()
            .and_then(|index| text.lines().nth(index))
            .unwrap_or_default();
        let mut message = without_place(&error);
        if source_line.contains("{{") {
            message.push_str("; `{{` looks like a Helm template, which has to be rendered first");
        }
        ManifestError::Invalid {
            origin: Origin {
                file: path.to_owned(),
                line,
                column: location.map_or(1, |place| place.column().max(1)),
            },
            message,
        }
    })
}

/// The parser's message without the place, which [`ManifestError`] gives itself.
fn without_place(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    match (line.starts_with("line "), line.split_once(": ")) {
        (true, Some((_, rest))) => rest.to_owned(),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> serde_json::Value {
        parse(text, Path::new("a.yaml")).unwrap()[0].value.to_json()
    }

    #[test]
    fn scalars_mean_what_they_mean_to_kubectl() {
        let value = json(
            "mode: 0440\nnew: 0o440\non: \"yes\"\nbare: yes\ncpu: 0.5\nnone: ~\ndate: 2024-01-01\n",
        );
        insta::assert_json_snapshot!(value, @r#"
        {
          "mode": 288,
          "new": 288,
          "on": "yes",
          "bare": true,
          "cpu": 0.5,
          "none": null,
          "date": "2024-01-01"
        }
        "#);
    }

    #[test]
    fn places_survive_nesting_aliases_and_flow_style() {
        let documents = parse("a: 1\n---\nb:\n  - {c: d}\n", Path::new("a.yaml")).unwrap();
        let leaf = documents[1]
            .value
            .get("b")
            .and_then(|list| list.value.as_list()?[0].value.get("c"))
            .unwrap();
        assert_eq!((leaf.referenced.line(), leaf.referenced.column()), (4, 9));
    }

    #[test]
    fn merge_keys_and_anchors_are_resolved() {
        let value = json("base: &base {a: 1}\nother:\n  <<: *base\n  b: 2\n");
        assert_eq!(value["other"]["a"], 1);
        assert_eq!(value["other"]["b"], 2);
    }

    #[test]
    fn numbers_as_keys_become_text() {
        assert_eq!(json("5432: inventory/db\n")["5432"], "inventory/db");
    }

    #[test]
    fn a_duplicate_key_is_an_error_with_its_place() {
        let error = parse("a: 1\nb: 2\na: 3\n", Path::new("dir/a.yaml"))
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("dir/a.yaml:3:1: "), "{error}");
    }

    #[test]
    fn a_helm_template_is_named() {
        let error = parse("a: b\nname: {{ .Values.name }}\n", Path::new("a.yaml"))
            .err()
            .unwrap();
        assert!(error.to_string().starts_with("a.yaml:2:"), "{error}");
        assert!(error.to_string().contains("Helm"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\n\t&*!:{}\\[\\]|>'\"-]{0,80}") {
            let _ = parse(&text, Path::new("a.yaml"));
        }
    }
}
