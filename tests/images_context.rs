//! What orch hashes is what Docker sends: every context is also built by plain `docker build`, and the listings are compared.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use orch::images::context::stage::Stage;
use orch::images::context::{Context, Kind};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};

/// Path -> what is there, in words that both sides can say.
type Listing = BTreeMap<String, String>;

fn file(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A folder with something for every pattern below.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    file(root, "Dockerfile", "FROM scratch\nCOPY . /\n");
    for path in [
        "README.md",
        "README-secret.md",
        "notes.md",
        "src/main.rs",
        "src/lib.rs",
        "src/deep/er/keep.txt",
        "src/deep/er/drop.tmp",
        "target/debug/app",
        "target/release/app",
        "target/keep/me",
        "docs/a.md",
        "docs/b/c.md",
        "a/b/foo",
        "a/foo",
        "foo",
        "temp1/x",
        "ab/temp2/y",
        "with space/ü.txt",
        "[brackets]",
        "node_modules/pkg/index.js",
        "web/node_modules/pkg/index.js",
        ".hidden/file",
        ".env",
        "!important",
        "#hash",
        "-dash",
        "(paren)|{brace}",
        "$dollar",
        "^caret",
        "+plus",
        "a.b",
        "aXb",
    ] {
        file(root, path, &format!("content of {path}\n"));
    }
    fs::create_dir_all(root.join("empty/inner")).unwrap();
    fs::set_permissions(root.join("src/main.rs"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("main.rs", root.join("src/link")).unwrap();
    symlink("/nowhere", root.join("dangling")).unwrap();
    symlink("docs", root.join("link-to-folder")).unwrap();
    folder
}

/// What `docker build` puts into an image by `COPY . /`, or what it says instead.
fn docker(context: &Path, dockerfile: Option<&Path>) -> Result<Listing, String> {
    let work = tempfile::tempdir().unwrap();
    let mut command = Command::new("docker");
    command
        .args(["buildx", "build", "--provenance=false", "--output"])
        .arg(format!("type=local,dest={}", work.path().display()));
    if let Some(file) = dockerfile {
        command.arg("--file").arg(file);
    }
    let output = command.arg(context).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(list(work.path()))
}

fn list(root: &Path) -> Listing {
    let entries = walkdir::WalkDir::new(root).min_depth(1).into_iter();
    let entries = entries.map(|entry| {
        let entry = entry.unwrap();
        let kind = entry.file_type();
        let words = if kind.is_dir() {
            "folder".to_owned()
        } else if kind.is_symlink() {
            format!("link {}", fs::read_link(entry.path()).unwrap().display())
        } else {
            let executable = entry.metadata().unwrap().permissions().mode() & 0o111 != 0;
            let content = fs::read_to_string(entry.path()).unwrap();
            format!("file {executable} {content}")
        };
        let path = entry.path().strip_prefix(root).unwrap();
        (path.to_str().unwrap().to_owned(), words)
    });
    entries.collect()
}

/// What orch hashes, or what it says instead.
fn orch(context: &Path, dockerfile: Option<&Path>) -> Result<Listing, String> {
    let beside = context.join("Dockerfile");
    let scanned = Context::scan(context, dockerfile.unwrap_or(&beside));
    let scanned = scanned.map_err(|error| error.to_string())?;
    let entries = scanned.entries.iter().map(|entry| {
        let words = match &entry.kind {
            Kind::Directory => "folder".to_owned(),
            Kind::Symlink { target } => format!("link {target}"),
            Kind::File { executable, .. } => {
                let content = fs::read_to_string(context.join(&entry.path)).unwrap();
                format!("file {executable} {content}")
            }
        };
        (entry.path.clone(), words)
    });
    Ok(entries.collect())
}

/// Where the two differ; both refusing is agreement.
fn difference(context: &Path, dockerfile: Option<&Path>) -> Option<String> {
    match (orch(context, dockerfile), docker(context, dockerfile)) {
        (Ok(ours), Ok(theirs)) if ours == theirs => None,
        (Err(_), Err(_)) => None,
        (Ok(ours), Ok(theirs)) => {
            let only = |left: &Listing, right: &Listing| {
                let only = left
                    .iter()
                    .filter(|(path, words)| right.get(*path) != Some(words));
                format!("{:?}", only.collect::<Vec<_>>())
            };
            let (ours, theirs) = (only(&ours, &theirs), only(&theirs, &ours));
            Some(format!("only orch: {ours}\nonly docker: {theirs}"))
        }
        (ours, theirs) => Some(format!("orch: {ours:?}\ndocker: {theirs:?}")),
    }
}

const RULES: [&str; 52] = [
    "",
    "*.md\n!README*.md\nREADME-secret.md\n",
    "*\n!src\n",
    "*\n!src/deep/er/keep.txt\n!target/keep\n",
    "target\nnode_modules\n",
    "**/node_modules\n**/*.tmp\n",
    "**/foo\n!a/foo\n",
    "/foo\n./docs/\n",
    "*/temp*\n*/*/temp*\ntemp?\n",
    "src/**\n!src/deep/**/keep.txt\n",
    "**\n!**/*.md\n",
    "docs/**/*.md\nempty\n",
    "Dockerfile\n.dockerignore\n",
    "*\n!Dockerfile\n!link-to-folder\n!src/link\n",
    "\\[brackets\\]\nwith space\n",
    "[a-d]*\n",
    ".*\n!.env\n",
    "target/*\n!target/keep\ntarget/keep/me\n",
    "  # not a comment because of the blanks\n# comment\n\n  docs  \n",
    "a/../docs\nsrc//deep\n",
    "docs/\n!docs/b\ndocs/b/c.md\n",
    "empty/*\n!empty/inner\na\n!a/b\n",
    // Negations with blanks, twice, of everything, and of nothing.
    "*\n!  docs  \n",
    "*\n!!docs\n",
    "!foo\nfoo\n",
    "*\n!*\n",
    "!\n",
    "*\n!/src/\n!./docs/b/\n",
    // Outside, the root itself, and too many slashes.
    "../foo\n..\n",
    ".\n",
    "/\n",
    "./\n!docs\n",
    "//foo//\n///docs///b\n",
    // Stars in odd places.
    "**/\n",
    "**/docs/**\n",
    "docs**\n",
    "s**c/**e**\n",
    "***\n!src\n",
    // Classes, escapes, and what only looks like a regular expression.
    "[!a-d]*\n",
    "[^a-d]*\n!D*\n",
    "f\\oo\n",
    "\\!important\n\\#hash\n-dash\n",
    "docs\\",
    "src\\deep\\er\ntarget\\debug\n",
    "[]a]*\n",
    "[a-\n",
    "/!important\n",
    "./!important\n/ docs\n",
    "!/\n",
    "[*]\n[[]*\nf[?]o\n",
    "\\d*\n*\\s*\n",
    "(paren)|{brace}\n$dollar\n^caret\n+plus\na.b\n",
];

/// Runs `check` for all cases, a few at a time: a build mostly waits.
fn each<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(case);
                }
            });
        }
    });
}

