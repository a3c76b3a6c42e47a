//! Python's packages: `requirements.txt` as far as it names exact versions, which is what lock files made by pip-compile do.

use super::{Origin, Package, purl};

/// The packages that a requirements file found at `place` pins. Others have no version that could be known.
pub fn parse(text: &str, place: &str) -> Vec<Package> {
    let package = |line: &str| {
        let requirement = line.split(['#', ';', ' ', '\\']).next()?;
        let (name, version) = requirement.split_once("==")?;
        // Extras are part of the requirement, not of the name.
        let name = name.split('[').next()?.trim();
        let version = version.trim_start_matches('=');
        if name.is_empty() || version.is_empty() || version.contains(['*', ',']) {
            return None;
        }
        let normal = name.to_lowercase().replace(['_', '.'], "-");
        let purl = purl("pypi", "", &normal, version, &[]);
        Some(Package::new(
            &normal,
            version,
            purl,
            (Origin::Locked, place),
        ))
    };
    text.lines().map(str::trim).filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_versions_are_found() {
        let text = "# made by pip-compile\nDjango==5.0.1 \\\n    --hash=sha256:aa\nruamel_yaml[jinja2]==0.18.5 ; python_version > '3'\nrequests>=2\n-r other.txt\nflask==3.*\n==\n";
        let found = parse(text, "requirements.txt");
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            ["pkg:pypi/django@5.0.1", "pkg:pypi/ruamel-yaml@0.18.5"]
        );
    }
}
