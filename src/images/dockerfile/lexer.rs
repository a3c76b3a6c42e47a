//! Instructions and words of a Dockerfile, each with its place in the file.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::ImageUse;

/// One instruction with its continuation lines joined.
pub(super) struct Instruction {
    pub(super) text: String,
    /// For every byte of `text`, where it stands in the file.
    offsets: Vec<usize>,
    pub(super) line: usize,
}

static HEREDOC: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"<<(-?)["']?([A-Za-z_][A-Za-z0-9_.]*)["']?"#).ok());

impl Instruction {
    pub(super) fn slice(&self, range: &Range<usize>) -> &str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    pub(super) fn image(&self, range: &Range<usize>, reference: String) -> ImageUse {
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
pub(super) fn directives(text: &str) -> (Option<ImageUse>, char) {
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
pub(super) fn instructions(text: &str, escape: char) -> Vec<Instruction> {
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
pub(super) fn words(text: &str) -> Vec<Range<usize>> {
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
