//! `orch images check` as a CI job's log shows it: findings by kind, each with its place and the next step; as annotations on
//! GitHub Actions.

use std::path::Path;

use serde_json::{Value, json};

use crate::exit::Exit;
use crate::images::check::Finding;

/// The exit code of one finding.
const fn exit_of(finding: &Finding) -> Exit {
    match finding {
        Finding::SourceChanged { .. } => Exit::SourceChanged,
        Finding::ManifestUnpinned { .. } => Exit::Unpinned,
        Finding::PinMissing { .. } => Exit::PinMissing,
        Finding::TagMoved { .. } => Exit::TagMoved,
    }
}

/// The lowest code that applies: the earliest place on the way from source to cluster.
pub(super) fn exit(findings: &[Finding]) -> Exit {
    let earliest = findings.iter().map(exit_of);
    earliest
        .min_by_key(|exit| *exit as u8)
        .unwrap_or(Exit::Success)
}

/// What a kind of finding is called, in a log and in an annotation.
const fn title(exit: Exit) -> &'static str {
    match exit {
        Exit::SourceChanged => "sources changed since the last push",
        Exit::Unpinned => "manifests do not name what was pushed",
        Exit::PinMissing => "pinned images are missing in the registry",
        Exit::TagMoved => "tags name other images than the lock",
        _ => "",
    }
}

/// For people: a heading a kind, a line a finding, and what it comes to.
pub(super) fn text(findings: &[Finding], offline: bool) -> String {
    let mut text = String::new();
    let mut last = None;
    for finding in findings {
        let exit = exit_of(finding);
        if last != Some(exit) {
            text.push_str(&format!("{} (exit status {}):\n", title(exit), exit as u8));
            last = Some(exit);
        }
        text.push_str(&format!("  {}\n", finding.describe()));
    }
    let asked = if offline {
        "; the registry was not asked"
    } else {
        ""
    };
    match findings.len() {
        0 => text.push_str(&format!(
            "sources, lock{} manifests agree{asked}\n",
            if offline { " and" } else { ", registry and" }
        )),
        1 => text.push_str(&format!("1 finding{asked}\n")),
        count => text.push_str(&format!("{count} findings{asked}\n")),
    }
    text
}

/// For programs.
pub(super) fn json(findings: &[Finding], offline: bool) -> Value {
    let items: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut item = json!(finding);
            if let Some(fields) = item.as_object_mut() {
                fields.insert("exit_code".to_owned(), json!(exit_of(finding) as u8));
                fields.insert("message".to_owned(), json!(finding.describe()));
            }
            item
        })
        .collect();
    json!({
        "ok": findings.is_empty(),
        "exit_code": exit(findings) as u8,
        "offline": offline,
        "findings": items,
    })
}

/// Does this run in a job of GitHub Actions, and in which folder?
pub(super) fn workspace() -> Option<std::path::PathBuf> {
    let is_job = std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
    let named = std::env::var_os("GITHUB_WORKSPACE").map(Into::into);
    is_job.then(|| named.or_else(|| std::env::current_dir().ok()))?
}

/// GitHub's workflow commands, which its log and the pull request's diff show as annotations. Paths are seen from `workspace`.
pub(super) fn annotations(findings: &[Finding], workspace: &Path) -> String {
    findings
        .iter()
        .map(|finding| {
            let mut properties = Vec::new();
            if let Finding::ManifestUnpinned {
                path, line, column, ..
            } = finding
            {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let seen = absolute.strip_prefix(workspace).unwrap_or(path);
                properties.push(format!("file={}", property(&seen.to_string_lossy())));
                properties.push(format!("line={line},col={column}"));
            }
            properties.push(format!("title={}", property(title(exit_of(finding)))));
            let message = data(&finding.describe());
            format!("::error {}::{message}\n", properties.join(","))
        })
        .collect()
}

/// A workflow command's message.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A workflow command's property.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        let reference = "docker.io/me/app:in-1@sha256:a".to_owned();
        vec![
            Finding::ManifestUnpinned {
                path: "/work/Manifests/a,b.yaml".into(),
                line: 5,
                column: 12,
                image: "nginx:1".to_owned(),
                component: None,
                expected: None,
            },
            Finding::PinMissing {
                component: "app".to_owned(),
                reference: reference.clone(),
            },
            Finding::TagMoved {
                component: "app".to_owned(),
                reference,
                found: None,
            },
        ]
    }

    #[test]
    fn a_log_reader_sees_kind_place_and_next_step() {
        let text = text(&findings(), false);
        let expected = [
            "manifests do not name what was pushed (exit status 11):",
            "  /work/Manifests/a,b.yaml:5:12: ",
            "`orch images pin --upstream`",
            "--keep",
            "(exit status 12):",
            "(exit status 13):",
            "3 findings\n",
        ];
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
        let agreed = super::text(&[], true);
        assert_eq!(
            agreed,
            "sources, lock and manifests agree; the registry was not asked\n"
        );
    }

    #[test]
    fn a_program_sees_the_same() {
        let value = json(&findings(), false);
        assert_eq!(value["ok"], false);
        assert_eq!(value["exit_code"], 11);
        assert_eq!(value["findings"][2]["finding"], "tag_moved");
        assert_eq!(value["findings"][2]["exit_code"], 13);
        assert_eq!(json(&[], true)["ok"], true);
        assert_eq!(json(&[], true)["exit_code"], 0);
    }

    #[test]
    fn annotations_cannot_be_broken_out_of() {
        let text = annotations(&findings(), Path::new("/work"));
        let first = text.lines().next().unwrap();
        assert!(
            first.starts_with(
                "::error file=Manifests/a%2Cb.yaml,line=5,col=12,title=manifests do not name what was pushed::"
            ),
            "{first}"
        );
        assert_eq!(text.lines().count(), 3);
        assert_eq!(data("50 %\n::stop"), "50 %25%0A::stop");
    }
}
