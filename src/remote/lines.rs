//! Bytes into lines, with a limit to a line's length.

/// Said at the end of a line that was cut.
const CUT: &str = " [...]";

#[derive(Debug)]
pub(super) struct Lines {
    line: Vec<u8>,
    limit: usize,
    /// The rest of a line that is too long is passed over.
    cut: bool,
}

impl Lines {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            limit,
            cut: false,
        }
    }

    pub(super) fn push(&mut self, mut data: &[u8], mut on_line: impl FnMut(&str)) {
        while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = data.split_at(end);
            self.take(head);
            self.give(&mut on_line);
            data = rest.get(1..).unwrap_or_default();
        }
        self.take(data);
    }

    /// The last line, if nothing ended it.
    pub(super) fn finish(&mut self, mut on_line: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.give(&mut on_line);
        }
    }

    fn take(&mut self, data: &[u8]) {
        let room = self.limit.saturating_sub(self.line.len()).min(data.len());
        let (head, rest) = data.split_at(room);
        self.line.extend_from_slice(head);
        self.cut |= !rest.is_empty();
    }

    fn give(&mut self, on_line: &mut impl FnMut(&str)) {
        // Not every program writes UTF-8.
        let text = String::from_utf8_lossy(&self.line);
        let text = text.trim_end_matches('\r');
        if self.cut {
            on_line(&format!("{text}{CUT}"));
        } else {
            on_line(text);
        }
        self.line.clear();
        self.cut = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(pieces: &[&[u8]], limit: usize) -> Vec<String> {
        let (mut lines, mut given) = (Lines::new(limit), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| given.push(line.to_owned()));
        }
        lines.finish(|line| given.push(line.to_owned()));
        given
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        assert_eq!(
            lines(&[b"one\ntw", b"o\r\n\nend"], 100),
            ["one", "two", "", "end"]
        );
        assert_eq!(lines(&[b"one\n"], 100), ["one"]);
        assert_eq!(lines(&[b"\xff\n"], 100), ["\u{fffd}"]);
    }

    #[test]
    fn a_long_line_is_cut_once() {
        assert_eq!(
            lines(&[b"abc", b"def\nghi\n", b"jklm"], 3),
            ["abc [...]", "ghi", "jkl [...]"]
        );
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in "[a\n]{0,60}", at in 0usize..60) {
            let bytes = text.as_bytes();
            let (head, rest) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(lines(&[head, rest], 5), lines(&[bytes], 5));
        }
    }
}