#[test]
fn every_rule_lets_through_what_docker_lets_through() {
    each(&RULES, |rules| {
        let context = folder();
        fs::write(context.path().join(".dockerignore"), rules).unwrap();
        let difference = difference(context.path(), None);
        assert_eq!(difference, None, "\nwith .dockerignore:\n{rules}");
    });
}

#[test]
fn the_ignore_file_beside_the_dockerfile_wins_there_as_well() {
    let context = folder();
    let root = context.path();
    fs::write(root.join(".dockerignore"), "src\n").unwrap();
    fs::write(root.join("Dockerfile.dockerignore"), "docs\n").unwrap();
    file(root, "build/other", "FROM scratch\nCOPY . /\n");
    file(root, "build/other.dockerignore", "a\nbuild\n");
    file(root, "build/plain", "FROM scratch\nCOPY . /\n");
    let outside = tempfile::tempdir().unwrap();
    file(outside.path(), "Dockerfile", "FROM scratch\nCOPY . /\n");
    file(outside.path(), "Dockerfile.dockerignore", "foo\n");
    assert_eq!(difference(root, None), None);
    for dockerfile in ["build/other", "build/plain"] {
        let difference = difference(root, Some(&root.join(dockerfile)));
        assert_eq!(difference, None, "{dockerfile}");
    }
    let dockerfile = outside.path().join("Dockerfile");
    assert_eq!(difference(root, Some(&dockerfile)), None);
}

