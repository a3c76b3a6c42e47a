//! What `RUN --mount=type=cache` keeps from build to build, which no builder's `--no-cache` empties, and a Dockerfile without it.
//!
//! In place of a cache comes an empty folder that lives as long as its RUN: anything may clear a cache at any time, so that a
//! build has to work with an empty one.

use std::collections::BTreeMap;
use std::ops::Range;

use super::lexer::{Instruction, directives, instructions, words};

/// One cache mount of one RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// Where it is mounted, as written.
    pub target: String,
    /// Which cache it is.
    id: String,
    /// Where its option stands in the text, in bytes.
    span: Range<usize>,
    /// The option for an empty folder instead, if there is one that does the same.
    empty: Option<String>,
}

impl CacheMount {
    /// Will [`without_caches`] leave it as it is?
    pub fn is_kept(&self) -> bool {
        self.empty.is_none()
    }
}

/// The cache mounts of a Dockerfile, in order.
pub fn cache_mounts(text: &str) -> Vec<CacheMount> {
    let (_, escape) = directives(text);
    let mut mounts: Vec<CacheMount> = Vec::new();
    for instruction in instructions(text, escape) {
        let words = words(&instruction.text);
        let Some((keyword, rest)) = words.split_first() else {
            continue;
        };
        if !instruction.slice(keyword).eq_ignore_ascii_case("RUN") {
            continue;
        }
        let flags = rest
            .iter()
            .take_while(|word| instruction.slice(word).starts_with("--"));
        mounts.extend(flags.filter_map(|flag| cache_mount(&instruction, flag)));
    }
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for mount in &mounts {
        *users.entry(mount.id.clone()).or_default() += 1;
    }
    // What one RUN leaves there may be what the next one looks for.
    for mount in &mut mounts {
        if users.get(&mount.id).is_some_and(|users| *users > 1) {
            mount.empty = None;
        }
    }
    mounts
}

/// The text with an empty folder in place of each cache for which there is one.
pub fn without_caches(text: &str, mounts: &[CacheMount]) -> String {
    let mut text = text.to_owned();
    for mount in mounts.iter().rev() {
        if let Some(empty) = &mount.empty {
            text.replace_range(mount.span.clone(), empty);
        }
    }
    text
}

fn cache_mount(instruction: &Instruction, flag: &Range<usize>) -> Option<CacheMount> {
    let options = instruction.slice(flag).strip_prefix("--mount=")?;
    let options: Vec<(String, &str)> = options
        .split(',')
        .map(|option| {
            let key = option.split('=').next().unwrap_or_default();
            (key.to_ascii_lowercase(), option)
        })
        .collect();
    let find = |names: &[&str]| {
        let mut found = options.iter();
        let (_, option) = found.find(|(key, _)| names.contains(&key.as_str()))?;
        Some(option.split_once('=').map_or("", |(_, value)| value))
    };
    if find(&["type"]) != Some("cache") {
        return None;
    }
    let target = find(&["target", "dst", "destination"]).unwrap_or_default();
    Some(CacheMount {
        target: target.to_owned(),
        id: find(&["id"]).unwrap_or(target).to_owned(),
        span: instruction.span(flag),
        empty: empty(&options),
    })
}

/// A mount of nothing that can be written to, and whose content nobody gets. Its owner and mode are always root's and 0755, and a
/// list with quotes is not taken apart here.
fn empty(options: &[(String, &str)]) -> Option<String> {
    let has = |names: &[&str]| options.iter().any(|(key, _)| names.contains(&key.as_str()));
    let quoted = options.iter().any(|(_, option)| option.contains('"'));
    if quoted || has(&["uid", "gid", "mode"]) {
        return None;
    }
    let mut list = vec!["type=bind"];
    if !has(&["from"]) {
        list.push("from=scratch");
    }
    if !has(&["ro", "readonly", "rw", "readwrite"]) {
        list.push("rw");
    }
    let kept = options
        .iter()
        .filter(|(key, _)| !["type", "id", "sharing"].contains(&key.as_str()));
    list.extend(kept.map(|(_, option)| *option));
    Some(format!("--mount={}", list.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of the Dockerfile, and the targets of the caches that stay.
    fn emptied(text: &str) -> (String, Vec<String>) {
        let mounts = cache_mounts(text);
        let kept = mounts.iter().filter(|mount| mount.is_kept());
        let kept = kept.map(|mount| mount.target.clone()).collect();
        (without_caches(text, &mounts), kept)
    }

    #[test]
    fn a_cache_becomes_an_empty_folder_and_nothing_else_changes() {
        let text = "FROM a\n# --mount=type=cache,target=/no\n\
            RUN --mount=type=cache,id=x,target=/a,sharing=locked \\\n    --mount=type=secret,id=ca,target=/ca \\\n    \
            --mount=TYPE=cache,dst=/b,ro --network=none echo --mount=type=cache,target=/no\n\
            run --mount=type=cache,target=/c,from=z,source=/s true\nCOPY --from=z a b\n";
        let (built, kept) = emptied(text);
        let expected = "FROM a\n# --mount=type=cache,target=/no\n\
            RUN --mount=type=bind,from=scratch,rw,target=/a \\\n    --mount=type=secret,id=ca,target=/ca \\\n    \
            --mount=type=bind,from=scratch,dst=/b,ro --network=none echo --mount=type=cache,target=/no\n\
            run --mount=type=bind,rw,target=/c,from=z,source=/s true\nCOPY --from=z a b\n";
        assert_eq!(built, expected);
        assert_eq!(kept, Vec::<String>::new());
    }

    #[test]
    fn what_an_empty_folder_cannot_stand_for_stays_and_is_told() {
        let text = "FROM a\nRUN --mount=type=cache,target=/owned,uid=1000 a\n\
            RUN --mount=type=cache,id=one,target=/first a\nRUN --mount=type=cache,id=one,target=/second a\n\
            RUN --mount=type=cache,\"target=/quoted\" a\n";
        let (built, kept) = emptied(text);
        assert_eq!(built, text);
        assert_eq!(kept, ["/owned", "/first", "/second", ""]);
    }

    #[test]
    fn the_body_of_a_here_document_is_not_read() {
        let text = "FROM a\nRUN <<END\nRUN --mount=type=cache,target=/a true\nEND\n";
        assert_eq!(emptied(text), (text.to_owned(), Vec::new()));
    }
}
