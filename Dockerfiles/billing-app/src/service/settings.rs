//! Reads settings from environment variables; any variable `NAME` may be given as a file instead,
//! named by `NAME_FILE` (that is how a mounted Secret arrives).

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use thiserror::Error;

/// Why a setting cannot be used. Never shows a value, which may be a secret.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    #[error("setting {name} is missing: set {name}, or {name}_FILE to a file that holds it")]
    Missing { name: &'static str },
    #[error("settings {name} and {name}_FILE are both set: keep one")]
    Ambiguous { name: &'static str },
    #[error("cannot read the file {path:?} that {name}_FILE names")]
    File {
        name: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("setting {name} is not valid: {reason}")]
    Invalid { name: &'static str, reason: String },
}

/// The variables as they were at start.
pub(crate) struct Environment(HashMap<String, String>);

impl Environment {
    /// Variables that are not UTF-8 are left out: no setting of ours is.
    pub(crate) fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// A value that must be given and must not appear in any output.
    pub(crate) fn secret(&self, name: &'static str) -> Result<SecretString, SettingsError> {
        self.required(name).map(SecretString::from)
    }

    pub(crate) fn required(&self, name: &'static str) -> Result<String, SettingsError> {
        self.find(name)?.ok_or(SettingsError::Missing { name })
    }

    pub(crate) fn parsed<T>(&self, name: &'static str, default: T) -> Result<T, SettingsError>
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(text) = self.find(name)? else {
            return Ok(default);
        };
        text.parse()
            .map_err(|reason: T::Err| SettingsError::Invalid {
                name,
                reason: reason.to_string(),
            })
    }

    pub(crate) fn within<T>(
        &self,
        name: &'static str,
        default: T,
        allowed: RangeInclusive<T>,
    ) -> Result<T, SettingsError>
    where
        T: FromStr + PartialOrd + Display,
        T::Err: Display,
    {
        let value = self.parsed(name, default)?;
        if allowed.contains(&value) {
            return Ok(value);
        }
        let reason = format!("must be from {} to {}", allowed.start(), allowed.end());
        Err(SettingsError::Invalid { name, reason })
    }

    pub(crate) fn seconds(
        &self,
        name: &'static str,
        default: u64,
    ) -> Result<Duration, SettingsError> {
        self.within(name, default, 1..=3600)
            .map(Duration::from_secs)
    }

    /// An empty value counts as absent, as an unset key of a ConfigMap arrives that way.
    fn find(&self, name: &'static str) -> Result<Option<String>, SettingsError> {
        let variable = |name: &str| self.0.get(name).filter(|value| !value.is_empty());
        match (variable(name), variable(&format!("{name}_FILE"))) {
            (Some(_), Some(_)) => Err(SettingsError::Ambiguous { name }),
            (Some(value), None) => Ok(Some(value.clone())),
            (None, Some(path)) => {
                let mut text =
                    std::fs::read_to_string(path).map_err(|source| SettingsError::File {
                        name,
                        path: path.into(),
                        source,
                    })?;
                text.truncate(text.trim_end_matches(['\r', '\n']).len());
                Ok(Some(text).filter(|text| !text.is_empty()))
            }
            (None, None) => Ok(None),
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_file_stands_in_for_a_variable() {
        let path = std::env::temp_dir().join(format!("settings-{}", uuid::Uuid::now_v7()));
        std::fs::write(&path, "s3cret \n").unwrap();
        let read = environment(&[("PASSWORD_FILE", path.to_str().unwrap())]).secret("PASSWORD");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap().expose_secret(), "s3cret ");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = environment(&[("PASSWORD_FILE", "/nonexistent/password")])
            .secret("PASSWORD")
            .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/password"));
    }

    #[test]
    fn both_forms_at_once_are_refused() {
        let both = environment(&[("PASSWORD", "a"), ("PASSWORD_FILE", "b")]);
        assert!(matches!(
            both.secret("PASSWORD"),
            Err(SettingsError::Ambiguous { name: "PASSWORD" })
        ));
    }

    #[test]
    fn empty_counts_as_missing_and_takes_the_default() {
        let empty = environment(&[("PORT", "")]);
        assert_eq!(empty.parsed("PORT", 5432u16).unwrap(), 5432);
        assert!(matches!(
            empty.required("PORT"),
            Err(SettingsError::Missing { name: "PORT" })
        ));
    }

    #[test]
    fn an_invalid_value_is_refused_without_being_shown() {
        let error = environment(&[("PORT", "hunter2")])
            .parsed("PORT", 1u16)
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
        assert!(
            environment(&[("WAIT", "0")]).seconds("WAIT", 1).is_err(),
            "zero seconds is no timeout"
        );
    }
}
