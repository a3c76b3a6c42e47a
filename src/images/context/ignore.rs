//! `.dockerignore` as Docker reads it: anchored at the root, last match wins, `!` brings back.
//!
//! The rules are those of moby/patternmatcher, which are not git's: `foo` matches only `/foo`, `**/foo` any `foo`, a matched
//! folder takes everything below it along until a later `!` says otherwise.

use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::Chars;

use regex::Regex;

use super::ContextError;

/// The patterns of one ignore file.
#[derive(Debug, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    /// Cleaned, without `!`.
    text: String,
    includes: bool,
    matches: Match,
}

#[derive(Debug)]
enum Match {
    Exact,
    /// `foo/**`
    Prefix(String),
    /// `**/foo`
    Suffix(String),
    Regex(Regex),
}

/// Which patterns matched the folder that an entry is in.
#[derive(Debug, Default, Clone)]
pub struct ParentMatches(Vec<bool>);

impl Matcher {
    /// The ignore file that Docker would use: `<dockerfile>.dockerignore` wins over `<root>/.dockerignore`.
    pub fn for_build(root: &Path, dockerfile: &Path) -> Result<Self, ContextError> {
        let mut beside = dockerfile.as_os_str().to_owned();
        beside.push(".dockerignore");
        for file in [PathBuf::from(beside), root.join(".dockerignore")] {
            match std::fs::read(&file) {
                Ok(bytes) => return Self::parse(&String::from_utf8_lossy(&bytes), &file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(ContextError::Read { path: file, source }),
            }
        }
        Ok(Self::default())
    }

    /// Reads the text of an ignore file; `file` is for messages.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ContextError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut patterns = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let invalid = |reason: &str| ContextError::Pattern {
                file: file.to_owned(),
                line: index + 1,
                pattern: line.trim().to_owned(),
                reason: reason.to_owned(),
            };
            let Some((includes, text)) = read_line(line) else {
                return Err(invalid("nothing follows the `!`"));
            };
            let matches = check(&text)
                .and_then(|()| compile(&text))
                .map_err(|reason| invalid(&reason))?;
            patterns.push(Pattern {
                text,
                includes,
                matches,
            });
        }
        Ok(Self { patterns })
    }

    /// Is `path` left out, and what do its children inherit?
    pub fn excludes(&self, path: &str, parent: &ParentMatches) -> (bool, ParentMatches) {
        let mut excluded = false;
        let mut matches = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.0.get(index).copied().unwrap_or_default();
            // A pattern that could not change the outcome is not evaluated, and so not inherited either: as in Docker.
            let matched = inherited || (pattern.includes == excluded && pattern.matches(path));
            if let Some(slot) = matches.get_mut(index) {
                *slot = matched;
            }
            if matched {
                excluded = !pattern.includes;
            }
        }
        (excluded, ParentMatches(matches))
    }

    /// Can a `!` pattern bring back something below the excluded folder `path`?
    pub fn may_include_below(&self, path: &str) -> bool {
        self.patterns
            .iter()
            .filter(|pattern| pattern.includes)
            .any(|pattern| {
                let literal: Vec<&str> = pattern
                    .text
                    .split('/')
                    .take_while(|part| !part.contains(['*', '?', '[', '\\']))
                    .collect();
                let whole = literal.len() == pattern.text.split('/').count();
                let mut folder = path.split('/');
                let agrees = literal
                    .iter()
                    .zip(folder.by_ref())
                    .all(|(left, right)| *left == right);
                // A pattern without wildcards that is shorter than the folder names an ancestor, which counts for all below it.
                agrees
                    && (!whole
                        || literal.len() > path.split('/').count()
                        || path.starts_with(&pattern.text))
            })
    }
}

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        match &self.matches {
            Match::Exact => path == self.text,
            Match::Prefix(prefix) => path.starts_with(prefix),
            Match::Suffix(suffix) => {
                path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path)
            }
            Match::Regex(regex) => regex.is_match(path),
        }
    }
}

/// Go's `filepath.Clean`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// A line as Docker's reader and then its matcher take it: what comes out of the first may begin with a `!` or a blank that the
/// second understands anew. Nothing, if nothing is left to bring back.
fn read_line(line: &str) -> Option<(bool, String)> {
    let line = line.trim();
    let (inverted, rest) = match line.strip_prefix('!') {
        Some(rest) => (true, rest.trim()),
        None => (false, line),
    };
    let cleaned = if rest.is_empty() {
        String::new()
    } else {
        clean(rest)
    };
    let relative = match cleaned.strip_prefix('/') {
        Some(relative) if !relative.is_empty() => relative,
        _ => &cleaned,
    };
    let again = clean(format!("{}{relative}", if inverted { "!" } else { "" }).trim());
    match again.strip_prefix('!') {
        Some("") => None,
        Some(text) => Some((true, text.to_owned())),
        None => Some((false, again)),
    }
}

