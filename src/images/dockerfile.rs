//! Which images a Dockerfile starts from, and the same Dockerfile with them replaced.
//!
//! Reads `# syntax=`, `# escape=`, `ARG`, `FROM`, `COPY|ADD --from=` and `RUN --mount=from=`; everything else belongs to the
//! builder. Replacing is a splice of bytes: a build gets exactly the bases that its name was made from, whatever a tag says
//! by then, and it works with every engine that can build at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

/// A Dockerfile does not say what it builds on.
#[derive(Debug, thiserror::Error)]
pub enum DockerfileError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The Dockerfile.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A line that the builder would refuse as well.
    #[error("{path}:{line}: {reason}")]
    Line {
        /// The Dockerfile.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong and what to write instead.
        reason: String,
    },
}

/// A reference to an image that is not a stage of the same Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// The reference with its arguments filled in, as written otherwise.
    pub reference: String,
    /// Where the reference stands, in bytes.
    pub span: Range<usize>,
    /// Line, from 1.
    pub line: usize,
}

/// A Dockerfile, read.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    /// The text as it is on disk.
    pub text: String,
    /// Images it uses, in order.
    pub images: Vec<ImageUse>,
    /// The frontend that a `# syntax=` line asks for.
    pub syntax: Option<ImageUse>,
}

/// One instruction with its continuation lines joined.
struct Instruction {
    text: String,
    /// For every byte of `text`, where it stands in the file.
    offsets: Vec<usize>,
    line: usize,
}

static HEREDOC: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"<<(-?)["']?([A-Za-z_][A-Za-z0-9_.]*)["']?"#).ok());

