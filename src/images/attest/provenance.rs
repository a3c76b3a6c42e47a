//! Provenance: from what an image was built, as an in-toto Statement v1 with a SLSA provenance v1 predicate.
//!
//! The build type is `https://orch.dev/provenance/dockerfile/v1`: a Dockerfile was built in a context after `.dockerignore`, with
//! modes, owners and times normalised and base images replaced by digest. Its dependencies are the base images, the records of
//! the input hash (each a SHA-256 over length-prefixed records, see `images.lock`) and, where the sources are a git checkout,
//! the commit. Arguments are named, never quoted: a value may be a secret. Pure: values into bytes.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::SOURCE;
use super::git::Checkout;
use super::packages::purl;
use crate::images::context::SOURCE_DATE_EPOCH;
use crate::images::layers::COMPRESSION;

/// Media type of the statement.
pub const MEDIA_TYPE: &str = "application/vnd.in-toto+json";
/// What it states.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// Marks the identity of a base that is made by a recipe, before the recipe's hash.
const SUBSTITUTE: &str = "substitute:";
/// Marks the identity of a base that is another component, before its input hash.
pub const COMPONENT: &str = "component:";
/// Where a statement says how something was built.
const DEFINITION: &str = "/predicate/buildDefinition";
/// Type of a statement.
pub(super) const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// What is known about a build.
#[derive(Debug, Clone)]
pub struct Build {
    /// `docker.io/namespace/name`.
    pub repository: String,
    /// Digest of the image's manifest.
    pub digest: String,
    /// The component's name.
    pub component: String,
    /// The Dockerfile's name, below the context if it is there.
    pub dockerfile: String,
    /// Stage that the build stopped at.
    pub target: Option<String>,
    /// Names of the build arguments.
    pub arguments: Vec<String>,
    /// `linux/amd64` and others.
    pub platforms: Vec<String>,
    /// Input hash.
    pub input: String,
    /// Hash of each part of the input.
    pub parts: BTreeMap<String, String>,
    /// Image in the Dockerfile -> `sha256:...`, `substitute:` and a recipe's hash, or [`COMPONENT`] and an input hash.
    pub bases: Vec<(String, String)>,
    /// State of the sources.
    pub checkout: Option<Checkout>,
}

/// A statement that says what would be said again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The commit that it names.
    pub commit: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: &'static str,
    subject: Vec<Value>,
    predicate_type: &'static str,
    predicate: Value,
}

impl Build {
    /// The statement's bytes.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut external = json!({
            "component": self.component,
            "dockerfile": self.dockerfile,
            "platforms": self.platforms,
            "arguments": self.arguments,
        });
        if let (Some(target), Some(external)) = (&self.target, external.as_object_mut()) {
            external.insert("target".to_owned(), json!(target));
        }
        let mut internal = json!({
            "input": self.input,
            "sourceDateEpoch": SOURCE_DATE_EPOCH,
            "compression": COMPRESSION,
        });
        let dirty = self.checkout.as_ref().filter(|checkout| checkout.dirty);
        if let (Some(checkout), Some(internal)) = (dirty, internal.as_object_mut()) {
            // The commit is near, but it is not what was built.
            let state = json!({"dirty": true, "nearestCommit": checkout.commit});
            internal.insert("checkout".to_owned(), state);
        }
        let statement = Statement {
            kind: STATEMENT_TYPE,
            subject: vec![json!({"name": self.repository, "digest": digest_set(&self.digest)})],
            predicate_type: PREDICATE_TYPE,
            predicate: json!({
                "buildDefinition": {
                    "buildType": format!("{SOURCE}/provenance/dockerfile/v1"),
                    "externalParameters": external,
                    "internalParameters": internal,
                    "resolvedDependencies": self.dependencies(),
                },
                "runDetails": {
                    "builder": {
                        "id": format!("{SOURCE}/builder/v1"),
                        "version": {"orch": env!("CARGO_PKG_VERSION")},
                    },
                },
            }),
        };
        let mut bytes = serde_json::to_vec_pretty(&statement)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Does `statement` say the same of this build, whichever commit it was made at? That commit then, or nothing if it names
    /// none.
    pub fn told_by(&self, statement: &[u8]) -> Result<Option<Told>, serde_json::Error> {
        let own: Value = serde_json::from_slice(&self.to_json()?)?;
        let Ok(other) = serde_json::from_slice::<Value>(statement) else {
            return Ok(None);
        };
        let ((own, _), (other, commit)) = (without_commit(own), without_commit(other));
        let same = ["_type", "subject", "predicateType"]
            .iter()
            .all(|key| own.get(key) == other.get(key))
            && own.pointer(DEFINITION) == other.pointer(DEFINITION);
        Ok(same.then_some(Told { commit }))
    }

    fn dependencies(&self) -> Vec<Value> {
        let mut dependencies: Vec<Value> = self.bases.iter().map(base).collect();
        for (part, hash) in &self.parts {
            dependencies.push(json!({"name": format!("input/{part}"), "digest": digest_set(hash)}));
        }
        if let Some(checkout) = self.checkout.as_ref().filter(|checkout| !checkout.dirty) {
            let mut source = json!({"name": "source", "digest": {"gitCommit": checkout.commit}});
            if let (Some(remote), Some(source)) = (&checkout.remote, source.as_object_mut()) {
                source.insert("uri".to_owned(), json!(remote));
            }
            dependencies.push(source);
        }
        dependencies
    }
}

