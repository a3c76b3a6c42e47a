//! A kubeconfig's text with one cluster's entries in it. Pure.
//!
//! The entries' lines are replaced or added where the file has the usual form. The result is read again, and where it does not
//! mean what it should, the file is written anew, and read again, too: nothing is lost but comments.

use saphyr_parser::{Event, Parser, Span};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

/// The lists that name a cluster's parts, with the key that holds each part.
const LISTS: [(&str, &str); 3] = [
    ("clusters", "cluster"),
    ("contexts", "context"),
    ("users", "user"),
];

/// Why a text is no kubeconfig; it is never quoted, for it may hold keys.
pub(super) struct NoKubeconfig {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) problem: &'static str,
}

/// The three entries of one cluster, under one name.
pub(super) struct Entries {
    name: String,
    parts: [Value; 3],
}

/// A text after the merge.
pub(super) struct Edited {
    pub(super) text: Zeroizing<String>,
    pub(super) in_place: bool,
}

impl Entries {
    /// Takes the only entry of each list and gives all three the name.
    pub(super) fn read(text: &str, name: &str) -> Result<Self, String> {
        let config = parse(text).map_err(|error| error.problem.to_owned())?;
        let part = |(list, key): (&str, &str)| {
            let content = config[list][0][key].clone();
            if content.is_object() {
                Ok(content)
            } else {
                Err(format!("it has no {key}"))
            }
        };
        let [cluster, mut context, user] = LISTS.map(part);
        if let Ok(context) = &mut context {
            context["cluster"] = json!(name);
            context["user"] = json!(name);
        }
        Ok(Self {
            name: name.to_owned(),
            parts: [cluster?, context?, user?],
        })
    }

    /// What of another cluster's has the name: a cluster with another server, a context that leads elsewhere, a user without
    /// a cluster of ours.
    pub(super) fn taken(&self, config: &Value) -> Option<String> {
        let named = |list: &str| {
            let mut entries = config[list].as_array().into_iter().flatten();
            entries.find(|entry| entry["name"] == *self.name)
        };
        let cluster = named("clusters");
        if let Some(entry) = cluster {
            let (theirs, ours) = (&entry["cluster"]["server"], &self.parts[0]["server"]);
            if theirs != ours {
                let server = theirs.as_str().unwrap_or("no server");
                return Some(format!("cluster, at {server}"));
            }
        }
        if let Some(entry) = named("contexts") {
            let context = &entry["context"];
            if context["cluster"] != *self.name || context["user"] != *self.name {
                let cluster = context["cluster"].as_str().unwrap_or("no cluster");
                return Some(format!("context, of {cluster}"));
            }
        }
        (cluster.is_none() && named("users").is_some()).then(|| "user".to_owned())
    }

    fn entry(&self, index: usize) -> Value {
        let (_, key) = LISTS[index];
        json!({"name": self.name, key: self.parts[index]})
    }
}

/// Reads a kubeconfig; an empty text is an empty one.
pub(super) fn parse(text: &str) -> Result<Value, NoKubeconfig> {
    let wrong = |line, column, problem| NoKubeconfig {
        line,
        column,
        problem,
    };
    let value: Value = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location();
        wrong(
            place.map_or(1, |place| place.line()),
            place.map_or(1, |place| place.column()),
            "it is not YAML",
        )
    })?;
    let Value::Object(fields) = value else {
        return if value.is_null() {
            Ok(json!({}))
        } else {
            Err(wrong(1, 1, "it is no mapping"))
        };
    };
    let is_list = |name: &str| {
        fields
            .get(name)
            .is_none_or(|list| list.is_array() || list.is_null())
    };
    if LISTS.iter().any(|(name, _)| !is_list(name)) {
        return Err(wrong(1, 1, "clusters, contexts and users must be lists"));
    }
    Ok(Value::Object(fields))
}

