//! Which images a Dockerfile starts from, and the same Dockerfile with them replaced.
//!
//! Reads `# syntax=`, `# escape=`, `ARG`, `FROM`, `COPY|ADD --from=` and `RUN --mount=from=`; everything else belongs to the
//! builder. Replacing is a splice of bytes: a build gets exactly the bases that its name was made from, whatever a tag says
//! by then, and it works with every engine that can build at all.

pub mod caches;
mod lexer;
mod scope;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use lexer::{directives, instructions, words};
use scope::Scope;

use crate::images::reference;

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
    /// What `ARG` declares, in any stage or before the first. `ONBUILD ARG` is none: it changes other images than this one, and a
    /// value for it would rename this one for nothing.
    pub arguments: BTreeSet<String>,
}

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

    /// [`Dockerfile::read`] for the first of `platforms`, and the distinct references of all of them, in order of first use.
    pub fn read_all(
        path: &Path,
        args: &BTreeMap<String, String>,
        platforms: &[String],
    ) -> Result<(Self, Vec<String>), DockerfileError> {
        let first = platforms.first().map_or("", String::as_str);
        let dockerfile = Self::read(path, args, first)?;
        let mut references: Vec<String> = Vec::new();
        for platform in platforms {
            let there = Self::parse(dockerfile.text.clone(), path, args, platform)?;
            for reference in there.references() {
                if !references.iter().any(|known| known == reference) {
                    references.push(reference.to_owned());
                }
            }
        }
        Ok((dockerfile, references))
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
        let mut arguments = BTreeSet::new();
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
                "ARG" => {
                    for word in words.iter().skip(1).map(|word| instruction.slice(word)) {
                        arguments.extend(unquote(word).split('=').next().map(str::to_owned));
                        if stage_count == 0 {
                            scope.declare(word).map_err(&failed)?;
                        }
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
                        is_image(&reference).map_err(&failed)?;
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
                        let name = unquote(instruction.slice(&range));
                        let stage = stages.contains(&name.to_ascii_lowercase())
                            || name.parse::<usize>().is_ok();
                        if stage || name.is_empty() || name == "scratch" {
                            continue;
                        }
                        let reference = scope.expand(name).map_err(&failed)?;
                        is_image(&reference).map_err(&failed)?;
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
            arguments,
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

/// The builder would refuse anything else, and quotes in a name would change what the rest of the line means.
fn is_image(reference: &str) -> Result<(), String> {
    match reference::parse(reference) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "`{reference}` is not the name of an image: {error}"
        )),
    }
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
    fn what_merely_contains_two_angle_brackets_is_no_here_document() {
        for line in [
            "RUN x=$((1<<N))",
            "RUN read a <<<foo",
            "RUN echo \"a <<EOF\"",
            "RUN echo 'a\"' '<<EOF'",
            "RUN echo \\<<EOF",
            "RUN cat<<EOF",
            "RUN echo 1 << 2",
            "RUN echo \"unfinished <<EOF",
            "ENV A <<EOF",
        ] {
            let text = format!("FROM a\n{line}\nCOPY --from=b / /\n");
            assert_eq!(parse(&text).references(), ["a", "b"], "{line}");
        }
    }

    #[test]
    fn every_way_to_begin_a_here_document() {
        for (word, end) in [
            ("<<EOF", "EOF"),
            ("3<<EOF", "EOF"),
            ("<<-E-O.F", "\tE-O.F"),
            ("<<'E F'", "E F"),
            ("<<\"E\"OF", "EOF"),
            ("<<E\\OF", "EOF"),
        ] {
            for keyword in ["RUN cat", "copy", "ADD x", "ONBUILD RUN"] {
                let text = format!("FROM a\n{keyword} {word} /\nFROM b\n{end}\nFROM c\n");
                assert_eq!(parse(&text).references(), ["a", "c"], "{text}");
            }
        }
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
    fn a_quoted_flag_names_what_is_in_the_quotes() {
        let file = parse("FROM a\nCOPY --from=\"b:1\" / /\n");
        assert_eq!(file.references(), ["a", "b:1"]);
        let map = BTreeMap::from([("b:1".to_owned(), "c".to_owned())]);
        assert_eq!(file.with_images(&map, false), "FROM a\nCOPY --from=c / /\n");
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
            ("FROM Not an-image\n", ":1:"),
            ("FROM a\nCOPY --from=b\"c / /\n", ":2:"),
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
