//! What a component is made from now against what it was last pushed from, down to the file, the argument and the base.
//!
//! Pure: compares what the lock remembers with what was read. The name alone decides what is built; this says why.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::context::fingerprints::{Change, Fingerprints, PathChange};
use super::input::Input;
use super::lock::Entry;

/// How many files a sentence names.
const NAMED: usize = 5;

/// Digits of a digest that say as much to a reader as all sixty-four.
const DIGITS: usize = 12;

/// The pieces of an input that can be told apart. Values of arguments may be secrets and are only told as hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// Build argument, or `--target`, -> short hash of its value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<String, String>,
    /// Image or component that it is built from -> its identity.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bases: BTreeMap<String, String>,
    /// Path in the context -> short hash of what is there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: Fingerprints,
    /// What else counts -> its value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

impl Details {
    /// Did an earlier version leave them out?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A value that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValueChange {
    /// What it is the value of.
    pub name: String,
    /// What it was; nothing if it is new.
    pub before: Option<String>,
    /// What it is; nothing if it is gone.
    pub after: Option<String>,
}

/// Everything that makes a name another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// The parts of the input that changed: `arguments`, `bases`, `context`, `dockerfile`, `settings`.
    pub parts: BTreeSet<String>,
    /// Files of the context.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathChange>,
    /// Build arguments; the values are hashes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<ValueChange>,
    /// Images and components that it is built from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<ValueChange>,
    /// Everything else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<ValueChange>,
}

impl Difference {
    /// From the last push to now. Empty if the name is the same.
    pub fn between(before: &Entry, now: &Input) -> Self {
        if before.input == now.hash.to_string() {
            return Self::default();
        }
        let parts: BTreeSet<String> = now
            .parts
            .iter()
            .filter(|(part, hash)| before.parts.get(*part) != Some(hash))
            .map(|(part, _)| part.clone())
            .collect();
        let known = &before.details;
        // An earlier version's lock has no details. Against nothing, everything would be called new.
        let changed = |part: &str| parts.contains(part) && !known.is_empty();
        let values = |part: &str, before, after| match changed(part) {
            true => value_changes(before, after),
            false => Vec::new(),
        };
        let files = match changed("context") {
            true => now.contents.changes_since(&known.files),
            false => Vec::new(),
        };
        Self {
            files,
            arguments: values("arguments", &known.arguments, &now.details.arguments),
            bases: values("bases", &known.bases, &now.details.bases),
            settings: values("settings", &known.settings, &now.details.settings),
            parts,
        }
    }

    /// Is nothing different?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One phrase a change, the first `limit` files by name.
    pub fn phrases(&self, limit: usize) -> Vec<String> {
        let dockerfile = self.parts.contains("dockerfile");
        let mut phrases = Vec::new();
        if dockerfile {
            phrases.push("Dockerfile changed".to_owned());
        }
        // The Dockerfile usually is a file of the context, too.
        let files: Vec<&PathChange> = self
            .files
            .iter()
            .filter(|file| !(dockerfile && file.path == "Dockerfile"))
            .collect();
        // One more file takes no more room than saying that there is one more.
        let named = match files.len() {
            all if all <= limit.saturating_add(1) => all,
            _ => limit,
        };
        phrases.extend(files.iter().take(named).map(|file| describe_file(file)));
        if files.len() > named {
            phrases.push(format!("and {} more files", files.len() - named));
        }
        for argument in &self.arguments {
            phrases.push(format!("argument {} {}", argument.name, became(argument)));
        }
        for base in &self.bases {
            phrases.push(format!("base {}{}", base.name, from_to(base)));
        }
        for setting in &self.settings {
            phrases.push(format!("{}{}", setting.name, from_to(setting)));
        }
        for part in &self.parts {
            let told = match part.as_str() {
                "arguments" => !self.arguments.is_empty(),
                "bases" => !self.bases.is_empty(),
                "context" => !self.files.is_empty(),
                "settings" => !self.settings.is_empty(),
                _ => dockerfile,
            };
            if !told {
                phrases.push(format!("{part} changed"));
            }
        }
        phrases
    }

    /// [`Difference::phrases`] in one line.
    pub fn summary(&self) -> String {
        match self.phrases(NAMED).as_slice() {
            [] => "how orch makes names".to_owned(),
            phrases => phrases.join(", "),
        }
    }
}

