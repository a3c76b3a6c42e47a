//! Go's modules: `go.mod`, which lists all that a build takes part of since Go 1.17.

use std::collections::BTreeMap;

use super::{Origin, Package, purl};

/// The modules that a `go.mod` found at `place` requires, replacements applied.
pub fn parse(text: &str, place: &str) -> Vec<Package> {
    let (mut required, mut replaced) = (Vec::new(), BTreeMap::new());
    let mut block = "";
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        let (verb, words) = match words.as_slice() {
            [verb, "("] => {
                block = verb;
                continue;
            }
            [")"] => {
                block = "";
                continue;
            }
            words if !block.is_empty() => (block, words),
            [verb, words @ ..] => (*verb, words),
            [] => continue,
        };
        match (verb, words) {
            ("require", [module, version]) => required.push((*module, *version)),
            // A module of this very repository has no version.
            ("replace", [old, "=>", _]) | ("replace", [old, _, "=>", _]) => {
                replaced.insert(*old, None);
            }
            ("replace", [old, "=>", new, version]) | ("replace", [old, _, "=>", new, version]) => {
                replaced.insert(*old, Some((*new, *version)));
            }
            _ => {}
        }
    }
    let package = |(name, version): (&str, &str)| {
        let (name, version) = match replaced.get(name) {
            Some(replacement) => (*replacement)?,
            None => (name, version),
        };
        Some(module(name, version, (Origin::Locked, place)))
    };
    required.into_iter().filter_map(package).collect()
}

/// A module as a package.
pub(super) fn module(name: &str, version: &str, found: (Origin, &str)) -> Package {
    let lower = name.to_lowercase();
    let (namespace, last) = lower.rsplit_once('/').unwrap_or(("", &lower));
    let purl = purl("golang", namespace, last, version, &[]);
    Package::new(name, version, purl, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn required_modules_are_found_with_replacements() {
        let text = "module example.org/app\n\ngo 1.22\n\nrequire golang.org/x/net v0.20.0\n\
            require (\n\tgithub.com/Masterminds/semver v1.5.0 // indirect\n\texample.org/own v0.0.0\n\texample.org/old v1.0.0\n)\n\
            replace example.org/own => ../own\nreplace (\n\texample.org/old v1.0.0 => example.org/new v1.1.0\n)\n";
        let found = parse(text, "go.mod");
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:golang/golang.org/x/net@v0.20.0",
                "pkg:golang/github.com/masterminds/semver@v1.5.0",
                "pkg:golang/example.org/new@v1.1.0",
            ]
        );
        assert_eq!(parse("))) => (\nrequire\n", "go.mod"), []);
    }
}
