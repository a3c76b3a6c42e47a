//! The distribution that an image is made from, by its os-release(5).

use std::collections::BTreeMap;

/// A distribution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distribution {
    /// `ID`, e.g. `debian`.
    pub id: String,
    /// `VERSION_ID`, e.g. `12`; empty for rolling ones.
    pub version: String,
    /// `PRETTY_NAME`.
    pub name: String,
}

impl Distribution {
    /// Reads an os-release file.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let values: BTreeMap<&str, String> = text
            .lines()
            .filter_map(|line| line.trim().split_once('='))
            .map(|(key, value)| (key, unquote(value)))
            .collect();
        let value = |key: &str| values.get(key).cloned().unwrap_or_default();
        let id = value("ID");
        (!id.is_empty()).then(|| Self {
            version: value("VERSION_ID"),
            name: value("PRETTY_NAME"),
            id,
        })
    }

    /// The value of purl's `distro`.
    pub fn qualifier(&self) -> String {
        if self.version.is_empty() {
            self.id.clone()
        } else {
            format!("{}-{}", self.id, self.version)
        }
    }
}

fn unquote(value: &str) -> String {
    let value = value.trim();
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    inner.unwrap_or(value).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_comments_are_understood() {
        let text =
            b"# x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID='12'\n";
        let found = Distribution::parse(text).unwrap();
        assert_eq!(found.name, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(found.qualifier(), "debian-12");
        let rolling = Distribution::parse(b"ID=arch\n").unwrap();
        assert_eq!(rolling.qualifier(), "arch");
        assert_eq!(Distribution::parse(b"NAME=x\n"), None);
    }
}
