//! JavaScript's packages: `package-lock.json` of npm 7 and later.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Origin, Package, purl};

/// Where npm puts packages, and thereby how their names begin.
const FOLDER: &str = "node_modules/";

#[derive(Deserialize)]
struct Lock {
    packages: BTreeMap<String, Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: Option<String>,
    version: Option<String>,
    /// A package of the same repository.
    #[serde(default)]
    link: bool,
    /// Not needed by what is built.
    #[serde(default)]
    dev: bool,
}

/// The packages of a lock file found at `place`, without those for development; or where it is wrong and how.
pub fn parse(text: &str, place: &str) -> Result<Vec<Package>, String> {
    let lock: Lock = serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("{place}:{line}:{column}: this is no lock file of npm 7 or later ({error})")
    })?;
    let installed = lock
        .packages
        .iter()
        .filter(|(_, locked)| !locked.link && !locked.dev);
    let package = |(path, locked): (&String, &Locked)| {
        // An alias is installed under another name than its own.
        let (_, below) = path.rsplit_once(FOLDER)?;
        let name = locked.name.as_deref().unwrap_or(below);
        let version = locked.version.as_deref()?;
        let (scope, short) = name.rsplit_once('/').unwrap_or(("", name));
        let purl = purl("npm", scope, short, version, &[]);
        Some(Package::new(name, version, purl, (Origin::Locked, place)))
    };
    Ok(installed.filter_map(package).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found_and_what_is_only_for_development_is_not() {
        let text = r#"{"lockfileVersion": 3, "packages": {
            "": {"name": "app", "version": "1.0.0"},
            "node_modules/express": {"version": "4.19.2"},
            "node_modules/express/node_modules/@types/node": {"version": "20.0.0"},
            "node_modules/short": {"name": "long-name", "version": "1.2.3"},
            "node_modules/jest": {"version": "29.0.0", "dev": true},
            "node_modules/own": {"link": true, "resolved": "packages/own"},
            "packages/own": {"version": "0.1.0"}
        }}"#;
        let found = parse(text, "package-lock.json").unwrap();
        let mut purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        purls.sort_unstable();
        assert_eq!(
            purls,
            [
                "pkg:npm/%40types/node@20.0.0",
                "pkg:npm/express@4.19.2",
                "pkg:npm/long-name@1.2.3",
            ]
        );
    }

    #[test]
    fn an_older_lock_file_is_refused_by_name() {
        let error = parse(r#"{"dependencies": {}}"#, "package-lock.json").unwrap_err();
        assert!(error.starts_with("package-lock.json:1:"), "{error}");
        assert!(error.contains("npm 7"), "{error}");
    }
}
