//! YAML files: written by a serialiser and read back before anybody else does.

use serde_json::Value;

const HEADER: &str = "# Written by orch-provision; change orch.yaml instead.\n";

/// A value that does not survive being written as YAML.
#[derive(Debug, thiserror::Error)]
pub(crate) enum YamlError {
    #[error("{file} cannot be written as YAML")]
    Write {
        file: &'static str,
        source: serde_saphyr::SerializeError,
    },
    #[error("{file} cannot be read back after writing it as YAML")]
    Read {
        file: &'static str,
        source: Box<serde_saphyr::Error>,
    },
    #[error("{file} means something else after writing it as YAML")]
    Differs { file: &'static str },
}

/// Renders a value and proves that it reads back as the same value.
pub(crate) fn render(file: &'static str, value: &Value) -> Result<String, YamlError> {
    let body =
        serde_saphyr::to_string(value).map_err(|source| YamlError::Write { file, source })?;
    let text = format!("{HEADER}{body}");
    let back: Value = serde_saphyr::from_str(&text).map_err(|source| YamlError::Read {
        file,
        source: Box::new(source),
    })?;
    if back != *value {
        return Err(YamlError::Differs { file });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn words_that_yaml_would_take_for_something_else_stay_words() {
        for word in [
            "no", "0600", "1e3", "null", "~", "a: b", "# x", "", " x ", "*", "&a",
        ] {
            render("test", &json!({ "key": word, "list": [word] })).unwrap();
        }
    }

    proptest! {
        #[test]
        fn any_text_is_written_or_refused_but_never_changed(text in "\\PC{0,60}") {
            let value = json!({ "key": text });
            if let Ok(yaml) = render("test", &value) {
                prop_assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), value);
            }
        }
    }
}
