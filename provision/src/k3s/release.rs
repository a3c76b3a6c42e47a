//! K3s's releases: what the assets are called, where they are, what the checksum file says.

/// Processor architectures that K3s is released for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
    Arm,
}

impl Architecture {
    /// The architecture this program was built for, which is the machine's.
    pub(crate) fn current() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::Amd64),
            "aarch64" => Some(Self::Arm64),
            "arm" => Some(Self::Arm),
            _ => None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Arm => "arm",
        }
    }

    pub(crate) const fn binary(self) -> &'static str {
        match self {
            Self::Amd64 => "k3s",
            Self::Arm64 => "k3s-arm64",
            Self::Arm => "k3s-armhf",
        }
    }

    pub(crate) fn checksums(self) -> String {
        format!("sha256sum-{}.txt", self.name())
    }

    /// Archives of images for sites without a registry, the preferred one first.
    pub(crate) fn airgap_images(self) -> [String; 3] {
        ["tar.zst", "tar.gz", "tar"].map(|end| format!("k3s-airgap-images-{}.{end}", self.name()))
    }
}

/// The URL of a release asset. A `+` in a path is a plus only when it is escaped.
pub(crate) fn asset_url(base: &str, version: &str, asset: &str) -> String {
    format!(
        "{}/{}/{asset}",
        base.trim_end_matches('/'),
        version.replace('+', "%2B")
    )
}

/// The checksum of an asset in a `sha256sum` file.
pub(crate) fn checksum_of(checksums: &str, asset: &str) -> Option<String> {
    checksums.lines().find_map(|line| {
        let (sum, name) = line.split_once(char::is_whitespace)?;
        // A star marks binary mode.
        let name = name.trim().trim_start_matches('*');
        let is_sum = sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        (name == asset && is_sum).then(|| sum.to_ascii_lowercase())
    })
}

/// The version in what `k3s --version` prints first: the word after `version`.
pub(crate) fn version_of(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == "version")?;
    words.next()
}

/// Whether two versions are of the same Kubernetes release, whoever packaged it.
pub(crate) fn same_kubernetes(one: &str, other: &str) -> bool {
    let base = |version: &str| version.split('+').next().map(str::to_owned);
    base(one) == base(other)
}

/// The minor version: 34 of `v1.34.2+k3s1`.
pub(crate) fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plus_is_escaped_in_the_url() {
        assert_eq!(
            asset_url("https://example.org/dl/", "v1.34.2+k3s1", "k3s"),
            "https://example.org/dl/v1.34.2%2Bk3s1/k3s"
        );
    }

    #[test]
    fn a_checksum_is_found_by_the_whole_name() {
        let sums = format!(
            "{}  k3s-arm64\n{}  k3s\nxyz  k3s\n",
            "a".repeat(64),
            "B".repeat(64)
        );
        assert_eq!(checksum_of(&sums, "k3s"), Some("b".repeat(64)));
        assert_eq!(checksum_of(&sums, "k3s-armhf"), None);
    }

    #[test]
    fn versions_are_read_and_compared() {
        assert_eq!(
            version_of("k3s version v1.34.2+k3s1 (8dc8bd28)"),
            Some("v1.34.2+k3s1")
        );
        assert_eq!(version_of("not K3s"), None);
        assert!(same_kubernetes("v1.34.2+k3s1", "v1.34.2+k3s2"));
        assert!(!same_kubernetes("v1.34.2+k3s1", "v1.34.3+k3s1"));
        assert_eq!(minor("v1.34.2+k3s1"), Some(34));
    }
}
