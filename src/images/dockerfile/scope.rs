//! The values of build arguments that `FROM` may use.

use std::collections::BTreeMap;

use super::unquote;
use crate::images::component::host_platform;

/// Arguments that FROM may use.
pub(super) struct Scope<'args> {
    given: &'args BTreeMap<String, String>,
    known: BTreeMap<String, String>,
}

impl<'args> Scope<'args> {
    pub(super) fn new(given: &'args BTreeMap<String, String>, platform: &str) -> Self {
        let mut known = BTreeMap::new();
        for (side, platform) in [("TARGET", platform), ("BUILD", &host_platform())] {
            let mut parts = platform.split('/');
            let (os, arch, variant) = (parts.next(), parts.next(), parts.next());
            known.insert(format!("{side}PLATFORM"), platform.to_owned());
            known.insert(format!("{side}OS"), os.unwrap_or_default().to_owned());
            known.insert(format!("{side}ARCH"), arch.unwrap_or_default().to_owned());
            known.insert(
                format!("{side}VARIANT"),
                variant.unwrap_or_default().to_owned(),
            );
        }
        Self { given, known }
    }

    pub(super) fn declare(&mut self, word: &str) -> Result<(), String> {
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(self.expand(unquote(default))?)),
            None => (word, None),
        };
        if let Some(value) = self.given.get(name).cloned().or(default) {
            self.known.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// Fills in `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+value}`.
    pub(super) fn expand(&self, word: &str) -> Result<String, String> {
        let mut result = String::new();
        let mut rest = word;
        while let Some((before, after)) = rest.split_once('$') {
            result.push_str(before);
            let (name, operation, tail) = match after.strip_prefix('{') {
                Some(braced) => {
                    let (inner, tail) = braced
                        .split_once('}')
                        .ok_or_else(|| format!("`{word}` has no closing brace"))?;
                    let end = inner.find(|c: char| !is_name(c)).unwrap_or(inner.len());
                    let (name, operation) = inner.split_at(end);
                    (name, operation, tail)
                }
                None => {
                    let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
                    let (name, tail) = after.split_at(end);
                    (name, "", tail)
                }
            };
            let value = self.known.get(name).map(String::as_str).unwrap_or_default();
            match operation.split_at_checked(2) {
                None if operation.is_empty() => result.push_str(value),
                Some((":-", default)) if value.is_empty() => {
                    result.push_str(&self.expand(default)?)
                }
                Some((":-", _)) => result.push_str(value),
                Some((":+", other)) if !value.is_empty() => result.push_str(&self.expand(other)?),
                Some((":+", _)) => {}
                _ => {
                    return Err(format!(
                        "`{word}`: only ${{NAME}}, ${{NAME:-default}} and ${{NAME:+value}} are known"
                    ));
                }
            }
            rest = tail;
        }
        result.push_str(rest);
        Ok(result)
    }
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}
