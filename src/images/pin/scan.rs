//! Finds the images of containers and of image volumes in a document, with the bytes that they occupy.
//!
//! One pass over the parser's events, which are not kept: what everything else in the document means goes into a hash. Nothing
//! recurses, so that no nesting overflows the stack.

use std::collections::BTreeMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use sha2::{Digest, Sha256};

use super::error::{Fault, Problem};
use super::template;

/// Keys whose lists hold containers, in every kind that has a pod template.
const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// Key whose list holds volumes; an `image` in one has a `reference`.
const VOLUME_LIST: &str = "volumes";
/// Key whose value's keys count as the mapping's own.
const MERGE: &str = "<<";
/// How many anchors may lead from a container to its image.
const ANCHOR_DEPTH: usize = 32;

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
}

/// What a document says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Its images, in order. An aliased one is reported where its anchor is.
    pub(super) images: Vec<ImageScalar>,
    /// Hash of everything that it means besides its images' names.
    pub(super) meaning: [u8; 32],
}

/// Reads the documents in `text`, which stand in a file behind `offset` bytes and `lines` lines.
pub(super) fn scan(text: &str, offset: usize, lines: usize) -> Result<Scan, Fault> {
    // Containers may be written out where they are not containers yet, and aliased later. Each round follows aliases one further.
    let mut roles = BTreeMap::new();
    for _ in 0..ANCHOR_DEPTH {
        let mut walk = Walk::new(text, offset, lines, &roles);
        for event in Parser::new_from_str(text) {
            match event {
                Ok((event, span)) => walk.take(&event, span)?,
                Err(error) => {
                    let (line, column) = (error.marker().line(), error.marker().col() + 1);
                    return Err(match template::find(text) {
                        Some((line, column)) => fault(lines + line, column, Problem::Template),
                        None => fault(lines + line, column, Problem::Yaml(error.info().to_owned())),
                    });
                }
            }
        }
        let found = walk.roles_of_anchors();
        if found
            .iter()
            .all(|(anchor, role)| roles.get(anchor) == Some(role))
        {
            return walk.finish();
        }
        roles.extend(found);
    }
    Err(fault(lines + 1, 1, Problem::Anchors))
}

fn fault(line: usize, column: usize, problem: Problem) -> Fault {
    Fault {
        line,
        column,
        problem,
    }
}

/// What a node is, as far as images are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Containers,
    Container,
    Volumes,
    Volume,
    /// What `image` of a volume holds.
    VolumeSource,
    /// An image's name.
    Image,
    Other,
}

/// A collection that the walk is inside of.
struct Frame {
    role: Role,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    Sequence,
    /// With the key whose value comes next; nothing while a key is expected.
    Mapping {
        key: Option<Key>,
    },
}

/// What a key says about its value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Image,
    Reference,
    Containers,
    Volumes,
    Merge,
    Other,
}

impl Key {
    fn of(text: &str) -> Self {
        match text {
            "image" => Self::Image,
            "reference" => Self::Reference,
            VOLUME_LIST => Self::Volumes,
            MERGE => Self::Merge,
            other if CONTAINER_LISTS.contains(&other) => Self::Containers,
            _ => Self::Other,
        }
    }
}

impl Frame {
    /// The role of the node that comes next.
    fn next(&self) -> Role {
        match (&self.kind, self.role) {
            (Kind::Sequence, Role::Containers) => Role::Container,
            (Kind::Sequence, Role::Volumes) => Role::Volume,
            // Several mappings to merge.
            (Kind::Sequence, role) => role,
            (Kind::Mapping { key: None }, _) => Role::Other,
            (Kind::Mapping { key: Some(key) }, role) => match (key, role) {
                (Key::Image, Role::Container) | (Key::Reference, Role::VolumeSource) => Role::Image,
                (Key::Image, Role::Volume) => Role::VolumeSource,
                (Key::Merge, Role::Container | Role::Volume | Role::VolumeSource) => role,
                (Key::Containers, _) => Role::Containers,
                (Key::Volumes, _) => Role::Volumes,
                _ => Role::Other,
            },
        }
    }