impl Dockerfile {
    /// Reads and parses `path`; `args` are the build arguments, `platform` fills `TARGETARCH` and its kin.
    pub fn read(
        path: &Path,
        args: &BTreeMap<String, String>,
        platform: &str,
    ) -> Result<Self, DockerfileError> {
        let text = std::fs::read_to_string(path).map_err(|source| DockerfileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(text, path, args, platform)
    }

    /// Parses `text`; `path` is for messages.
    pub fn parse(
        text: String,
        path: &Path,
        args: &BTreeMap<String, String>,
        platform: &str,
    ) -> Result<Self, DockerfileError> {
        let (syntax, escape) = directives(&text);
        let mut scope = Scope::new(args, platform);
        let mut stages: BTreeSet<String> = BTreeSet::new();
        let mut stage_count = 0_usize;
        let mut images = Vec::new();
        for instruction in instructions(&text, escape) {
            let failed = |reason: String| DockerfileError::Line {
                path: path.to_owned(),
                line: instruction.line,
                reason,
            };
            let words = words(&instruction.text);
            let Some(keyword) = words
                .first()
                .map(|word| instruction.slice(word).to_ascii_uppercase())
            else {
                continue;
            };
            let flags = words
                .iter()
                .skip(1)
                .take_while(|word| instruction.slice(word).starts_with("--"));
            match keyword.as_str() {
                "ARG" if stage_count == 0 => {
                    for word in words.iter().skip(1) {
                        scope.declare(instruction.slice(word)).map_err(&failed)?;
                    }
                }
                "FROM" => {
                    let rest: Vec<&Range<usize>> = words.iter().skip(1 + flags.count()).collect();
                    let Some(image) = rest.first() else {
                        return Err(failed("FROM needs an image".to_owned()));
                    };
                    let reference = scope
                        .expand(unquote(instruction.slice(image)))
                        .map_err(&failed)?;
                    if reference.is_empty() {
                        return Err(failed(format!(
                            "`{}` is empty: give its ARG a default value",
                            instruction.slice(image)
                        )));
                    }
                    if reference != "scratch" && !stages.contains(&reference.to_ascii_lowercase()) {
                        images.push(instruction.image(image, reference));
                    }
                    if let [_, keyword, name] = rest.as_slice()
                        && instruction.slice(keyword).eq_ignore_ascii_case("as")
                    {
                        stages.insert(instruction.slice(name).to_ascii_lowercase());
                    }
                    stage_count += 1;
                }
                "COPY" | "ADD" | "RUN" => {
                    for flag in flags {
                        let Some(range) = from_flag(&instruction.text, flag) else {
                            continue;
                        };
                        let name = instruction.slice(&range);
                        let stage = stages.contains(&name.to_ascii_lowercase())
                            || name.parse::<usize>().is_ok();
                        if stage || name.is_empty() || name == "scratch" {
                            continue;
                        }
                        let reference = scope.expand(name).map_err(&failed)?;
                        images.push(instruction.image(&range, reference));
                    }
                }
                _ => {}
            }
        }
        if stage_count == 0 {
            let line = text.lines().count().max(1);
            let reason = "the Dockerfile has no FROM instruction".to_owned();
            return Err(DockerfileError::Line {
                path: path.to_owned(),
                line,
                reason,
            });
        }
        Ok(Self {
            text,
            images,
            syntax,
        })
    }

    /// The distinct references, in order of first use.
    pub fn references(&self) -> Vec<&str> {
        let mut seen = BTreeSet::new();
        let all = self.images.iter().map(|image| image.reference.as_str());
        all.filter(|reference| seen.insert(*reference)).collect()
    }

    /// The text with every image that `replacements` knows replaced. With `own_frontend`, a `# syntax=` line is blanked.
    pub fn with_images(
        &self,
        replacements: &BTreeMap<String, String>,
        own_frontend: bool,
    ) -> String {
        let mut text = self.text.clone();
        for image in self.images.iter().rev() {
            if let Some(replacement) = replacements.get(&image.reference) {
                text.replace_range(image.span.clone(), replacement);
            }
        }
        if let (Some(syntax), true) = (&self.syntax, own_frontend) {
            let line_start = text
                .get(..syntax.span.start)
                .and_then(|head| head.rfind('\n'))
                .map_or(0, |at| at + 1);
            text.replace_range(line_start..syntax.span.end, "#");
        }
        text
    }
}

impl Instruction {
    fn slice(&self, range: &Range<usize>) -> &str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    fn image(&self, range: &Range<usize>, reference: String) -> ImageUse {
        let at = |index: usize| self.offsets.get(index).copied().unwrap_or_default();
        // The end is one past the last byte, which a continuation line may separate from the next one.
        let span = at(range.start)..at(range.end.saturating_sub(1)) + 1;
        ImageUse {
            reference,
            span,
            line: self.line,
        }
    }
}

/// The `# syntax=` and `# escape=` lines, which only count before anything else.
fn directives(text: &str) -> (Option<ImageUse>, char) {
    let mut syntax = None;
    let mut escape = '\\';
    let mut offset = if text.starts_with('\u{feff}') { 3 } else { 0 };
    for (index, line) in text
        .get(offset..)
        .unwrap_or_default()
        .split_inclusive('\n')
        .enumerate()
    {
        let Some((key, value)) = line
            .trim_start()
            .strip_prefix('#')
            .and_then(|rest| rest.split_once('='))
        else {
            break;
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "syntax" if syntax.is_none() => {
                let value = value.trim();
                let start = offset + line.rfind(value).unwrap_or_default();
                let span = start..start + value.len();
                syntax = Some(ImageUse {
                    reference: value.to_owned(),
                    span,
                    line: index + 1,
                });
            }
            "escape" if value.trim() == "`" => escape = '`',
            "escape" | "check" => {}
            _ => break,
        }
        offset += line.len();
    }
    (syntax, escape)
}

/// Splits a file into instructions: comments dropped, continuations joined, bodies of here-documents skipped.
fn instructions(text: &str, escape: char) -> Vec<Instruction> {
    let mut result: Vec<Instruction> = Vec::new();
    let mut current: Option<Instruction> = None;
    let mut heredocs: Vec<(bool, String)> = Vec::new();
    let mut offset = 0;
    for (index, raw) in text.split_inclusive('\n').enumerate() {
        let start = offset;
        offset += raw.len();
        let line = raw.trim_end_matches(['\n', '\r']);
        if let Some((dash, delimiter)) = heredocs.first() {
            let body = if *dash {
                line.trim_start_matches('\t')
            } else {
                line
            };
            if body == delimiter {
                heredocs.remove(0);
            }
            continue;
        }
        let trimmed = line.trim_start_matches('\u{feff}').trim_start();
        if trimmed.starts_with('#') || (trimmed.is_empty() && current.is_some()) {
            continue;
        }
        let body = line.trim_end();
        let continued = body.ends_with(escape);
        let body = if continued {
            body.strip_suffix(escape).unwrap_or(body)
        } else {
            body
        };
        let instruction = current.get_or_insert_with(|| Instruction {
            text: String::new(),
            offsets: Vec::new(),
            line: index + 1,
        });
        instruction.text.push_str(body);
        instruction.offsets.extend(start..start + body.len());
        if !continued {
            let finished = current.take();
            if let Some(instruction) =
                finished.filter(|instruction| !instruction.text.trim().is_empty())
            {
                heredocs = heredoc_delimiters(&instruction.text);
                result.push(instruction);
            }
        }
    }
    result.extend(current);
    result
}

fn heredoc_delimiters(instruction: &str) -> Vec<(bool, String)> {
    let keyword = instruction
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_ascii_uppercase();
    let (Some(heredoc), "RUN" | "COPY" | "ADD") = (HEREDOC.as_ref(), keyword.as_str()) else {
        return Vec::new();
    };
    let captures = heredoc.captures_iter(instruction);
    captures
        .map(|found| (!found[1].is_empty(), found[2].to_owned()))
        .collect()
}

/// Byte ranges of the blank-separated words.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    for (index, character) in text.char_indices() {
        let blank = character.is_whitespace() || character == '\u{feff}';
        match (blank, start) {
            (false, None) => start = Some(index),
            (true, Some(begin)) => {
                words.push(begin..index);
                start = None;
            }
            _ => {}
        }
    }
    words.extend(start.map(|begin| begin..text.len()));
    words
}

