//! Which of two versions of K3s is the newer one. Pure.

use std::cmp::Ordering;

/// `v1.34.2-rc1+k3s1` in its parts.
struct Version<'a> {
    core: [u64; 3],
    /// Empty for a release, which is newer than its candidates.
    candidate: &'a str,
    /// K3s's own release of that Kubernetes.
    k3s: Option<u64>,
}

impl<'a> Version<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (rest, build) = match text.strip_prefix('v')?.split_once('+') {
            Some((rest, build)) => (rest, Some(build)),
            None => (text.strip_prefix('v')?, None),
        };
        let (numbers, candidate) = rest.split_once('-').unwrap_or((rest, ""));
        let mut numbers = numbers.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let core = [next()?, next()?, next()?];
        let k3s = build.and_then(|build| build.strip_prefix("k3s")?.parse().ok());
        // What was built without a version says v0.0.0.
        (core[0] > 0).then_some(Self {
            core,
            candidate,
            k3s,
        })
    }
}

/// Whether `one` is newer than `other`; `None` where one of them does not say.
pub fn is_newer(one: &str, other: &str) -> Option<bool> {
    let (one, other) = (Version::parse(one)?, Version::parse(other)?);
    let candidates = match (one.candidate, other.candidate) {
        ("", "") => Ordering::Equal,
        ("", _) => Ordering::Greater,
        (_, "") => Ordering::Less,
        (one, other) => one.cmp(other),
    };
    let builds = match (one.k3s, other.k3s) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => Ordering::Equal,
    };
    Some(
        one.core
            .cmp(&other.core)
            .then(candidates)
            .then(builds)
            .is_gt(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_as_numbers_and_unknown_ones_not_at_all() {
        for (one, other, expected) in [
            ("v1.34.2+k3s1", "v1.34.2+k3s1", Some(false)),
            ("v1.34.10+k3s1", "v1.34.9+k3s1", Some(true)),
            ("v1.33.9+k3s1", "v1.34.0+k3s1", Some(false)),
            ("v1.34.2+k3s10", "v1.34.2+k3s9", Some(true)),
            ("v1.34.2+k3s2", "v1.34.2", Some(false)),
            ("v1.34.2+k3s1", "v1.34.2-rc1+k3s1", Some(true)),
            ("v1.34.2-rc1+k3s1", "v1.34.2-rc2+k3s1", Some(false)),
            ("v1.34.2+k3s1", "v0.0.0-master", None),
            ("latest", "v1.34.2+k3s1", None),
        ] {
            assert_eq!(is_newer(one, other), expected, "{one} {other}");
        }
    }
}