/// Puts the entries into the text that `config` was read from; `None` for what has no form in YAML that reads back as it is.
pub(super) fn merge(
    text: &str,
    config: &Value,
    entries: &Entries,
    current: bool,
) -> Option<Edited> {
    let wanted = wanted(config, entries, current);
    if wanted == *config {
        return Some(Edited {
            text: Zeroizing::new(text.to_owned()),
            in_place: true,
        });
    }
    let means_it = |edited: &Zeroizing<String>| parse(edited).is_ok_and(|value| value == wanted);
    let in_place = edit_in_place(text, config, entries, current)
        .map(Zeroizing::new)
        .filter(means_it);
    if let Some(text) = in_place {
        return Some(Edited {
            text,
            in_place: true,
        });
    }
    let anew = serde_saphyr::to_string(&wanted).ok().map(Zeroizing::new);
    Some(Edited {
        text: anew.filter(means_it)?,
        in_place: text.trim().is_empty(),
    })
}

/// What the file is to mean.
fn wanted(config: &Value, entries: &Entries, current: bool) -> Value {
    let mut fields: Map<String, Value> = config.as_object().cloned().unwrap_or_default();
    for (name, value) in [("apiVersion", "v1"), ("kind", "Config")] {
        fields.entry(name).or_insert_with(|| json!(value));
    }
    for (index, (list, _)) in LISTS.iter().enumerate() {
        let mut items = match fields.get(*list) {
            Some(Value::Array(items)) => items.clone(),
            _ => Vec::new(),
        };
        let entry = entries.entry(index);
        match items.iter_mut().find(|item| item["name"] == *entries.name) {
            Some(item) => *item = entry,
            None => items.push(entry),
        }
        fields.insert((*list).to_owned(), Value::Array(items));
    }
    if current {
        fields.insert("current-context".to_owned(), json!(entries.name));
    }
    Value::Object(fields)
}

/// A list of the file: its items' first bytes, and where it ends.
#[derive(Debug, Default)]
struct List {
    items: Vec<usize>,
    end: usize,
    block: bool,
}

/// Where things stand in the text.
#[derive(Debug, Default)]
struct Layout {
    lists: [Option<List>; 3],
    current: Option<(usize, usize)>,
}

fn edit_in_place(text: &str, config: &Value, entries: &Entries, current: bool) -> Option<String> {
    let layout = layout(text)?;
    let mut edits: Vec<(usize, usize, String)> = Vec::new();
    let mut appended = String::new();
    for (index, (name, _)) in LISTS.iter().enumerate() {
        match &layout.lists[index] {
            Some(list) if list.block && !list.items.is_empty() => {
                edits.push(list_edit(text, config, entries, index, list)?);
            }
            // `[]` or nothing after the colon: the general way is good enough unless the line can simply go.
            Some(list) => {
                let line = line_start(text, list.end.saturating_sub(1));
                let end = next_line(text, list.end);
                edits.push((
                    line,
                    end,
                    format!("{name}:\n{}", rendered(&entries.entry(index), "")?),
                ));
            }
            None => appended.push_str(&format!(
                "{name}:\n{}",
                rendered(&entries.entry(index), "")?
            )),
        }
    }
    if current {
        let value = serde_json::to_string(&entries.name).ok()?;
        match layout.current {
            Some((from, to)) => edits.push((from, to, value)),
            None => appended.push_str(&format!("current-context: {value}\n")),
        }
    }
    for (name, value) in [("apiVersion", "v1"), ("kind", "Config")] {
        if config.get(name).is_none() {
            appended.push_str(&format!("{name}: {value}\n"));
        }
    }
    edits.sort_by_key(|(from, ..)| *from);
    let mut edited = String::with_capacity(text.len() + appended.len());
    let mut at = 0;
    for (from, to, new) in edits {
        edited.push_str(text.get(at..from)?);
        if !edited.is_empty() && !edited.ends_with('\n') && new.contains('\n') {
            edited.push('\n');
        }
        edited.push_str(&new);
        at = to;
    }
    edited.push_str(text.get(at..)?);
    if !edited.ends_with('\n') && !appended.is_empty() {
        edited.push('\n');
    }
    edited.push_str(&appended);
    Some(edited)
}