    /// A node ended: in a mapping, a key is followed by a value and a value by a key.
    fn advance(&mut self, node: Key) {
        if let Kind::Mapping { key } = &mut self.kind {
            *key = if key.is_none() { Some(node) } else { None };
        }
    }
}

/// A scalar with an anchor: whether it is an image may be known only at the end.
struct Anchored<'text> {
    anchor: usize,
    value: String,
    style: ScalarStyle,
    span: Span,
    role: Role,
    /// Its bytes in the text.
    raw: (usize, &'text str),
}

/// Where an alias stands, and as what.
struct Use {
    anchor: usize,
    role: Role,
    span: Span,
}

struct Walk<'text, 'roles> {
    text: &'text str,
    /// Is there anything in it that may be a template's?
    braces: bool,
    offset: usize,
    lines: usize,
    /// What collections turned out to be by their aliases.
    roles: &'roles BTreeMap<usize, Role>,
    cursor: Cursor<'text>,
    stack: Vec<Frame>,
    images: Vec<ImageScalar>,
    anchored: Vec<Anchored<'text>>,
    uses: Vec<Use>,
    /// Anchor of a collection -> its role where it is written out.
    collections: BTreeMap<usize, Role>,
    /// Anchor of a collection whose role makes one of its scalars an image -> that role, and the image's line.
    carriers: BTreeMap<usize, (Role, usize)>,
    meaning: Meaning,
}

impl<'text, 'roles> Walk<'text, 'roles> {
    fn new(
        text: &'text str,
        offset: usize,
        lines: usize,
        roles: &'roles BTreeMap<usize, Role>,
    ) -> Self {
        Self {
            text,
            braces: text.contains("{{"),
            offset,
            lines,
            roles,
            cursor: Cursor::new(text),
            stack: Vec::new(),
            images: Vec::new(),
            anchored: Vec::new(),
            uses: Vec::new(),
            collections: BTreeMap::new(),
            carriers: BTreeMap::new(),
            meaning: Meaning::default(),
        }
    }

    fn take(&mut self, event: &Event<'_>, span: Span) -> Result<(), Fault> {
        let role = self.stack.last().map_or(Role::Other, Frame::next);
        match event {
            Event::Scalar(value, style, anchor, tag) => {
                self.meaning.node(b's', *anchor, tag.as_deref());
                if *anchor != 0 {
                    self.anchored.push(Anchored {
                        anchor: *anchor,
                        value: value.clone().into_owned(),
                        style: *style,
                        span,
                        role,
                        raw: self.cursor.raw(span),
                    });
                } else if role == Role::Image {
                    let raw = self.cursor.raw(span);
                    let image = self.image(value, *style, span, raw)?;
                    self.images.push(image);
                } else {
                    self.meaning.scalar(value, *style);
                    let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                    if self.braces && !block && template::is_helm(value) {
                        return Err(self.fault(span, Problem::Template));
                    }
                }
                if role == Role::Image {
                    self.carry(self.lines + span.start.line());
                }
                if let Some(frame) = self.stack.last_mut() {
                    frame.advance(Key::of(value));
                }
            }
            Event::Alias(anchor) => {
                self.meaning.node(b'*', *anchor, None);
                self.uses.push(Use {
                    anchor: *anchor,
                    role,
                    span,
                });
                if let Some(frame) = self.stack.last_mut() {
                    frame.advance(Key::Other);
                }
            }
            Event::MappingStart(anchor, tag) => {
                self.meaning.node(b'{', *anchor, tag.as_deref());
                self.open(Kind::Mapping { key: None }, role, *anchor, span)?;
            }
            Event::SequenceStart(anchor, tag) => {
                self.meaning.node(b'[', *anchor, tag.as_deref());
                self.open(Kind::Sequence, role, *anchor, span)?;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                self.meaning.node(b'.', 0, None);
                self.stack.pop();
                if let Some(frame) = self.stack.last_mut() {
                    frame.advance(Key::Other);
                }
            }
            Event::DocumentStart(explicit) => {
                self.meaning.node(b'd', usize::from(*explicit), None);
                self.stack.clear();
            }
            Event::DocumentEnd => {
                self.meaning.node(b'e', 0, None);
                self.stack.clear();
            }
            Event::StreamStart | Event::StreamEnd | Event::Nothing => {}
        }
        Ok(())
    }