/// A statement without what depends on when it was made, and the commit that it names.
fn without_commit(mut statement: Value) -> (Value, Option<String>) {
    let mut commit = None;
    let definition = statement.pointer_mut(DEFINITION);
    if let Some(definition) = definition.and_then(Value::as_object_mut) {
        let internal = definition.get_mut("internalParameters");
        if let Some(internal) = internal.and_then(Value::as_object_mut) {
            internal.remove("checkout");
        }
        let dependencies = definition.get_mut("resolvedDependencies");
        if let Some(dependencies) = dependencies.and_then(Value::as_array_mut) {
            dependencies.retain(|dependency| {
                let named = dependency.pointer("/digest/gitCommit");
                let named = named.and_then(Value::as_str).map(str::to_owned);
                let keep = named.is_none();
                commit = commit.take().or(named);
                keep
            });
        }
    }
    (statement, commit)
}

/// An image that was built on. One made here has the digest of what it is made from: a recipe, or another component's input.
fn base((reference, identity): &(String, String)) -> Value {
    let made = |from: &str, hash: &str| json!({"name": reference, "digest": digest_set(hash), "annotations": {"madeFrom": from}});
    if let Some(recipe) = identity.strip_prefix(SUBSTITUTE) {
        return made("recipe", recipe);
    }
    if let Some(input) = identity.strip_prefix(COMPONENT) {
        return made("component", input);
    }
    json!({
        "name": reference,
        "uri": image_purl(reference, identity),
        "digest": digest_set(identity),
    })
}

/// `pkg:docker/namespace/name@tag?repository_url=host`.
fn image_purl(reference: &str, digest: &str) -> String {
    let name = reference.split('@').next().unwrap_or(reference);
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, ""),
    };
    let (host, path) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("", path),
    };
    let host = if host == "docker.io" { "" } else { host };
    let (namespace, name) = path.rsplit_once('/').unwrap_or(("", path));
    let version = if tag.is_empty() { digest } else { tag };
    purl(
        "docker",
        namespace,
        name,
        version,
        &[("repository_url", host)],
    )
}