/// Replaces the list's item of the name, or adds one behind the last.
fn list_edit(
    text: &str,
    config: &Value,
    entries: &Entries,
    index: usize,
    list: &List,
) -> Option<(usize, usize, String)> {
    let starts: Vec<usize> = list
        .items
        .iter()
        .map(|item| line_start(text, *item))
        .collect();
    let indent: String = text
        .get(*starts.first()?..)?
        .chars()
        .take_while(|c| *c == ' ')
        .collect();
    let new = rendered(&entries.entry(index), &indent)?;
    let items = config[LISTS[index].0].as_array()?;
    let end = last_line_end(text, list.end);
    Some(
        match items.iter().position(|item| item["name"] == *entries.name) {
            Some(position) => {
                // What is written above the next item belongs to that one.
                let to = match starts.get(position + 1) {
                    Some(next) => last_line_end(text, *next),
                    None => end,
                };
                (*starts.get(position)?, to, new)
            }
            None => (end, end, new),
        },
    )
}

/// An entry as an item of a block list.
fn rendered(entry: &Value, indent: &str) -> Option<String> {
    let text = serde_saphyr::to_string(&[entry]).ok()?;
    let lines: Vec<String> = text
        .lines()
        .map(|line| format!("{indent}{line}\n"))
        .collect();
    Some(lines.concat())
}

/// Reads where the lists and the current context stand; `None` for what is not one block mapping.
fn layout(text: &str) -> Option<Layout> {
    let offsets = Offsets::of(text);
    let mut layout = Layout::default();
    let mut depth = 0_usize;
    // The key whose value comes next at the top, and the list that is open.
    let mut key: Option<String> = None;
    let mut open: Option<usize> = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.ok()?;
        match event {
            Event::MappingStart(..) | Event::SequenceStart(..) => {
                if depth == 2
                    && let Some(list) = open.and_then(|index| layout.lists[index].as_mut())
                {
                    list.items.push(offsets.start(&span)?);
                }
                if depth == 1
                    && let Some(name) = key.take()
                {
                    open = LISTS.iter().position(|(list, _)| *list == name);
                    if let Some(index) = open {
                        let start = offsets.start(&span)?;
                        let block = !text.get(start..)?.starts_with('[');
                        layout.lists[index] = Some(List {
                            items: Vec::new(),
                            end: start,
                            block,
                        });
                    }
                }
                depth += 1;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                depth = depth.checked_sub(1)?;
                if depth == 1
                    && let Some(list) = open.take().and_then(|index| layout.lists[index].as_mut())
                {
                    list.end = offsets.end(&span)?;
                }
            }
            Event::Scalar(value, ..) if depth == 1 => match key.take() {
                None => key = Some(value.into_owned()),
                Some(name) => {
                    let range = (offsets.start(&span)?, offsets.end(&span)?);
                    if name == "current-context" {
                        layout.current = (range.1 > range.0).then_some(range);
                        // `current-context:` without a value has no bytes to replace.
                        layout.current?;
                    }
                    if let Some(index) = LISTS.iter().position(|(list, _)| *list == name) {
                        layout.lists[index] = Some(List {
                            items: Vec::new(),
                            end: range.1,
                            block: false,
                        });
                    }
                }
            },
            // Whoever uses them gets the file written anew.
            Event::Alias(_) => return None,
            _ => {}
        }
    }
    Some(layout)
}

/// Bytes of a text by its characters, which the parser counts.
struct Offsets(Vec<usize>);

impl Offsets {
    fn of(text: &str) -> Self {
        let starts = text.char_indices().map(|(byte, _)| byte);
        Self(starts.chain([text.len()]).collect())
    }

    fn start(&self, span: &Span) -> Option<usize> {
        self.0.get(span.start.index()).copied()
    }

    fn end(&self, span: &Span) -> Option<usize> {
        self.0.get(span.end.index()).copied()
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text.get(..at)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1)
}

fn next_line(text: &str, at: usize) -> usize {
    text.get(at..)
        .and_then(|rest| rest.find('\n'))
        .map_or(text.len(), |newline| at + newline + 1)
}

/// Behind the last line of a block that the parser says ends at `at`, which may lie behind blank lines and comments.
fn last_line_end(text: &str, at: usize) -> usize {
    let mut end = line_start(text, at.min(text.len()));
    if end < at
        && text
            .get(end..at)
            .is_some_and(|rest| !rest.trim().is_empty())
    {
        end = next_line(text, at);
    }
    loop {
        let Some(previous) = end.checked_sub(1).map(|newline| line_start(text, newline)) else {
            return end;
        };
        let line = text.get(previous..end).unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') {
            end = previous;
        } else {
            return end;
        }
    }
}