    fn open(&mut self, kind: Kind, role: Role, anchor: usize, span: Span) -> Result<(), Fault> {
        if self.braces {
            let start = self.cursor.byte(span.start.index());
            if template::is_action(self.text.get(start..).unwrap_or_default()) {
                return Err(self.fault(span, Problem::Template));
            }
        }
        if role == Role::Image {
            return Err(self.fault(span, Problem::NotText));
        }
        let sequence = matches!(kind, Kind::Sequence);
        let written = match role {
            Role::Containers | Role::Volumes if !sequence => Role::Other,
            role => role,
        };
        if anchor != 0 {
            self.collections.insert(anchor, written);
        }
        self.stack.push(Frame {
            role: self.roles.get(&anchor).copied().unwrap_or(written),
            anchor,
            kind,
        });
        Ok(())
    }

    /// Remembers which anchored collections make the image that was just met an image.
    fn carry(&mut self, line: usize) {
        let inside = self.stack.iter().rev();
        for frame in inside.take_while(|frame| frame.role != Role::Other) {
            if frame.anchor != 0 {
                self.carriers.insert(frame.anchor, (frame.role, line));
            }
        }
    }

    /// Collections that are something else where they are aliased than where they are written out.
    fn roles_of_anchors(&self) -> BTreeMap<usize, Role> {
        let mut found = BTreeMap::new();
        for used in self.uses.iter().filter(|used| used.role != Role::Other) {
            if self.collections.get(&used.anchor) == Some(&Role::Other) {
                found.entry(used.anchor).or_insert(used.role);
            }
        }
        found
    }

    fn finish(mut self) -> Result<Scan, Fault> {
        for anchored in std::mem::take(&mut self.anchored) {
            let written = anchored.role == Role::Image;
            let uses = || {
                self.uses
                    .iter()
                    .filter(|used| used.anchor == anchored.anchor)
            };
            let used = uses().find(|used| used.role == Role::Image);
            if !written && used.is_none() {
                self.meaning.scalar(&anchored.value, anchored.style);
                continue;
            }
            // The place that merely defines the anchor may change with the image; any other use may not.
            if let Some(other) = uses().find(|used| used.role != Role::Image) {
                let image = self.lines + used.map_or(anchored.span, |used| used.span).start.line();
                return Err(self.fault(other.span, Problem::SharedAnchor { image }));
            }
            let Anchored {
                value,
                style,
                span,
                raw,
                ..
            } = anchored;
            let image = self.image(&value, style, span, raw)?;
            self.images.push(image);
        }
        for used in &self.uses {
            if let Some((role, image)) = self.carriers.get(&used.anchor)
                && used.role != *role
            {
                return Err(self.fault(used.span, Problem::SharedAnchor { image: *image }));
            }
        }
        self.images.sort_by_key(|image| image.span.start);
        Ok(Scan {
            images: self.images,
            meaning: self.meaning.hash(),
        })
    }

