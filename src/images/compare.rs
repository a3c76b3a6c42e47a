//! How two images of the same sources differ: which layer, which file, and what about it.
//!
//! Boundary: compares what was exported, compressed layers and configurations. Who built them, and why twice, is the caller's
//! business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::layers::{Image, LayerStore};

/// How much of a file is read at once.
const CHUNK: usize = 128 * 1024;

/// Something that is not the same in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "difference", rename_all = "snake_case")]
pub enum Difference {
    /// A value of the configuration.
    Configuration {
        /// Where, as a JSON pointer.
        pointer: String,
        /// The first build's; nothing if it has none.
        first: Option<Value>,
        /// The second's.
        second: Option<Value>,
    },
    /// One has more layers.
    Layers {
        /// The first build's number.
        first: usize,
        /// The second's.
        second: usize,
    },
    /// A file of a layer.
    File {
        /// The layer, counted from 1 at the bottom.
        layer: usize,
        /// The instruction that made it, as far as the builder says.
        instruction: String,
        /// The file.
        path: String,
        /// What about it.
        what: Vec<Change>,
    },
    /// The same files in another order.
    Order {
        /// The layer, counted from 1 at the bottom.
        layer: usize,
        /// The instruction that made it.
        instruction: String,
    },
}

/// What differs about a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Change {
    /// Only one build has it.
    OnlyIn {
        /// 1 or 2.
        build: u8,
    },
    /// Its bytes.
    Content {
        /// How many the first build's has.
        first: u64,
        /// And the second's.
        second: u64,
    },
    /// Anything else that has a name and a value: mode, owner, time, link target, attributes.
    Attribute {
        /// Which.
        name: &'static str,
        /// The first build's.
        first: String,
        /// The second's.
        second: String,
    },
}

impl Difference {
    /// One line for people.
    pub fn describe(&self) -> String {
        let show =
            |value: &Option<Value>| value.as_ref().map_or("nothing".into(), Value::to_string);
        match self {
            Self::Configuration {
                pointer,
                first,
                second,
            } => format!(
                "configuration {pointer}: {} and {}",
                show(first),
                show(second)
            ),
            Self::Layers { first, second } => format!("{first} and {second} layers"),
            Self::File {
                layer,
                instruction,
                path,
                what,
            } => {
                let what: Vec<String> = what.iter().map(Change::describe).collect();
                format!("layer {layer} ({instruction}): {path}: {}", what.join(", "))
            }
            Self::Order { layer, instruction } => {
                format!("layer {layer} ({instruction}): the same files in another order")
            }
        }
    }
}

impl Change {
    fn describe(&self) -> String {
        match self {
            Self::OnlyIn { build } => format!("only in build {build}"),
            Self::Content { first, second } if first == second => {
                format!("content, {first} bytes each")
            }
            Self::Content { first, second } => format!("content, {first} and {second} bytes"),
            Self::Attribute {
                name,
                first,
                second,
            } => format!("{name} {first} and {second}"),
        }
    }
}

/// What is compared of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    content: [u8; 32],
    size: u64,
    attributes: Vec<(&'static str, String)>,
}

/// All differences of two images whose layers are in `store`; none if they have one digest.
pub fn differences(
    store: &LayerStore,
    first: &Image,
    second: &Image,
) -> io::Result<Vec<Difference>> {
    let mut found = Vec::new();
    let instructions = instructions(&first.config);
    if first.layers.len() != second.layers.len() {
        let (first, second) = (first.layers.len(), second.layers.len());
        found.push(Difference::Layers { first, second });
    }
    for (at, (one, two)) in first.layers.iter().zip(&second.layers).enumerate() {
        if one.digest == two.digest {
            continue;
        }
        let (one, two) = (
            files(&store.blob(&one.digest))?,
            files(&store.blob(&two.digest))?,
        );
        let layer = at + 1;
        let instruction = instructions.get(at).cloned().unwrap_or_default();
        let changed = changed(&one, &two);
        if changed.is_empty() {
            found.push(Difference::Order { layer, instruction });
            continue;
        }
        found.extend(changed.into_iter().map(|(path, what)| Difference::File {
            layer,
            instruction: instruction.clone(),
            path,
            what,
        }));
    }
    if first.config != second.config {
        let parse = |image: &Image| serde_json::from_slice::<Value>(&image.config);
        compare("", &parse(first)?, &parse(second)?, &mut found);
    }
    Ok(found)
}