fn value_changes(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<ValueChange> {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changes = names.into_iter().map(|name| ValueChange {
        name: name.clone(),
        before: before.get(name).cloned(),
        after: after.get(name).cloned(),
    });
    changes
        .filter(|change| change.before != change.after)
        .collect()
}

/// `src/main.rs modified`
fn describe_file(file: &PathChange) -> String {
    let what = match file.change {
        Change::Added => "added",
        Change::Removed => "removed",
        Change::Modified => "modified",
        Change::Mode => "mode changed",
        Change::Type => "type changed",
    };
    // A name may hold anything, line breaks and terminal commands included.
    format!("{} {what}", file.path.escape_debug())
}

fn became(change: &ValueChange) -> &'static str {
    match (&change.before, &change.after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    }
}

/// ` sha256:0123456789ab -> sha256:ba9876543210`
fn from_to(change: &ValueChange) -> String {
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => format!(" {} -> {}", shorten(before), shorten(after)),
        _ => format!(" {}", became(change)),
    }
}

fn shorten(value: &str) -> &str {
    match value.rfind("sha256:") {
        Some(at) => value.get(..at + "sha256:".len() + DIGITS).unwrap_or(value),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::images::bases::Identity;
    use crate::images::component::Component;
    use crate::images::input;

    fn component(root: &Path) -> Component {
        for (path, text) in [
            ("Dockerfile", "FROM debian:bookworm-slim\nCOPY . /\n"),
            ("src/main.rs", "fn main() {}\n"),
            ("src/old.rs", ""),
        ] {
            let path = root.join("app").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut component = Component::from_folder(&root.join("app"), "linux/amd64").unwrap();
        let mut argument = |name: &str, value: &str| {
            component.args.insert(name.to_owned(), value.to_owned());
        };
        argument("VERSION", "1");
        argument("TOKEN", "hush-hush");
        component
    }

    async fn input(component: &Component, base: &str) -> Input {
        let sources = input::read(std::slice::from_ref(component)).await.unwrap();
        let base = format!("sha256:{base}");
        let mut inputs = input::name(&sources, |_| Some(Identity::Digest(base.clone()))).unwrap();
        inputs.remove("app").unwrap()
    }

    fn entry(input: &Input) -> Entry {
        Entry {
            details: input.details_for_lock(),
            digest: "sha256:d".to_owned(),
            input: input.hash.to_string(),
            parts: input.parts.clone(),
            repository: "docker.io/me/app".to_owned(),
            tag: input.tag.clone(),
        }
    }

    #[tokio::test]
    async fn every_cause_is_named() {
        let root = tempfile::tempdir().unwrap();
        let mut component = component(root.path());
        let before = entry(&input(&component, "0123456789abcdef").await);
        let same = input(&component, "0123456789abcdef").await;
        assert!(Difference::between(&before, &same).is_empty());

        let app = root.path().join("app");
        fs::write(app.join("src/main.rs"), "fn main() { }\n").unwrap();
        fs::write(app.join("src/new\n.rs"), "").unwrap();
        fs::remove_file(app.join("src/old.rs")).unwrap();
        fs::write(
            app.join("Dockerfile"),
            "FROM debian:bookworm-slim\nCOPY src /\n",
        )
        .unwrap();
        component.args.insert("VERSION".to_owned(), "2".to_owned());
        component.args.remove("TOKEN");
        component.target = Some("release".to_owned());
        component.platforms = vec!["linux/arm64".to_owned()];
        let now = input(&component, "fedcba9876543210").await;
        let difference = Difference::between(&before, &now);
        insta::assert_snapshot!(difference.phrases(5).join("\n"), @r"
        Dockerfile changed
        src/main.rs modified
        src/new\n.rs added
        src/old.rs removed
        argument --target added
        argument TOKEN removed
        argument VERSION changed
        base debian:bookworm-slim sha256:0123456789ab -> sha256:fedcba987654
        platform linux/amd64 -> linux/arm64
        ");
        assert_eq!(
            difference.phrases(1)[1..3],
            ["src/main.rs modified", "and 2 more files"]
        );
    }

    #[tokio::test]
    async fn a_lock_without_details_gives_the_parts_and_values_stay_secret() {
        let root = tempfile::tempdir().unwrap();
        let component = component(root.path());
        let before = entry(&input(&component, "0123456789abcdef").await);
        let text = serde_json::to_string(&before).unwrap();
        assert!(text.contains("TOKEN") && !text.contains("hush"), "{text}");

        let mut old: serde_json::Value = serde_json::from_str(&text).unwrap();
        old.as_object_mut().unwrap().remove("details");
        let old: Entry = serde_json::from_value(old).unwrap();
        fs::write(root.path().join("app/src/main.rs"), "").unwrap();
        let now = input(&component, "0123456789abcdef").await;
        let difference = Difference::between(&old, &now);
        assert_eq!(difference.summary(), "context changed");
        assert_eq!(
            Difference::between(&before, &now).summary(),
            "src/main.rs modified"
        );
    }
}