    /// An image, with where its text is inside its quotes or block. `raw` is the scalar as written, with its anchor and tag.
    fn image(
        &self,
        value: &str,
        style: ScalarStyle,
        span: Span,
        (start, raw): (usize, &str),
    ) -> Result<ImageScalar, Fault> {
        let name = value.trim();
        if name.contains("{{") {
            return Err(self.fault(span, Problem::Template));
        }
        let written = match style {
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                let quoted = without_properties(raw);
                let first = raw.len() - quoted.len() + 1;
                inside_quotes(quoted).map(|inside| first..first + inside)
            }
            ScalarStyle::Plain => {
                let text = raw.trim_end();
                let before = text.strip_suffix(value).map(str::len);
                before.map(|before| before..text.len())
            }
            ScalarStyle::Literal | ScalarStyle::Folded => {
                let once = raw.matches(name).count() == 1;
                let found = raw.find(name).filter(|_| once);
                found.map(|at| at..at + name.len())
            }
        };
        let written = written.filter(|_| !name.is_empty() && !name.contains('\n'));
        let written = written.ok_or_else(|| self.fault(span, Problem::NotText))?;
        let start = self.offset + start;
        Ok(ImageScalar {
            value: name.to_owned(),
            span: start + written.start..start + written.end,
            line: self.lines + span.start.line(),
            column: span.start.col() + 1,
            plain: style == ScalarStyle::Plain,
        })
    }

    fn fault(&self, span: Span, problem: Problem) -> Fault {
        fault(
            self.lines + span.start.line(),
            span.start.col() + 1,
            problem,
        )
    }
}

/// A quoted scalar without the anchor, tag and comments in front of its quote.
fn without_properties(raw: &str) -> &str {
    let mut rest = raw.trim_start();
    loop {
        let skipped = match rest.chars().next() {
            Some('&' | '!') => rest.find(char::is_whitespace),
            Some('#') => rest.find(['\n', '\r']),
            _ => None,
        };
        match skipped.and_then(|at| rest.get(at..)) {
            Some(after) => rest = after.trim_start(),
            None => return rest,
        }
    }
}

/// Bytes between the quote that `text` begins with and the one that ends it. What follows is not looked at: the parser counts
/// blanks behind a quote to the scalar.
fn inside_quotes(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    let (_, quote) = characters.next()?;
    let mut escaped = false;
    while let Some((at, character)) = characters.next() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            '\'' if quote == '\'' => {
                if !text
                    .get(at + 1..)
                    .is_some_and(|rest| rest.starts_with('\''))
                {
                    return Some(at - 1);
                }
                characters.next();
            }
            '"' if quote == '"' => return Some(at - 1),
            _ => {}
        }
    }
    None
}

/// Turns the parser's offsets, which count characters, into bytes. Cheap as long as they grow.
struct Cursor<'text> {
    text: &'text str,
    ascii: bool,
    characters: usize,
    bytes: usize,
}

impl<'text> Cursor<'text> {
    fn new(text: &'text str) -> Self {
        Self {
            text,
            ascii: text.is_ascii(),
            characters: 0,
            bytes: 0,
        }
    }

    fn byte(&mut self, character: usize) -> usize {
        if self.ascii {
            return character.min(self.text.len());
        }
        if character < self.characters {
            (self.characters, self.bytes) = (0, 0);
        }
        let rest = self.text.get(self.bytes..).unwrap_or_default();
        let further = rest.char_indices().nth(character - self.characters);
        self.characters = character;
        self.bytes = further.map_or(self.text.len(), |(at, _)| self.bytes + at);
        self.bytes
    }

    /// Where a span begins, and its text.
    fn raw(&mut self, span: Span) -> (usize, &'text str) {
        let (start, end) = (self.byte(span.start.index()), self.byte(span.end.index()));
        (start, self.text.get(start..end).unwrap_or_default())
    }
}

/// What events mean, in bytes. Quotes may come or go without a change of meaning for a string; everything else must stay.
#[derive(Default)]
struct Meaning {
    bytes: Vec<u8>,
}

impl Meaning {
    fn node(&mut self, kind: u8, anchor: usize, tag: Option<&Tag>) {
        self.bytes.extend([kind, u8::from(tag.is_some())]);
        self.bytes.extend(anchor.to_le_bytes());
        if let Some(tag) = tag {
            self.text(&tag.handle);
            self.text(&tag.suffix);
        }
    }

    fn scalar(&mut self, value: &str, style: ScalarStyle) {
        self.bytes.push(u8::from(style == ScalarStyle::Plain));
        self.text(value);
    }

    fn text(&mut self, text: &str) {
        self.bytes.extend(text.len().to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.bytes).into()
    }
}
