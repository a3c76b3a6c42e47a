//! Finds the images of containers and of image volumes in a Kubernetes manifest, with the bytes that they occupy.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::PinError;

/// Keys whose lists hold containers, in every kind that has a pod template.
const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Key whose list holds volumes; an `image` in one has a `reference`.
const VOLUME_LIST: &str = "volumes";

/// One image and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageScalar {
    /// Its value.
    pub value: String,
    /// The bytes to replace: the text without quotes.
    pub span: Range<usize>,
    /// Line of the value, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Is it written without quotes?
    pub plain: bool,
    /// Which scalar of the document it is, counted over the whole file.
    pub(super) index: usize,
}

/// A manifest's text with its parsed events.
pub(super) struct Document<'text> {
    text: &'text str,
    /// Byte offset of every character, and of the end.
    offsets: Vec<usize>,
    events: Vec<(Event<'text>, Span)>,
}

/// What the walk is inside of.
enum Frame {
    Mapping {
        /// The key whose value comes next; nothing while a key is expected.
        key: Option<String>,
        expects_key: bool,
        role: Role,
    },
    Sequence {
        /// What its elements are.
        of: Role,
    },
}

/// What a mapping is, as far as images are concerned.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Container,
    Volume,
    /// What `image` of a volume holds.
    VolumeSource,
    Other,
}

impl<'text> Document<'text> {
    /// Parses `text`; `path` is for messages.
    pub(super) fn parse(text: &'text str, path: &Path) -> Result<Self, PinError> {
        // The parser does not count the mark, and nothing is ever replaced in front of it.
        let skipped = if text.starts_with('\u{feff}') {
            '\u{feff}'.len_utf8()
        } else {
            0
        };
        let body = text.get(skipped..).unwrap_or_default();
        let mut offsets: Vec<usize> = body
            .char_indices()
            .map(|(offset, _)| offset + skipped)
            .collect();
        offsets.push(text.len());
        let mut events = Vec::new();
        for event in Parser::new_from_str(body) {
            match event {
                Ok((event, span)) => events.push((event, span)),
                Err(error) => {
                    let (line, column) = (error.marker().line(), error.marker().col() + 1);
                    if looks_like_template(text) {
                        return Err(PinError::Template {
                            path: path.to_owned(),
                            line,
                            column,
                        });
                    }
                    let reason = error.info().to_owned();
                    return Err(PinError::Yaml {
                        path: path.to_owned(),
                        line,
                        column,
                        reason,
                    });
                }
            }
        }
        Ok(Self {
            text,
            offsets,
            events,
        })
    }

