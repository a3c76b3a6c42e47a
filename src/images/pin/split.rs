//! Cuts a file into its YAML documents without parsing it, so that each can be parsed by itself.
//!
//! A line that begins with `---` and a line that begins with `...` end a document wherever they stand: no scalar may contain one.

use std::ops::Range;

/// A part of a file that can be parsed by itself: one document, with the comments and directives before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it is.
    pub(super) bytes: Range<usize>,
    /// Lines before it.
    pub(super) lines: usize,
}

/// All pieces of `text` in order; together they are the whole text but for a byte order mark.
pub(super) fn split(text: &str) -> Vec<Piece> {
    // The parser does not count the mark, and nothing is ever replaced in front of it.
    let mut start = if text.starts_with('\u{feff}') {
        '\u{feff}'.len_utf8()
    } else {
        0
    };
    let (mut lines, mut pieces) = (0, Vec::new());
    let mut cut = |end: usize, start: &mut usize| {
        if end > *start {
            pieces.push(Piece {
                bytes: *start..end,
                lines,
            });
            lines += line_breaks(text.get(*start..end).unwrap_or_default());
            *start = end;
        }
    };
    let mut searched = start;
    while let Some((at, kind)) = next_marker(text, searched) {
        searched = at + 3;
        match kind {
            Marker::Begin => {
                // What stands between the end of a document and this line belongs to the new one.
                if !is_prologue(text.get(start..at).unwrap_or_default()) {
                    cut(at, &mut start);
                }
            }
            Marker::End => {
                let line = text.get(at..).and_then(|rest| rest.find('\n'));
                cut(line.map_or(text.len(), |line| at + line + 1), &mut start);
            }
        }
    }
    cut(text.len(), &mut start);
    pieces
}

enum Marker {
    Begin,
    End,
}

/// The next `---` or `...` at the beginning of a line, from `from` on.
fn next_marker(text: &str, from: usize) -> Option<(usize, Marker)> {
    let bytes = text.as_bytes();
    let mut at = from;
    loop {
        let begins_line = at == 0
            || bytes.get(at.wrapping_sub(1)) == Some(&b'\n')
            || text.starts_with('\u{feff}') && at == '\u{feff}'.len_utf8();
        if begins_line {
            let ends = matches!(bytes.get(at + 3), None | Some(b' ' | b'\t' | b'\r' | b'\n'));
            match bytes.get(at..at + 3) {
                Some(b"---") if ends => return Some((at, Marker::Begin)),
                Some(b"...") if ends => return Some((at, Marker::End)),
                _ => {}
            }
        }
        at = at + text.get(at..).and_then(|rest| rest.find('\n'))? + 1;
    }
}

/// Nothing but empty lines, comments and directives?
fn is_prologue(text: &str) -> bool {
    text.lines().all(|line| {
        line.starts_with('%') || line.trim_start().starts_with('#') || line.trim().is_empty()
    })
}

/// Line breaks as YAML has them: LF, CR LF, and CR alone.
fn line_breaks(text: &str) -> usize {
    let bytes = text.as_bytes();
    let feeds = bytes.iter().filter(|byte| **byte == b'\n').count();
    let returns = bytes
        .iter()
        .enumerate()
        .filter(|(at, byte)| **byte == b'\r' && bytes.get(at + 1) != Some(&b'\n'));
    feeds + returns.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(&str, usize)> {
        let pieces = split(text);
        pieces
            .into_iter()
            .map(|piece| (&text[piece.bytes], piece.lines))
            .collect()
    }

    #[test]
    fn a_document_takes_its_comments_and_directives_along() {
        assert_eq!(parts("a: 1\n"), [("a: 1\n", 0)]);
        assert_eq!(
            parts("# c\n---\na\n--- # d\n---\nb\n"),
            [("# c\n---\na\n", 0), ("--- # d\n", 3), ("---\nb\n", 4)]
        );
        assert_eq!(
            parts("\u{feff}%YAML 1.2\n---\na\n...\n# x\n%YAML 1.2\n---\nb"),
            [
                ("%YAML 1.2\n---\na\n...\n", 0),
                ("# x\n%YAML 1.2\n---\nb", 4)
            ]
        );
        assert_eq!(
            parts("a\r\n---\r\nb\r\n...\r\n"),
            [("a\r\n", 0), ("---\r\nb\r\n...\r\n", 1)]
        );
    }

    #[test]
    fn what_only_looks_like_a_marker_is_text() {
        for text in [
            "----\na\n",
            "a: |\n  ---\n  ...\n",
            "a: ---\n",
            "---a\n",
            "",
        ] {
            assert!(parts(text).len() <= 1, "{text:?}");
        }
    }
}
