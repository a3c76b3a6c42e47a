//! Instructions and words of a Dockerfile, each with its place in the file.

use std::ops::Range;

use super::ImageUse;

/// One instruction with its continuation lines joined.
pub(super) struct Instruction {
    pub(super) text: String,
    /// For every byte of `text`, where it stands in the file.
    offsets: Vec<usize>,
    pub(super) line: usize,
}

impl Instruction {
    pub(super) fn slice(&self, range: &Range<usize>) -> &str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    /// Where a part of the instruction stands in the file.
    pub(super) fn span(&self, range: &Range<usize>) -> Range<usize> {
        let at = |index: usize| self.offsets.get(index).copied().unwrap_or_default();
        // The end is one past the last byte, which a continuation line may separate from the next one.
        at(range.start)..at(range.end.saturating_sub(1)) + 1
    }

    pub(super) fn image(&self, range: &Range<usize>, reference: String) -> ImageUse {
        ImageUse {
            reference,
            span: self.span(range),
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

/// Whether tabs are taken off, and the last line, of every here-document that an instruction begins: what BuildKit takes for one,
/// which is a whole word of the shell and so neither a shift nor something in quotes.
fn heredoc_delimiters(instruction: &str) -> Vec<(bool, String)> {
    let mut words = instruction.split_whitespace();
    let mut keyword = words.next().unwrap_or_default();
    if keyword.eq_ignore_ascii_case("ONBUILD") {
        keyword = words.next().unwrap_or_default();
    }
    let takes_heredocs = ["RUN", "COPY", "ADD"]
        .iter()
        .any(|known| keyword.eq_ignore_ascii_case(known));
    if !takes_heredocs {
        return Vec::new();
    }
    let words = shell_words(instruction).unwrap_or_default();
    words.iter().filter_map(|word| heredoc(word)).collect()
}

fn heredoc(word: &str) -> Option<(bool, String)> {
    let rest = word
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .strip_prefix("<<")?;
    let (dash, name) = match rest.strip_prefix('-') {
        Some(name) => (true, name),
        None => (false, rest),
    };
    let is_name = !name.is_empty() && !name.contains('<');
    is_name.then(|| (dash, without_quotes(name)))
}

/// What a character of a command is to a shell.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Bare,
    Quoted,
    /// A quote or an escape, which is not part of the word's content.
    Mark,
}

/// The characters of a command with their roles; nothing if a quote is never closed.
fn roles(text: &str) -> Option<Vec<(char, Role)>> {
    let mut open = None;
    let mut result = Vec::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let role = match (open, character) {
            (None | Some('"'), '\\') => {
                result.push((character, Role::Mark));
                result.extend(characters.next().map(|next| (next, Role::Quoted)));
                continue;
            }
            (None, '\'' | '"') => {
                open = Some(character);
                Role::Mark
            }
            (Some(quote), _) if quote == character => {
                open = None;
                Role::Mark
            }
            (None, _) => Role::Bare,
            (Some(_), _) => Role::Quoted,
        };
        result.push((character, role));
    }
    open.is_none().then_some(result)
}

/// The words that a shell sees, quotes included.
fn shell_words(text: &str) -> Option<Vec<String>> {
    let mut words = vec![String::new()];
    for (character, role) in roles(text)? {
        if role == Role::Bare && character.is_whitespace() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(character);
        }
    }
    Some(words)
}

fn without_quotes(word: &str) -> String {
    let roles = roles(word).unwrap_or_default();
    let content = roles.iter().filter(|(_, role)| *role != Role::Mark);
    content.map(|(character, _)| character).collect()
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
