//! Go's modules in executables: what `go version -m` shows, in the section `.go.buildinfo` since Go 1.18.

use super::golang::module;
use super::{Origin, Package, linkable, purl};

/// The section.
pub const SECTION: &str = ".go.buildinfo";

/// How it starts.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Where it says what follows.
const FLAGS: usize = 15;
/// The flag of texts that follow at once. Before Go 1.18, addresses of texts did.
const INLINE: u8 = 2;
/// Where the texts start.
const TEXTS: usize = 32;
/// Bytes before and after the list of modules that make it easy to find without a section.
const MARK: usize = 16;
/// The version of what was built from a folder, without a tag.
const DEVELOPMENT: &str = "(devel)";

/// The modules in the executable at `place` and Go's own packages, or what is wrong with its section.
pub fn parse(section: &[u8], place: &str) -> Result<Vec<Package>, String> {
    if !section.starts_with(MAGIC) {
        return Err(format!("its section {SECTION} is none of Go's"));
    }
    let flags = section.get(FLAGS).copied().unwrap_or_default();
    if flags & INLINE == 0 {
        return Err("it was built by a Go before 1.18, whose lists are not read".to_owned());
    }
    let cut_off = || format!("its section {SECTION} is cut off");
    let rest = section.get(TEXTS..).ok_or_else(cut_off)?;
    let (version, rest) = text(rest).ok_or_else(cut_off)?;
    let (modules, _) = text(rest).ok_or_else(cut_off)?;
    let modules = match modules.len().checked_sub(MARK) {
        Some(end) => modules.get(MARK..end).unwrap_or_default(),
        None => modules,
    };
    let found = (Origin::Linked, place);
    let version = String::from_utf8_lossy(version);
    let version = version.split(' ').next().unwrap_or_default();
    let version = version.strip_prefix("go").unwrap_or(version);
    let modules = String::from_utf8_lossy(modules);
    let named = modules.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        matches!(fields.next()?, "mod" | "dep" | "=>")
            .then_some((fields.next()?, fields.next().unwrap_or_default()))
    });
    linkable(named.chain([("stdlib", version)]))
        .map_err(|reason| format!("its section {SECTION} lists {reason}"))?;
    let own = purl("golang", "", "stdlib", version, &[]);
    let mut packages = vec![Package::new("stdlib", version, own, found)];
    for line in modules.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let version = |text: &str| if text == DEVELOPMENT { "" } else { text }.to_owned();
        match fields.as_slice() {
            ["mod" | "dep", name, released, ..] => {
                packages.push(module(name, &version(released), found));
            }
            // The one before was replaced by this one, or by a folder of the same repository.
            ["=>", name, released, ..] => {
                packages.pop();
                if *released != DEVELOPMENT && !released.is_empty() {
                    packages.push(module(name, released, found));
                }
            }
            _ => {}
        }
    }
    Ok(packages)
}

/// A text after its length, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length: u64 = 0;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        length |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let length = usize::try_from(length).ok()?;
            return bytes.get(index + 1..)?.split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{LENGTH_LIMIT, LINKED_LIMIT};
    use super::*;

    fn section(flags: u8, texts: &[&str]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([8, flags]);
        bytes.resize(TEXTS, 0);
        for text in texts {
            let mut length = text.len();
            while length >= 0x80 {
                bytes.push((length & 0x7f) as u8 | 0x80);
                length >>= 7;
            }
            bytes.push(length as u8);
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn modules_replacements_and_gos_own_packages_are_found() {
        let mark = "0123456789abcdef";
        let modules = format!(
            "{mark}path\texample.org/app\nmod\texample.org/app\t(devel)\t\n\
             dep\tgolang.org/x/net\tv0.20.0\th1:x=\ndep\texample.org/own\tv0.0.0\n=>\t../own\t(devel)\t\n\
             dep\texample.org/old\tv1.0.0\n=>\texample.org/new\tv1.1.0\th1:x=\nbuild\t-compiler=gc\n{mark}"
        );
        let bytes = section(2, &["go1.26.1 X:something", &modules]);
        let found = parse(&bytes, "usr/bin/app").unwrap();
        let purls: Vec<&str> = found.iter().map(|package| package.purl.as_str()).collect();
        assert_eq!(
            purls,
            [
                "pkg:golang/stdlib@1.26.1",
                "pkg:golang/example.org/app",
                "pkg:golang/golang.org/x/net@v0.20.0",
                "pkg:golang/example.org/new@v1.1.0",
            ]
        );
        assert_eq!(found[1].version, None);
        // Built without modules.
        assert_eq!(parse(&section(2, &["go1.26.1", ""]), "x").unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_says_why() {
        let whole = section(2, &["go1.26.1", "y"]);
        let mark = "x".repeat(MARK);
        let long = "x".repeat(LENGTH_LIMIT + 1);
        let listing =
            |lines: String| section(2, &["go1.26.1", &[mark.as_str(), &lines, &mark].concat()]);
        let replaced = "dep\ta\tv1\n=>\tb\tv1\n";
        for (bytes, word) in [
            (
                listing("dep\ta\tv1\n".repeat(LINKED_LIMIT)),
                "more than 20000 packages",
            ),
            (
                listing(replaced.repeat(LINKED_LIMIT / 2)),
                "more than 20000 packages",
            ),
            (listing(format!("dep\t{long}\tv1\n")), "more than 512 bytes"),
            (listing(format!("dep\ta\t{long}\n")), "more than 512 bytes"),
            (section(2, &[&long, ""]), "more than 512 bytes"),
            (b"nonsense".to_vec(), "none of Go's"),
            (section(0, &[]), "before 1.18"),
            (whole[..TEXTS].to_vec(), "cut off"),
            (whole[..whole.len() - 1].to_vec(), "cut off"),
            ([&whole[..TEXTS], &[0xff; 20]].concat(), "cut off"),
        ] {
            let error = parse(&bytes, "x").unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