/// The instruction of each layer, out of the configuration's history.
fn instructions(config: &[u8]) -> Vec<String> {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let history = config.get("history").and_then(Value::as_array);
    let made = history.into_iter().flatten().filter(|step| {
        let empty = step.get("empty_layer").and_then(Value::as_bool);
        !empty.unwrap_or_default()
    });
    made.map(|step| {
        let text = ["created_by", "comment"].iter().find_map(|key| {
            step.get(key)
                .and_then(Value::as_str)
                .filter(|t| !t.is_empty())
        });
        let words: Vec<&str> = text.unwrap_or_default().split_whitespace().collect();
        let line = words.join(" ");
        let shown: String = line.chars().take(60).collect();
        if shown == line {
            line
        } else {
            format!("{shown}...")
        }
    })
    .collect()
}

fn changed(
    first: &BTreeMap<String, Facts>,
    second: &BTreeMap<String, Facts>,
) -> Vec<(String, Vec<Change>)> {
    let paths: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let changes = paths.into_iter().map(|path| {
        let what = match (first.get(path), second.get(path)) {
            (Some(_), None) => vec![Change::OnlyIn { build: 1 }],
            (None, _) => vec![Change::OnlyIn { build: 2 }],
            (Some(one), Some(two)) => compare_files(one, two),
        };
        (path.clone(), what)
    });
    changes.filter(|(_, what)| !what.is_empty()).collect()
}

fn compare_files(one: &Facts, two: &Facts) -> Vec<Change> {
    let content = (one.content != two.content).then_some(Change::Content {
        first: one.size,
        second: two.size,
    });
    let value = |facts: &Facts, name| {
        let mut found = facts.attributes.iter().filter(|(key, _)| *key == name);
        found
            .next()
            .map(|(_, value)| value.clone())
            .unwrap_or_default()
    };
    let attributes = one.attributes.iter().filter_map(|(name, first)| {
        let second = value(two, *name);
        (*first != second).then(|| Change::Attribute {
            name,
            first: first.clone(),
            second,
        })
    });
    content.into_iter().chain(attributes).collect()
}

/// Every file of a compressed layer. Memory grows with their number, not with their size.
fn files(blob: &Path) -> io::Result<BTreeMap<String, Facts>> {
    let decoder = MultiGzDecoder::new(BufReader::with_capacity(CHUNK, File::open(blob)?));
    let mut archive = tar::Archive::new(decoder);
    let mut files = BTreeMap::new();
    let mut buffer = vec![0; CHUNK];
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().unwrap_or_default();
        let link = String::from_utf8_lossy(&link).into_owned();
        let extended = match entry.pax_extensions()? {
            Some(extensions) => {
                let shown = extensions.map(|pair| {
                    let pair = pair?;
                    let value = String::from_utf8_lossy(pair.value_bytes()).into_owned();
                    Ok(format!("{}={value}", pair.key().unwrap_or_default()))
                });
                shown.collect::<io::Result<Vec<_>>>()?.join(" ")
            }
            None => String::new(),
        };
        // An empty field is none, which is zero.
        let header = entry.header();
        let (user, group) = (
            header.uid().unwrap_or_default(),
            header.gid().unwrap_or_default(),
        );
        let attributes = vec![
            ("kind", format!("{:?}", header.entry_type())),
            ("mode", format!("{:o}", header.mode().unwrap_or_default())),
            ("owner", format!("{user}:{group}")),
            ("time", header.mtime().unwrap_or_default().to_string()),
            ("link", link),
            ("attributes", extended),
        ];
        let size = entry.size();
        let mut hasher = Sha256::new();
        loop {
            let count = entry.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(buffer.get(..count).unwrap_or_default());
        }
        let content = hasher.finalize().into();
        files.insert(
            path,
            Facts {
                content,
                size,
                attributes,
            },
        );
    }
    Ok(files)
}