/// Where the value of `--from=` or of `from=` inside `--mount=` stands.
fn from_flag(text: &str, flag: &Range<usize>) -> Option<Range<usize>> {
    let word = text.get(flag.clone())?;
    if let Some(value) = word.strip_prefix("--from=") {
        return Some(flag.end - value.len()..flag.end);
    }
    let options = word.strip_prefix("--mount=")?;
    let mut offset = flag.end - options.len();
    for option in options.split(',') {
        if let Some(value) = option.strip_prefix("from=") {
            return Some(offset + "from=".len()..offset + "from=".len() + value.len());
        }
        offset += option.len() + 1;
    }
    None
}

fn unquote(word: &str) -> &str {
    let inner = |quote| {
        word.strip_prefix(quote)
            .and_then(|rest: &str| rest.strip_suffix(quote))
    };
    inner('"').or_else(|| inner('\'')).unwrap_or(word)
}

/// Arguments that FROM may use.
struct Scope<'args> {
    given: &'args BTreeMap<String, String>,
    known: BTreeMap<String, String>,
}

impl<'args> Scope<'args> {
    fn new(given: &'args BTreeMap<String, String>, platform: &str) -> Self {
        let mut parts = platform.split('/');
        let (os, arch, variant) = (parts.next(), parts.next(), parts.next());
        let mut known = BTreeMap::new();
        for side in ["TARGET", "BUILD"] {
            known.insert(format!("{side}PLATFORM"), platform.to_owned());
            known.insert(format!("{side}OS"), os.unwrap_or_default().to_owned());
            known.insert(format!("{side}ARCH"), arch.unwrap_or_default().to_owned());
            known.insert(
                format!("{side}VARIANT"),
                variant.unwrap_or_default().to_owned(),
            );
        }
        Self { given, known }
    }