#[test]
fn an_ignore_file_with_a_bom_and_dos_line_ends_is_read_as_docker_reads_it() {
    let context = folder();
    fs::write(
        context.path().join(".dockerignore"),
        "\u{feff}src\r\n\r\n!src/lib.rs\r\ndocs\r\n",
    )
    .unwrap();
    assert_eq!(difference(context.path(), None), None);
}

#[test]
fn what_is_staged_for_the_builder_is_what_docker_would_have_sent() {
    let context = folder();
    fs::write(
        context.path().join(".dockerignore"),
        "*\n!src\n!Dockerfile\n!dangling\n",
    )
    .unwrap();
    let staged = stage(context.path());
    assert_eq!(
        docker(staged.path(), None).unwrap(),
        docker(context.path(), None).unwrap()
    );
}

/// A copy as the builder gets it, made of nothing but what was hashed.
fn stage(context: &Path) -> tempfile::TempDir {
    let staged = tempfile::tempdir().unwrap();
    let scanned = Context::scan(context, &context.join("Dockerfile")).unwrap();
    let mut visitor = Stage::new(staged.path());
    let hash = scanned.visit(&mut visitor).unwrap();
    visitor.finish().unwrap();
    assert_eq!(hash, scanned.contents(None).unwrap().hash());
    staged
}

/// Parts of paths and of patterns; few, so that they meet.
fn part() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "a", "a", "b", "b", "ab", "ba", "c.md", "d.md", ".x", "a b", "ü", "#c", "!n", "-d", "[x]",
        "a\\b", "a\nb",
    ])
}

fn paths() -> impl Strategy<Value = Vec<(String, u8)>> {
    let path = proptest::collection::vec(part(), 1..5).prop_map(|parts| parts.join("/"));
    proptest::collection::vec((path, 0_u8..8), 1..14)
}

fn rules() -> impl Strategy<Value = String> {
    let wild = proptest::sample::select(vec![
        "*", "**", "?", "a*", "*b", "*.md", "[a-c]", "[^a]", "[!a]*", "\\a", "a\\*", "**a", "a**",
        ".", "..", "", "?b", "***",
    ]);
    let part = prop_oneof![2 => part().boxed(), 2 => wild.boxed()];
    let pattern = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let before = proptest::sample::select(vec![
        "", "", "", "", "!", "!", "!", "/", "./", "!/", " ", "! ", "#", "\t",
    ]);
    let after = proptest::sample::select(vec!["", "", "", "", "/", "/", " ", "\r", "/**", "/*"]);
    let line = (before, pattern, after)
        .prop_map(|(before, pattern, after)| format!("{before}{pattern}{after}\n"));
    let lines = proptest::collection::vec(line, 0..5).prop_map(|lines| lines.concat());
    // Many real ones begin by leaving out everything.
    (proptest::bool::weighted(0.3), lines).prop_map(|(all, lines)| match all {
        true => format!("*\n{lines}"),
        false => lines,
    })
}

/// Makes what can be made of `paths`: one that needs a folder where a file is already is left out.
fn plant(root: &Path, paths: &[(String, u8)]) {
    for (path, kind) in paths {
        let path = root.join(path);
        if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        match kind {
            0 => fs::create_dir(&path).unwrap(),
            1 => symlink("a", &path).unwrap(),
            2 => symlink("../../outside", &path).unwrap(),
            3 => {
                fs::write(&path, "#!/bin/sh\n").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            }
            _ => fs::write(&path, path.to_str().unwrap().len().to_string()).unwrap(),
        }
    }
    file(root, "Dockerfile", "FROM scratch\nCOPY . /\n");
}