/// Refuses what Go's `filepath.Match` calls a bad pattern, because Docker asks it first.
fn check(pattern: &str) -> Result<(), String> {
    let mut rest = pattern.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\\' => {
                rest.next().ok_or("it ends in a backslash")?;
            }
            '[' => {
                rest.next_if_eq(&'^');
                let mut ranges = 0;
                while ranges == 0 || rest.next_if_eq(&']').is_none() {
                    check_bound(&mut rest)?;
                    if rest.next_if_eq(&'-').is_some() {
                        check_bound(&mut rest)?;
                    }
                    ranges += 1;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// One end of a range in brackets, and something after it.
fn check_bound(rest: &mut Peekable<Chars<'_>>) -> Result<(), String> {
    let unfinished = || "a `[` is not closed, or a range in it is not complete".to_owned();
    match rest.next().ok_or_else(unfinished)? {
        '-' | ']' => return Err(unfinished()),
        '\\' => {
            rest.next().ok_or_else(unfinished)?;
        }
        _ => {}
    }
    rest.peek().map(|_| ()).ok_or_else(unfinished)
}

/// What Docker's `Pattern.compile` makes of a pattern.
fn compile(pattern: &str) -> Result<Match, String> {
    // In Go's syntax, character by character as Docker does it, which takes no notice of brackets.
    let mut regex = String::from("^");
    let mut kind = 'e';
    let mut characters = pattern.chars().peekable();
    let mut first = true;
    while let Some(character) = characters.next() {
        match character {
            '*' if characters.next_if_eq(&'*').is_some() => {
                characters.next_if_eq(&'/');
                if characters.peek().is_some() {
                    regex.push_str("(.*/)?");
                    kind = 'r';
                } else if kind == 'e' {
                    kind = 'p';
                } else {
                    regex.push_str(".*");
                    kind = 'r';
                }
                if first {
                    kind = 's';
                }
            }
            '*' => {
                regex.push_str("[^/]*");
                kind = 'r';
            }
            '?' => {
                regex.push_str("[^/]");
                kind = 'r';
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                regex.push('\\');
                regex.push(character);
            }
            '\\' => {
                regex.push('\\');
                regex.push(characters.next().ok_or("it ends in a backslash")?);
                kind = 'r';
            }
            '[' | ']' => {
                regex.push(character);
                kind = 'r';
            }
            other => regex.push(other),
        }
        first = false;
    }
    regex.push('$');
    Ok(match kind {
        'e' => Match::Exact,
        'p' => Match::Prefix(pattern.strip_suffix("**").unwrap_or(pattern).to_owned()),
        's' => Match::Suffix(pattern.strip_prefix("**").unwrap_or(pattern).to_owned()),
        _ => {
            let regex = translate(&regex)?;
            Match::Regex(Regex::new(&regex).map_err(|error| error.to_string())?)
        }
    })
}

/// From Go's regular expressions to ours, which differ in brackets and after backslashes.
fn translate(go: &str) -> Result<String, String> {
    let mut ours = String::new();
    let mut rest = go.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\\' => ours.push_str(&escaped(&mut rest)?),
            '[' => {
                ours.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    ours.push('^');
                }
                let mut first = true;
                while first || rest.next_if_eq(&']').is_none() {
                    if rest.next_if_eq(&'[').is_some() {
                        if rest.peek() == Some(&':') {
                            return Err("`[:` is not supported".to_owned());
                        }
                        ours.push_str(&bound('[', &mut rest)?);
                    } else {
                        let next = rest.next().ok_or("a `[` is not closed")?;
                        ours.push_str(&bound(next, &mut rest)?);
                    }
                    first = false;
                }
                ours.push(']');
            }
            other => ours.push(other),
        }
    }
    // Go's `.` and `[^/]` know no lines either, but its `$` is the end of everything, as ours is.
    Ok(ours)
}

/// A character in brackets that was read already, and the range that it begins.
fn bound(start: char, rest: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let literal = |character, rest: &mut Peekable<Chars<'_>>| match character {
        '\\' => escaped(rest),
        other => Ok(regex::escape(&other.to_string())),
    };
    let mut text = literal(start, rest)?;
    let mut ahead = rest.clone();
    let is_range = ahead.next() == Some('-') && ahead.peek().is_some_and(|next| *next != ']');
    if is_range {
        rest.next();
        let end = rest.next().ok_or("a `[` is not closed")?;
        text.push('-');
        text.push_str(&literal(end, rest)?);
    } else if start == '-' {
        text = "\\-".to_owned();
    }
    Ok(text)
}