    /// Everything that the text means: events without their places.
    pub(super) fn meaning(&self) -> Vec<Event<'text>> {
        self.events
            .iter()
            .map(|(event, _)| without_style(event))
            .collect()
    }

    /// All images, in order. An aliased one is reported where its anchor is.
    pub(super) fn images(&self, path: &Path) -> Result<Vec<ImageScalar>, PinError> {
        let mut images: BTreeMap<usize, ImageScalar> = BTreeMap::new();
        let mut anchors: BTreeMap<usize, usize> = BTreeMap::new();
        // Anchors that stand for something else than an image somewhere, and where.
        let mut other_uses: BTreeMap<usize, Span> = BTreeMap::new();
        let mut aliased: BTreeMap<usize, Span> = BTreeMap::new();
        let mut stack: Vec<Frame> = Vec::new();
        for (index, (event, span)) in self.events.iter().enumerate() {
            let is_image = value_of_image(&stack);
            let (line, column) = (span.start.line(), span.start.col() + 1);
            match event {
                Event::Scalar(value, style, anchor, _) => {
                    if *anchor != 0 {
                        anchors.insert(*anchor, index);
                    }
                    if is_image {
                        images.insert(index, self.scalar(index, value, *style, *span, path)?);
                    } else if *anchor != 0 {
                        other_uses.insert(*anchor, *span);
                    }
                    finish_value(&mut stack, Some(value));
                }
                Event::Alias(anchor) => {
                    let uses = if is_image {
                        &mut aliased
                    } else {
                        &mut other_uses
                    };
                    uses.insert(*anchor, *span);
                    finish_value(&mut stack, None);
                }
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    if is_image {
                        let path = path.to_owned();
                        let template = self
                            .text
                            .get(self.offset(span.start.index())..)
                            .is_some_and(|rest| rest.starts_with("{{"));
                        return Err(if template {
                            PinError::Template { path, line, column }
                        } else {
                            PinError::NotText { path, line, column }
                        });
                    }
                    let frame = match event {
                        Event::MappingStart(..) => Frame::Mapping {
                            key: None,
                            expects_key: true,
                            role: role_of_mapping(&stack),
                        },
                        _ => Frame::Sequence {
                            of: match key_of(&stack) {
                                Some(VOLUME_LIST) => Role::Volume,
                                Some(key) if CONTAINER_LISTS.contains(&key) => Role::Container,
                                _ => Role::Other,
                            },
                        },
                    };
                    stack.push(frame);
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    stack.pop();
                    finish_value(&mut stack, None);
                }
                Event::DocumentStart(_) | Event::DocumentEnd => stack.clear(),
                _ => {}
            }
        }
        for (anchor, index) in &anchors {
            let is_image = images.contains_key(index);
            let Some((Event::Scalar(value, style, ..), defined)) = self.events.get(*index) else {
                continue;
            };
            let used = match aliased.get(anchor) {
                Some(span) => span,
                None if is_image => defined,
                None => continue,
            };
            // The place that merely defines the anchor may change with the image; any other use may not.
            if let Some(span) = other_uses.get(anchor).filter(|span| *span != defined) {
                let (line, column) = (span.start.line(), span.start.col() + 1);
                return Err(PinError::SharedAnchor {
                    path: path.to_owned(),
                    line,
                    column,
                    image: used.start.line(),
                });
            }
            if !is_image {
                images.insert(*index, self.scalar(*index, value, *style, *defined, path)?);
            }
        }
        Ok(images.into_values().collect())
    }

    fn offset(&self, character: usize) -> usize {
        self.offsets
            .get(character)
            .copied()
            .unwrap_or(self.text.len())
    }

    /// Where a scalar's text is inside its quotes or block.
    fn scalar(
        &self,
        index: usize,
        value: &str,
        style: ScalarStyle,
        span: Span,
        path: &Path,
    ) -> Result<ImageScalar, PinError> {
        let (line, column) = (span.start.line(), span.start.col() + 1);
        let (start, end) = (
            self.offset(span.start.index()),
            self.offset(span.end.index()),
        );
        let raw = self.text.get(start..end).unwrap_or_default();
        let refused = || PinError::NotText {
            path: path.to_owned(),
            line,
            column,
        };
        // An anchor or a tag belongs to the span, so the text is looked for from its end.
        let text_end = match style {
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => raw.len().saturating_sub(1),
            _ => raw.trim_end().len(),
        };
        let inner = match style {
            ScalarStyle::Literal | ScalarStyle::Folded => {
                let text = value.trim();
                let found = raw
                    .find(text)
                    .filter(|_| !text.is_empty() && raw.matches(text).count() == 1);
                let at = found.ok_or_else(refused)?;
                start + at..start + at + text.len()
            }
            _ => {
                let written = raw.get(..text_end).and_then(|raw| raw.strip_suffix(value));
                let at = written.ok_or_else(refused)?.len();
                start + at..start + at + value.len()
            }
        };
        if value.contains("{{") {
            return Err(PinError::Template {
                path: path.to_owned(),
                line,
                column,
            });
        }
        let plain = style == ScalarStyle::Plain;
        Ok(ImageScalar {
            value: value.trim().to_owned(),
            span: inner,
            line,
            column,
            plain,
            index,
        })
    }
}

/// Quotes may come or go without a change of meaning for a string; everything else must stay.
fn without_style<'text>(event: &Event<'text>) -> Event<'text> {
    match event {
        Event::Scalar(value, ScalarStyle::Plain, anchor, tag) => {
            Event::Scalar(value.clone(), ScalarStyle::Plain, *anchor, tag.clone())
        }
        Event::Scalar(value, _, anchor, tag) => Event::Scalar(
            value.clone(),
            ScalarStyle::DoubleQuoted,
            *anchor,
            tag.clone(),
        ),
        other => other.clone(),
    }
}

fn key_of(stack: &[Frame]) -> Option<&str> {
    match stack.last() {
        Some(Frame::Mapping {
            key: Some(key),
            expects_key: false,
            ..
        }) => Some(key),
        _ => None,
    }
}

/// What is the mapping that begins here?
fn role_of_mapping(stack: &[Frame]) -> Role {
    match stack.last() {
        Some(Frame::Sequence { of }) => *of,
        Some(Frame::Mapping {
            role: Role::Volume, ..
        }) if key_of(stack) == Some("image") => Role::VolumeSource,
        _ => Role::Other,
    }
}

/// Is the next node the name of an image?
fn value_of_image(stack: &[Frame]) -> bool {
    match stack.last() {
        Some(Frame::Mapping {
            role: Role::Container,
            ..
        }) => key_of(stack) == Some("image"),
        Some(Frame::Mapping {
            role: Role::VolumeSource,
            ..
        }) => key_of(stack) == Some("reference"),
        _ => false,
    }
}

/// A node ended: in a mapping, a key is followed by a value and a value by a key.
fn finish_value(stack: &mut [Frame], scalar: Option<&str>) {
    if let Some(Frame::Mapping {
        key, expects_key, ..
    }) = stack.last_mut()
    {
        *key = if *expects_key {
            scalar.map(str::to_owned)
        } else {
            None
        };
        *expects_key = !*expects_key;
    }
}

/// Go templates are not YAML; saying so helps more than the parser's complaint about a brace.
fn looks_like_template(text: &str) -> bool {
    text.lines()
        .map(str::trim_start)
        .any(|line| !line.starts_with('#') && line.contains("{{") && line.contains("}}"))
}
