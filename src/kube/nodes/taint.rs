//! A taint as kubectl writes it: `key=value:Effect` or `key:Effect`.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Taint as LiveTaint;
use serde::Serialize;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// One taint; key and effect together are its identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    pub key: String,
    pub value: Option<String>,
    pub effect: String,
}

/// A text that is no taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no taint: expected key=value:Effect or key:Effect, where the effect is NoSchedule, PreferNoSchedule or NoExecute"
)]
pub struct InvalidTaint {
    text: String,
}

impl Taint {
    /// What makes two taints the same one, whatever their values.
    pub fn identity(&self) -> String {
        format!("{}:{}", self.key, self.effect)
    }
}

impl FromStr for Taint {
    type Err = InvalidTaint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidTaint {
            text: text.to_owned(),
        };
        let (rest, effect) = text.rsplit_once(':').ok_or_else(invalid)?;
        let (key, value) = match rest.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (rest, None),
        };
        if key.is_empty() || !EFFECTS.contains(&effect) {
            return Err(invalid());
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.filter(|value| !value.is_empty()),
            effect: effect.to_owned(),
        })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(formatter, "{}={value}:{}", self.key, self.effect),
            None => write!(formatter, "{}:{}", self.key, self.effect),
        }
    }
}

impl Serialize for Taint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<&LiveTaint> for Taint {
    fn from(live: &LiveTaint) -> Self {
        Self {
            key: live.key.clone(),
            value: live.value.clone().filter(|value| !value.is_empty()),
            effect: live.effect.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read_and_written_as_kubectl_does() {
        for text in ["dedicated=db:NoSchedule", "example.com/gpu:NoExecute"] {
            assert_eq!(text.parse::<Taint>().unwrap().to_string(), text);
        }
        let empty: Taint = "a=:PreferNoSchedule".parse().unwrap();
        assert_eq!(empty.to_string(), "a:PreferNoSchedule");
        assert_eq!(empty.identity(), "a:PreferNoSchedule");
    }

    #[test]
    fn what_is_no_taint_is_refused() {
        for text in [
            "",
            "a",
            ":NoSchedule",
            "=b:NoSchedule",
            "a=b",
            "a:noschedule",
            "a:NoSchedule-",
        ] {
            assert!(text.parse::<Taint>().is_err(), "{text}");
        }
    }
}