/// What stands after a backslash in a regular expression of Go's.
fn escaped(rest: &mut Peekable<Chars<'_>>) -> Result<String, String> {
    let character = rest.next().ok_or("it ends in a backslash")?;
    Ok(match character {
        'd' => "[0-9]".to_owned(),
        'D' => "[^0-9]".to_owned(),
        's' => r"[\t\n\f\r ]".to_owned(),
        'S' => r"[^\t\n\f\r ]".to_owned(),
        'w' => "[0-9A-Za-z_]".to_owned(),
        'W' => "[^0-9A-Za-z_]".to_owned(),
        'b' => r"(?-u:\b)".to_owned(),
        'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'A' | 'z' => format!("\\{character}"),
        _ if character.is_ascii() && !character.is_ascii_alphanumeric() => {
            regex::escape(&character.to_string())
        }
        _ => {
            return Err(format!(
                "a backslash before `{character}` means nothing: separate folders by `/`"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(rules: &str, path: &str) -> bool {
        let matcher = Matcher::parse(rules, Path::new(".dockerignore")).unwrap();
        let mut parent = ParentMatches::default();
        let mut result = false;
        let parts: Vec<&str> = path.split('/').collect();
        for count in 1..=parts.len() {
            (result, parent) = matcher.excludes(&parts[..count].join("/"), &parent);
        }
        result
    }

    #[test]
    fn patterns_are_anchored_at_the_root() {
        assert!(excluded("foo", "foo"));
        assert!(!excluded("foo", "a/foo"));
        assert!(excluded("**/foo", "a/b/foo"));
        assert!(excluded("**/foo", "foo"));
        assert!(excluded("/foo", "foo"));
        assert!(excluded("./foo/", "foo/bar"));
    }

    #[test]
    fn the_last_match_wins() {
        assert!(!excluded("*\n!keep", "keep"));
        assert!(!excluded("*\n!keep", "keep/below"));
        assert!(excluded("*\n!keep\nkeep/secret", "keep/secret"));
        assert!(excluded(
            "*.md\n!README*.md\nREADME-secret.md",
            "README-secret.md"
        ));
    }

    #[test]
    fn stars_stop_at_slashes_and_two_do_not() {
        assert!(excluded("*/temp*", "a/temporary.txt"));
        assert!(!excluded("*/temp*", "a/b/temporary.txt"));
        assert!(excluded("**/*.rs", "a/b/c.rs"));
        assert!(excluded("a/**", "a/b/c"));
        assert!(!excluded("a/**", "a"));
        assert!(excluded("file?", "file1"));
        assert!(excluded("[ab].txt", "b.txt"));
        assert!(!excluded("[^ab].txt", "b.txt"));
        assert!(!excluded("a.b", "aXb"));
    }

    #[test]
    fn comments_blank_lines_and_a_bom_are_nothing() {
        assert!(excluded("\u{feff}# comment\r\n\r\n  foo  \r\n", "foo"));
        assert!(!excluded("# foo", "# foo"));
    }

    #[test]
    fn a_bad_pattern_is_an_error_with_its_line() {
        let error = Matcher::parse("good\n[unclosed", Path::new(".dockerignore")).unwrap_err();
        assert!(error.to_string().starts_with(".dockerignore:2:"), "{error}");
        assert!(Matcher::parse("!", Path::new("x")).is_err());
    }

    #[test]
    fn a_folder_is_entered_only_where_something_may_come_back() {
        let matcher = Matcher::parse("*\n!src/deep/file\n!docs", Path::new("x")).unwrap();
        assert!(matcher.may_include_below("src"));
        assert!(matcher.may_include_below("src/deep"));
        assert!(!matcher.may_include_below("target"));
        assert!(!matcher.may_include_below("src/other"));
        assert!(matcher.may_include_below("docs"));
        let matcher = Matcher::parse("*\n!**/keep", Path::new("x")).unwrap();
        assert!(matcher.may_include_below("target/any"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(rules in "[a-c*?!/\\[\\]\\\\.# \n-]{0,40}", path in "[a-c./]{1,12}") {
            if let Ok(matcher) = Matcher::parse(&rules, Path::new("x")) {
                let _ = matcher.excludes(&path, &ParentMatches::default());
                let _ = matcher.may_include_below(&path);
            }
        }
    }
}