fn digest_set(digest: &str) -> Value {
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
    json!({ algorithm: hex })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(checkout: Option<Checkout>) -> Build {
        Build {
            repository: "docker.io/me/app".to_owned(),
            digest: "sha256:aa".to_owned(),
            component: "app".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            arguments: vec!["TOKEN".to_owned()],
            platforms: vec!["linux/amd64".to_owned()],
            input: "sha256:bb".to_owned(),
            parts: BTreeMap::from([("context".to_owned(), "sha256:cc".to_owned())]),
            bases: vec![
                ("debian:bookworm-slim".to_owned(), "sha256:dd".to_owned()),
                ("rust:1".to_owned(), "substitute:sha256:ee".to_owned()),
            ],
            checkout,
        }
    }

    fn parsed(build: &Build) -> Value {
        serde_json::from_slice(&build.to_json().unwrap()).unwrap()
    }

    #[test]
    fn the_statement_has_the_shape_of_its_specifications() {
        let statement = parsed(&build(None));
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
        assert_eq!(statement["subject"][0]["digest"]["sha256"], "aa");
        let definition = &statement["predicate"]["buildDefinition"];
        assert_eq!(definition["externalParameters"]["arguments"][0], "TOKEN");
        let found = definition["resolvedDependencies"].as_array().unwrap();
        assert_eq!(found[0]["uri"], "pkg:docker/debian@bookworm-slim");
        assert_eq!(found[0]["digest"]["sha256"], "dd");
        assert_eq!(found[1]["annotations"]["madeFrom"], "recipe");
        assert_eq!(found[2]["name"], "input/context");
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn only_a_clean_checkout_is_a_commit() {
        let of = |dirty| {
            let checkout = Checkout {
                remote: Some("git+https://git.example/a".to_owned()),
                commit: "0123".to_owned(),
                dirty,
            };
            parsed(&build(Some(checkout)))["predicate"]["buildDefinition"].clone()
        };
        let clean = of(false);
        let source = &clean["resolvedDependencies"][3];
        assert_eq!(source["digest"]["gitCommit"], "0123");
        assert_eq!(source["uri"], "git+https://git.example/a");
        assert_eq!(clean["internalParameters"].get("checkout"), None);
        let dirty = of(true);
        assert_eq!(dirty["resolvedDependencies"].get(3), None);
        assert_eq!(dirty["internalParameters"]["checkout"]["dirty"], true);
    }

    #[test]
    fn a_statement_of_another_commit_says_the_same_and_one_of_another_build_does_not() {
        let at = |commit: &str, dirty| {
            let commit = commit.to_owned();
            let remote = Some(format!("git+https://git.example/{commit}"));
            build(Some(Checkout {
                remote,
                commit,
                dirty,
            }))
        };
        let told = |statement: &Build| {
            let bytes = statement.to_json().unwrap();
            at("new", false).told_by(&bytes).unwrap()
        };
        let commit = |commit: Option<&str>| {
            let commit = commit.map(str::to_owned);
            Some(Told { commit })
        };
        assert_eq!(told(&at("old", false)), commit(Some("old")));
        assert_eq!(told(&at("old", true)), commit(None));
        assert_eq!(told(&build(None)), commit(None));
        for change in [
            |build: &mut Build| build.digest = "sha256:00".to_owned(),
            |build: &mut Build| build.input = "sha256:00".to_owned(),
            |build: &mut Build| build.bases[0].1 = "sha256:00".to_owned(),
            |build: &mut Build| build.target = Some("other".to_owned()),
        ] {
            let mut other = at("old", false);
            change(&mut other);
            assert_eq!(told(&other), None);
        }
        assert_eq!(build(None).told_by(b"nonsense").unwrap(), None);
        assert_eq!(build(None).told_by(b"{}").unwrap(), None);
    }

    #[test]
    fn images_have_package_urls() {
        for (reference, wanted) in [
            ("debian", "pkg:docker/debian@sha256:dd"),
            (
                "docker.io/library/debian:12",
                "pkg:docker/library/debian@12",
            ),
            (
                "r.example:5000/a/b:1@sha256:dd",
                "pkg:docker/a/b@1?repository_url=r.example:5000",
            ),
        ] {
            assert_eq!(image_purl(reference, "sha256:dd"), wanted);
        }
    }
}