/// The cases are the same each time; ORCH_CONTEXT_CASES=N tries N other ones.
#[test]
fn any_context_is_what_docker_makes_of_it() {
    let other = std::env::var("ORCH_CONTEXT_CASES");
    let config = Config {
        cases: other.as_ref().map_or(40, |cases| cases.parse().unwrap()),
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    };
    let seed = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = match other {
        Ok(_) => TestRunner::new(config),
        Err(_) => TestRunner::new_with_rng(config, seed),
    };
    let result = runner.run(&(paths(), rules()), |(paths, rules)| {
        let context = tempfile::tempdir().unwrap();
        plant(context.path(), &paths);
        fs::write(context.path().join(".dockerignore"), &rules).unwrap();
        match difference(context.path(), None) {
            None => Ok(()),
            Some(difference) => Err(TestCaseError::fail(difference)),
        }
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn links_odd_names_and_deep_folders_arrive_as_they_are() {
    let context = tempfile::tempdir().unwrap();
    let root = context.path();
    for name in [
        " leading",
        "trailing ",
        "-rf",
        "#hash",
        "!bang",
        "new\nline",
        "tab\there",
        "quote\"'",
        "back\\slash",
        "ünïcödé",
        "日本",
        "%41",
        "~",
        "...",
        "*",
        "?",
        "$HOME",
        "a:b",
        ".wh.whiteout",
    ] {
        // Overlay file systems, and images with them, know no file of this name: it stands for one that is gone.
        if !name.starts_with(".wh.") {
            file(root, name, name);
            file(root, &format!("folder {name}/inner"), name);
        }
    }
    file(root, &vec!["deep"; 60].join("/"), "bottom");
    file(root, &"n".repeat(255), "long");
    fs::create_dir_all(root.join("empty/of/all")).unwrap();
    for (name, target) in [
        ("to-file", "-rf"),
        ("to-folder", "deep"),
        ("to-itself", "to-itself"),
        ("outside", "../../../etc/passwd"),
        ("absolute", "/etc/passwd"),
        ("dangling", "nothing here"),
        ("odd", "new\nline"),
    ] {
        symlink(target, root.join(name)).unwrap();
    }
    fs::hard_link(root.join("-rf"), root.join("second name")).unwrap();
    for (name, mode) in [
        ("x-user", 0o700),
        ("x-other", 0o641),
        ("setuid", 0o4755),
        ("write-only-group", 0o620),
    ] {
        file(root, name, name);
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    file(root, "Dockerfile", "FROM scratch\nCOPY . /\n");
    assert_eq!(difference(root, None), None);
    let staged = stage(root);
    assert_eq!(orch(staged.path(), None), docker(root, None));
}

#[test]
fn a_hundred_thousand_files_are_what_docker_makes_of_them() {
    let context = tempfile::tempdir().unwrap();
    for folder in 0..1000 {
        let path = context.path().join(format!("{}/{folder}", folder % 7));
        fs::create_dir_all(&path).unwrap();
        for name in 0..100 {
            fs::write(path.join(format!("{name}.txt")), name.to_string()).unwrap();
        }
    }
    file(context.path(), "Dockerfile", "FROM scratch\nCOPY . /\n");
    file(
        context.path(),
        ".dockerignore",
        "3\n!3/*/7.txt\n**/99.txt\n",
    );
    assert_eq!(difference(context.path(), None), None);
    drop(stage(context.path()));
}

#[test]
fn umask_times_paths_and_the_order_of_making_leave_a_name_as_it_is() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names: Vec<String> = (0..300)
        .map(|name| format!("{}/{}/{name}", name % 3, name % 17))
        .collect();
    for name in &names {
        file(first.path(), name, name);
    }
    let run = first.path().join("run");
    fs::write(&run, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    symlink("run", first.path().join("link")).unwrap();
    // A checkout by another user elsewhere, with the files in another order.
    let far = second.path().join("some where/else");
    let script = "umask 077 && mkdir -p \"$2\" && cd \"$1\" && find . -depth ! -type d -print0 | sort -rz | tar --null --files-from - --create \
        | tar --extract --no-same-permissions --touch --directory \"$2\"";
    let status = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([first.path(), &far])
        .status()
        .unwrap();
    assert!(status.success());
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&far.join("0")), mode(&far.join("run"))),
        (0o700, 0o700)
    );
    let hash = |root: &Path| {
        let scanned = Context::scan(root, &root.join("Dockerfile")).unwrap();
        scanned.contents(None).unwrap().hash()
    };
    assert_eq!(hash(first.path()), hash(&far));
}
