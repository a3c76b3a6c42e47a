//! Build arguments of the command line: each goes to the components whose Dockerfiles declare it.
//!
//! Given to all, it would rename images that it changes nothing in.

use std::collections::{BTreeMap, BTreeSet};

use super::ImageError;
use super::component::{Component, ComponentError};
use super::dockerfile::Dockerfile;
use super::input::InputError;

/// What builders know without an `ARG`.
const PREDEFINED: [&str; 5] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];
/// How the names of those begin that are for BuildKit itself.
const BUILDKIT: &str = "BUILDKIT_";

/// A name and its value; without one, it changes nothing.
pub type Argument = (String, Option<String>);

/// Gives `arguments` to those of `components` that declare them. They come before what somebody wrote down for a component.
pub fn give(components: &mut [Component], arguments: &[Argument]) -> Result<(), ImageError> {
    if arguments.is_empty() {
        return Ok(());
    }
    let given: BTreeMap<String, String> = arguments
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for component in components {
        let mut all = component.args.clone();
        all.extend(given.clone());
        // An argument may be what FROM needs to name an image at all.
        let read = Dockerfile::read(&component.dockerfile, &all, component.platform());
        let mut declared = read.map_err(InputError::from)?.arguments;
        declared.extend(component.args.keys().cloned());
        all.retain(|name, _| declared.contains(name) || is_predefined(name));
        component.args = all;
        known.extend(declared);
    }
    let unknown = arguments
        .iter()
        .find(|(name, _)| !known.contains(name) && !is_predefined(name));
    match unknown {
        Some((name, _)) => Err(ComponentError::Argument {
            name: name.clone(),
            known: match known.is_empty() {
                true => "there are no ARGs".to_owned(),
                false => format!(
                    "the ARGs are {}",
                    known.into_iter().collect::<Vec<_>>().join(", ")
                ),
            },
        }
        .into()),
        None => Ok(()),
    }
}

fn is_predefined(name: &str) -> bool {
    name.starts_with(BUILDKIT)
        || PREDEFINED
            .iter()
            .any(|known| *known == name || known.to_ascii_lowercase() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::component::discover;

    fn components(dockerfiles: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Component>) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in dockerfiles {
            std::fs::create_dir(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join("Dockerfile"), text).unwrap();
        }
        let components = discover(root.path(), "linux/amd64").unwrap();
        (root, components)
    }

    fn argument(name: &str, value: Option<&str>) -> Argument {
        (name.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn an_argument_goes_to_those_that_declare_it_and_the_last_value_counts() {
        let (_root, mut components) = components(&[
            ("base", "ARG IMAGE\nFROM $IMAGE\n"),
            ("late", "FROM scratch\nARG A=1 VERSION=0\n"),
            ("none", "FROM scratch\nRUN echo ARG VERSION\n"),
            ("written", "FROM scratch\n"),
        ]);
        components[3]
            .args
            .insert("VERSION".to_owned(), "written".to_owned());
        let given = [
            argument("IMAGE", Some("debian")),
            argument("VERSION", Some("1")),
            argument("VERSION", Some("2")),
            argument("A", None),
            argument("https_proxy", Some("p")),
        ];
        give(&mut components, &given).unwrap();
        let args: Vec<String> = components
            .iter()
            .map(|component| format!("{:?}", component.args))
            .collect();
        assert_eq!(
            args,
            [
                r#"{"IMAGE": "debian", "https_proxy": "p"}"#,
                r#"{"VERSION": "2", "https_proxy": "p"}"#,
                r#"{"https_proxy": "p"}"#,
                r#"{"VERSION": "2", "https_proxy": "p"}"#,
            ]
        );
    }

    #[test]
    fn what_is_declared_for_images_on_top_is_given_to_those_that_declare_it_themselves() {
        let (_root, mut components) = components(&[
            ("base", "FROM scratch\nONBUILD ARG VERSION\n"),
            ("top", "FROM base\nARG VERSION\n"),
        ]);
        give(&mut components, &[argument("VERSION", Some("1"))]).unwrap();
        assert!(components[0].args.is_empty());
        assert_eq!(components[1].args["VERSION"], "1");
    }

    #[test]
    fn what_nobody_declares_is_a_typing_error_also_without_a_value() {
        let (_root, mut components) = components(&[("a", "FROM scratch\nARG VERSION\n")]);
        for value in [Some("1"), None] {
            let error = give(&mut components, &[argument("VERSIN", value)]).unwrap_err();
            let text = error.to_string();
            let start = "--build-arg VERSIN: no Dockerfile has `ARG VERSIN`; the ARGs are VERSION.";
            assert!(text.starts_with(start), "{text}");
        }
    }
}
