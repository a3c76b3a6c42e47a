//! `.dockerignore`: any text is a set of patterns or an error, and a path below a folder that is left out whole stays out.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use orch::images::context::ignore::{Matcher, ParentMatches};

fuzz_target!(|input: (&str, Vec<&str>)| {
    let (text, parts) = input;
    let Ok(matcher) = Matcher::parse(text, Path::new(".dockerignore")) else {
        return;
    };
    let mut path = String::new();
    let mut parent = ParentMatches::default();
    let mut pruned = false;
    for part in parts
        .iter()
        .filter(|part| !part.is_empty() && !part.contains('/'))
        .take(8)
    {
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(part);
        let (excluded, matches) = matcher.excludes(&path, &parent);
        assert!(
            !pruned || excluded,
            "{path:?} comes back below a folder that may_include_below gave up: {text:?}"
        );
        pruned |= excluded && !matcher.may_include_below(&path);
        parent = matches;
    }
});