    fn declare(&mut self, word: &str) -> Result<(), String> {
        let (name, default) = match word.split_once('=') {
            Some((name, default)) => (name, Some(self.expand(unquote(default))?)),
            None => (word, None),
        };
        if let Some(value) = self.given.get(name).cloned().or(default) {
            self.known.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// Fills in `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+value}`.
    fn expand(&self, word: &str) -> Result<String, String> {
        let mut result = String::new();
        let mut rest = word;
        while let Some((before, after)) = rest.split_once('$') {
            result.push_str(before);
            let (name, operation, tail) = match after.strip_prefix('{') {
                Some(braced) => {
                    let (inner, tail) = braced
                        .split_once('}')
                        .ok_or_else(|| format!("`{word}` has no closing brace"))?;
                    let end = inner.find(|c: char| !is_name(c)).unwrap_or(inner.len());
                    let (name, operation) = inner.split_at(end);
                    (name, operation, tail)
                }
                None => {
                    let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
                    let (name, tail) = after.split_at(end);
                    (name, "", tail)
                }
            };
            let value = self.known.get(name).map(String::as_str).unwrap_or_default();
            match operation.split_at_checked(2) {
                None if operation.is_empty() => result.push_str(value),
                Some((":-", default)) if value.is_empty() => {
                    result.push_str(&self.expand(default)?)
                }
                Some((":-", _)) => result.push_str(value),
                Some((":+", other)) if !value.is_empty() => result.push_str(&self.expand(other)?),
                Some((":+", _)) => {}
                _ => {
                    return Err(format!(
                        "`{word}`: only ${{NAME}}, ${{NAME:-default}} and ${{NAME:+value}} are known"
                    ));
                }
            }
            rest = tail;
        }
        result.push_str(rest);
        Ok(result)
    }
}

fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Dockerfile {
        Dockerfile::parse(
            text.to_owned(),
            Path::new("Dockerfile"),
            &BTreeMap::new(),
            "linux/amd64",
        )
        .unwrap()
    }

    fn replace(text: &str, pairs: &[(&str, &str)]) -> String {
        let map = pairs
            .iter()
            .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
            .collect();
        parse(text).with_images(&map, false)
    }

    #[test]
    fn stages_and_scratch_are_not_images() {
        let file = parse(
            "FROM rust:1.95 AS build\nFROM build AS test\nFROM scratch\nCOPY --from=build /a /a\nCOPY --from=0 /a /a\nCOPY --chown=1 --from=tools:2 /b /b\n",
        );
        assert_eq!(file.references(), ["rust:1.95", "tools:2"]);
    }

    #[test]
    fn arguments_are_filled_in() {
        let text = "ARG VERSION=1.95\nARG SUITE\nFROM rust:${VERSION}-slim-${SUITE:-bookworm}\nFROM base-$TARGETARCH\n";
        assert_eq!(
            parse(text).references(),
            ["rust:1.95-slim-bookworm", "base-amd64"]
        );
        let given = BTreeMap::from([("VERSION".to_owned(), "1.96".to_owned())]);
        let file = Dockerfile::parse(
            text.to_owned(),
            Path::new("Dockerfile"),
            &given,
            "linux/arm64",
        )
        .unwrap();
        assert_eq!(file.references(), ["rust:1.96-slim-bookworm", "base-arm64"]);
    }

    #[test]
    fn replacing_touches_the_reference_only() {
        let text = "# a comment\nARG V=1\nFROM --platform=linux/amd64 \\\n  # inside\n  rust:$V AS build\nRUN --mount=type=bind,from=tools:2,target=/t echo rust:1\n";
        let expected = "# a comment\nARG V=1\nFROM --platform=linux/amd64 \\\n  # inside\n  local/rust:x AS build\nRUN --mount=type=bind,from=local/tools:y,target=/t echo rust:1\n";
        assert_eq!(
            replace(
                text,
                &[("rust:1", "local/rust:x"), ("tools:2", "local/tools:y")]
            ),
            expected
        );
    }

    #[test]
    fn here_documents_are_not_instructions() {
        let file = parse(
            "FROM a\nRUN <<EOF cat <<-\"END\"\nFROM b\nEOF\n\tFROM c\n\tEND\nCOPY --from=d / /\n",
        );
        assert_eq!(file.references(), ["a", "d"]);
    }

    #[test]
    fn the_syntax_line_is_found_and_can_be_dropped() {
        let file = parse("# syntax=docker/dockerfile:1\nFROM a\n");
        assert_eq!(
            file.syntax.as_ref().map(|syntax| syntax.reference.as_str()),
            Some("docker/dockerfile:1")
        );
        assert_eq!(file.with_images(&BTreeMap::new(), true), "#\nFROM a\n");
        assert!(parse("FROM a\n# syntax=late\n").syntax.is_none());
    }

    #[test]
    fn the_backtick_can_be_the_escape_character() {
        let file = parse("# escape=`\nFROM a `\n  AS b\nFROM b\n");
        assert_eq!(file.references(), ["a"]);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line) in [
            ("RUN true\n", ":1:"),
            ("ARG A\nFROM $A\n", ":2:"),
            ("FROM ${A\n", ":1:"),
            ("FROM\n", ":1:"),
        ] {
            let error = Dockerfile::parse(
                text.to_owned(),
                Path::new("D"),
                &BTreeMap::new(),
                "linux/amd64",
            )
            .unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("D{line}")),
                "{error}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(FROM|ARG|COPY|RUN|#|<<E|\\$|\\{|\\}|:-|=| |\n|\r|\\\\|--from=|--mount=|a|ä|,|\u{feff}){0,40}") {
            if let Ok(file) = Dockerfile::parse(text, Path::new("D"), &BTreeMap::new(), "linux/amd64") {
                for image in &file.images {
                    proptest::prop_assert!(file.text.get(image.span.clone()).is_some());
                }
                let map = file.images.iter().map(|image| (image.reference.clone(), "x".to_owned())).collect();
                let _ = file.with_images(&map, true);
            }
        }
    }
}