/// Values that differ, but for those that only repeat what is known of the layers.
fn compare(pointer: &str, first: &Value, second: &Value, found: &mut Vec<Difference>) {
    if first == second || pointer == "/rootfs/diff_ids" {
        return;
    }
    let (Some(one), Some(two)) = (parts(first), parts(second)) else {
        found.push(Difference::Configuration {
            pointer: pointer.to_owned(),
            first: Some(first.clone()),
            second: Some(second.clone()),
        });
        return;
    };
    let keys: BTreeSet<&String> = one.keys().chain(two.keys()).collect();
    for key in keys {
        let pointer = format!("{pointer}/{key}");
        match (one.get(key), two.get(key)) {
            (Some(one), Some(two)) => compare(&pointer, one, two, found),
            (one, two) => found.push(Difference::Configuration {
                pointer,
                first: one.map(|value| (*value).clone()),
                second: two.map(|value| (*value).clone()),
            }),
        }
    }
}

/// What a value consists of; nothing for one that is a whole.
fn parts(value: &Value) -> Option<BTreeMap<String, &Value>> {
    match value {
        Value::Object(map) => Some(
            map.iter()
                .map(|(key, value)| (key.clone(), value))
                .collect(),
        ),
        Value::Array(list) => {
            let numbered = list.iter().enumerate();
            Some(
                numbered
                    .map(|(at, value)| (at.to_string(), value))
                    .collect(),
            )
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::images::layers::Layer;

    /// An image of one layer with these files: name, content, mode.
    fn image(store: &Path, files: &[(&str, &str, u32)], config: &str) -> Image {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content, mode) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(*mode);
            archive
                .append_data(&mut header, name, content.as_bytes())
                .unwrap();
        }
        let plain = archive.into_inner().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain).unwrap();
        let bytes = encoder.finish().unwrap();
        let digest = crate::images::hash::Sha256Digest::of(&bytes).to_string();
        let path = LayerStore::new(store).blob(&digest);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &bytes).unwrap();
        Image {
            config: config.to_owned().into(),
            layers: vec![Layer {
                digest,
                size: bytes.len() as u64,
            }],
        }
    }

    const CONFIG: &str = r#"{"history":[{"created_by":"ENV a","empty_layer":true},{"created_by":"RUN make   all"}],"rootfs":{"diff_ids":["a"]}}"#;

    #[test]
    fn layer_file_and_reason_are_named() {
        let root = tempfile::tempdir().unwrap();
        let store = LayerStore::new(root.path());
        let one = image(
            root.path(),
            &[
                ("a", "1", 0o644),
                ("log", "x", 0o644),
                ("tool", "t", 0o755),
                ("gone", "", 0o644),
            ],
            CONFIG,
        );
        let two = image(
            root.path(),
            &[
                ("a", "1", 0o644),
                ("log", "xyz", 0o644),
                ("tool", "t", 0o700),
            ],
            &CONFIG.replace("[\"a\"]", "[\"b\"]"),
        );
        assert_eq!(differences(&store, &one, &one).unwrap(), []);
        let lines: Vec<String> = differences(&store, &one, &two)
            .unwrap()
            .iter()
            .map(Difference::describe)
            .collect();
        assert_eq!(
            lines,
            [
                "layer 1 (RUN make all): gone: only in build 1",
                "layer 1 (RUN make all): log: content, 1 and 3 bytes",
                "layer 1 (RUN make all): tool: mode 755 and 700",
            ]
        );
    }

    #[test]
    fn order_and_configuration_count_as_well() {
        let root = tempfile::tempdir().unwrap();
        let store = LayerStore::new(root.path());
        let one = image(
            root.path(),
            &[("a", "1", 0o644), ("b", "2", 0o644)],
            r#"{"config":{"Env":["A=1"]}}"#,
        );
        let two = image(
            root.path(),
            &[("b", "2", 0o644), ("a", "1", 0o644)],
            r#"{"config":{"Env":["A=2"],"User":"1"}}"#,
        );
        let found = differences(&store, &one, &two).unwrap();
        let lines: Vec<String> = found.iter().map(Difference::describe).collect();
        assert_eq!(
            lines,
            [
                "layer 1 (): the same files in another order",
                "configuration /config/Env/0: \"A=1\" and \"A=2\"",
                "configuration /config/User: nothing and \"1\"",
            ]
        );
    }
}
