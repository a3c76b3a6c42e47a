//! Recognises Helm's templates. They are not manifests yet, also where they happen to parse as YAML.

use std::path::{Path, PathBuf};

/// What a chart's templates speak of and other software's templates in manifests do not.
const HELM: [&str; 7] = [
    ".Values",
    ".Release.",
    ".Chart.",
    ".Capabilities.",
    "include \"",
    "template \"",
    "tpl ",
];
/// The file that makes a folder a chart.
const CHART: &str = "Chart.yaml";

/// Line and column, both from 1, of the first template action outside of comments.
pub(super) fn find(text: &str) -> Option<(usize, usize)> {
    let mut lines = text.lines().enumerate();
    lines.find_map(|(number, line)| {
        let open = line.find("{{")?;
        let closes = line.get(open..).is_some_and(|rest| rest.contains("}}"));
        let comment = line.trim_start().starts_with('#');
        let column = line.get(..open).unwrap_or_default().chars().count();
        (closes && !comment).then_some((number + 1, column + 1))
    })
}

/// Does a flow mapping that begins here look like an action? A mapping as the key of a mapping would begin like one.
pub(super) fn is_action(text: &str) -> bool {
    let line = text.lines().next().unwrap_or_default();
    line.starts_with("{{") && line.contains("}}")
}

/// Does a text hold an action of Helm's? Alerts and dashboards have templates of their own kind, which stay as they are.
pub(super) fn is_helm(text: &str) -> bool {
    text.split("{{").skip(1).any(|rest| {
        let action = rest.split("}}").next().unwrap_or_default();
        rest.contains("}}") && HELM.iter().any(|word| action.contains(word))
    })
}

/// The chart that a file belongs to: as one of its templates, or beside its `Chart.yaml`.
pub(super) fn chart_of(path: &Path) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    let folder = path.parent()?;
    let beside = Some(folder);
    let above = folder.ancestors().filter_map(|folder| {
        let name = folder.file_name()?;
        (name == "templates").then(|| folder.parent()).flatten()
    });
    beside
        .into_iter()
        .chain(above)
        .find(|folder| folder.join(CHART).is_file())
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_other_softwares_templates_are_not_helms() {
        assert_eq!(find("# {{- if .Values.on }}\na: b\n"), None);
        assert_eq!(find("a: b\nä: {{ .Values.c }}\n"), Some((2, 4)));
        assert!(is_helm("{{ .Values.image }}:1"));
        assert!(is_helm("a {{ x }} {{- include \"chart.name\" . }}"));
        assert!(!is_helm("Instance {{ $labels.instance }} is down"));
        assert!(!is_helm("see .Values in {{ x }}"));
        assert!(is_action("{{ .Values.a }}\n") && !is_action("{{a: b}: c}\n"));
    }

    #[test]
    fn a_chart_is_known_by_its_file() {
        let root = tempfile::tempdir().unwrap();
        let chart = root.path().join("web");
        std::fs::create_dir_all(chart.join("templates/tests")).unwrap();
        std::fs::create_dir_all(chart.join("crds")).unwrap();
        for file in ["Chart.yaml", "templates/tests/a.yaml", "crds/b.yaml"] {
            std::fs::write(chart.join(file), "a: b\n").unwrap();
        }
        let found = |file: &str| chart_of(&chart.join(file)).is_some();
        assert!(found("templates/tests/a.yaml") && found("Chart.yaml"));
        assert!(!found("crds/b.yaml"));
    }
}
